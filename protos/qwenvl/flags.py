"""Turns a settings class into command-line flags and `QWENVL_*` variables, for both programs.

Requires pydantic, which the extras `[adapter]` and `[inference]` install; no other module of this package imports it.

A field `max_num_seqs` is the flag `--max-num-seqs` and the variable `QWENVL_MAX_NUM_SEQS`; a flag takes precedence
over the variable. An alias (`AliasChoices`) is a second flag and a second variable. Lists are several words after the
flag, or comma-separated, as in the variable. `none` unsets an optional setting.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
import re
import types
from typing import Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from qwenvl.addresses import MAX_PORT, check_target, parse_address
from qwenvl.environment import ENV_PREFIX
from qwenvl.keys import KeyFileError, read_keys
from qwenvl.observability import can_trace


__all__ = [
    "ENV_PREFIX",
    "Address",
    "Endpoint",
    "FlagSettings",
    "Positive",
    "Seconds",
    "Target",
    "is_true",
    "next_address",
]


def _check_address(text: str) -> str:
    try:
        return str(parse_address(text))
    except ValueError as error:
        raise PydanticCustomError("address", "{text}", {"text": str(error)}) from None


def _check_target(text: str) -> str:
    try:
        check_target(text)
    except ValueError as error:
        raise PydanticCustomError("target", "{text}", {"text": str(error)}) from None
    return text


def _check_endpoint(text: str) -> str:
    try:
        url = urlsplit(text)
        is_plain = url.scheme in ("http", "https") and bool(url.hostname and url.port)
    except ValueError:
        is_plain = False
    if not is_plain or url.path not in ("", "/") or "@" in text or url.query or url.fragment:
        raise PydanticCustomError("endpoint", "must be http://HOST:PORT or https://HOST:PORT")
    return text


def is_true(text: str) -> bool:
    """Reads a switch as settings do; raises ValueError if it is none."""
    return TypeAdapter(bool).validate_python(text)


def next_address(address: str) -> str:
    """The port after that of an address, on 127.0.0.1; port 0 stays 0."""
    port = parse_address(address).port
    return f"127.0.0.1:{port and (port + 1 if port < MAX_PORT else port - 1)}"


Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
"""A count or a size."""
MAX_SECONDS = 1_000_000
Seconds = Annotated[float, Field(ge=0.001, le=MAX_SECONDS)]
"""A duration: longer ones overflow in timers."""
_SHOWN_CHARACTERS = 100
_USER_INFO = re.compile(r"://[^/@\s]+@")
Address = Annotated[str, AfterValidator(_check_address)]
"""HOST:PORT of an API."""
Target = Annotated[str, AfterValidator(_check_target)]
"""A gRPC target: HOST:PORT, or one with a scheme."""
Endpoint = Annotated[str, AfterValidator(_check_endpoint)]
"""A server of another program: http://HOST:PORT, or https:// for TLS."""


class FlagSettings(BaseModel):
    """A settings model with command-line flags and environment variables for its fields.

    Attributes:
        GROUPS: Titles of the groups of flags in the help, each with the first field of its group.
        NEEDS: Settings that have no meaning without others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    GROUPS: ClassVar[Mapping[str, str]] = {}
    NEEDS: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser, *, skip: Collection[str] = ()) -> None:
        """Adds one flag for every field not in `skip`; flags that are not given do not appear in the namespace."""
        titles = {first: title for title, first in cls.GROUPS.items()}
        title, groups = "settings", dict[str, Any]()
        for name, info in cls.model_fields.items():
            title = titles.get(name, title)
            if name in skip:
                continue
            if title not in groups:
                groups[title] = parser.add_argument_group(title)
            options: dict[str, Any] = {
                "default": argparse.SUPPRESS,
                "dest": name,
                "help": f"{info.description} (default: {_show_default(info.default)})",
            }
            if info.annotation is bool:
                options["action"] = argparse.BooleanOptionalAction
            else:
                options["metavar"] = _metavar(name, info.annotation)
                options["nargs"] = "+" if _is_tuple(info.annotation) else None
            groups[title].add_argument(*_flags(name, info), **options)

    @classmethod
    def load(cls, flags: Mapping[str, Any], environ: Mapping[str, str]) -> Self:
        """Loads settings: flags take precedence over the environment, then defaults.

        Args:
            flags: Parsed flags; names that are not fields are ignored.
            environ: The process environment.

        Raises:
            SystemExit: A value is invalid; the message has a line for each, see `problem`.
        """
        values: dict[str, Any] = {}
        for name, info in cls.model_fields.items():
            texts = (environ.get(ENV_PREFIX + alias.upper()) for alias in _names(name, info))
            text = next(filter(None, texts), None)
            if name in flags:
                values[name] = flags[name]
                if isinstance(values[name], list | tuple):
                    values[name] = _words(",".join(map(str, values[name]))) or ""
            elif text:
                values[name] = _words(text) if _is_tuple(info.annotation) else text
            if values.get(name) == "none" and type(None) in get_args(info.annotation):
                values[name] = None
            elif isinstance(values.get(name), str) and (choices := _choices(info.annotation)):
                values[name] = _as_chosen(values[name], choices)
        empty = [cls.problem(name, "", "is empty") for name, value in values.items() if value == ""]
        if empty:
            raise SystemExit("\n".join(empty))
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise SystemExit("\n".join(cls._problems(error))) from None

    @classmethod
    def _problems(cls, error: ValidationError) -> Iterator[str]:
        for item in error.errors():
            # pydantic's own words; a validator's error has its text behind a prefix.
            text = item["msg"].removeprefix("Value error, ").partition(", unable to")[0]
            text = text.replace("Input should be", "must be", 1)
            yield cls.problem(str(item["loc"][0]), item["input"], text)

    @classmethod
    def problem(cls, name: str, value: object, text: str) -> str:
        """One line about an invalid setting: its flag, value and variable, and what is wrong."""
        fields = cls.model_fields.items()
        names = next((found for n, i in fields if name in (found := _names(n, i))), [name])
        flag = "--" + names[0].replace("_", "-")
        shown = ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
        shown = _in_one_line(_USER_INFO.sub("://***@", shown), _SHOWN_CHARACTERS)
        text = _in_one_line(text, 3 * _SHOWN_CHARACTERS)
        return f"{flag}={shown} ({ENV_PREFIX}{names[0].upper()}): {text}"

    def check_files(self) -> None:
        """Checks that every file in the settings can be read, that a key file has keys, and that none lacks another.

        Traces need packages, which are checked as well.

        Raises:
            SystemExit: Something is missing; the message has a line for each, see `problem`.
        """
        problems = [
            self.problem(name, path, text)
            for name in type(self).model_fields
            if name.endswith("_file")
            and (path := getattr(self, name)) is not None
            and (text := _file_problem(name, Path(path)))
        ]
        problems += [
            self.problem(name, getattr(self, name), f"needs --{other.replace('_', '-')}")
            for name, others in self.NEEDS.items()
            for other in others
            if getattr(self, name) is not None and getattr(self, other) is None
        ]
        endpoint = getattr(self, "otlp_traces_endpoint", None)
        if endpoint is not None and not can_trace():
            text = "needs OpenTelemetry: pip install 'qwen-vl-serving[tracing]'"
            problems.append(self.problem("otlp_traces_endpoint", endpoint, text))
        if problems:
            raise SystemExit("\n".join(problems))


def _in_one_line(text: str, limit: int) -> str:
    """A text without line ends and other control characters, and not too long."""
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _file_problem(name: str, path: Path) -> str:
    """Why a file cannot be used; empty = it can."""
    try:
        if name == "api_key_file":
            return "" if read_keys(path) else "contains no API key"
        if path.is_fifo():
            return "is not a regular file"
        with path.open("rb"):
            return ""
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except KeyFileError as error:
        return str(error)


def _metavar(name: str, annotation: Any) -> str:
    """The placeholder of a flag's value: the choices, or what kind of value it is."""
    if choices := _choices(annotation):
        return "{" + ",".join(choices) + "}"
    endings = {"_address": "HOST:PORT", "_target": "TARGET", "_file": "FILE", "_path": "DIR"}
    endings |= {"_s": "SECONDS", "_mib": "MIB", "_bytes": "BYTES"}
    for ending, word in endings.items():
        if name.endswith(ending):
            return word
    types_in = set(_plain_types(annotation))
    return "N" if int in types_in else "X" if float in types_in else name.rpartition("_")[2].upper()


def _plain_types(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in get_args(annotation):
        yield from _plain_types(part)


def _choices(annotation: Any) -> tuple[str, ...]:
    if get_origin(annotation) in (Union, types.UnionType):
        return next(filter(None, map(_choices, get_args(annotation))), ())
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _as_chosen(text: str, choices: Sequence[str]) -> str:
    """The choice that differs in the case of letters only, else the text."""
    return next((choice for choice in choices if choice.lower() == text.lower()), text)


def _flags(name: str, info: FieldInfo) -> list[str]:
    return ["--" + alias.replace("_", "-") for alias in _names(name, info)]


def _names(name: str, info: FieldInfo) -> list[str]:
    """The names of a setting, the documented one first."""
    aliases = info.validation_alias
    return (
        [str(alias) for alias in aliases.choices] if isinstance(aliases, AliasChoices) else [name]
    )


def _is_tuple(annotation: Any) -> bool:
    if get_origin(annotation) in (Union, types.UnionType):
        return any(_is_tuple(part) for part in get_args(annotation))
    return get_origin(annotation) is tuple


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _show_default(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "empty"
    return "none" if value is None else str(value)
