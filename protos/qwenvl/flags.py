"""Turns a settings class into command-line flags and `QWENVL_*` variables, for both programs.

Requires pydantic, which the extras `[adapter]` and `[inference]` install; no other module of this package imports it.

A field `max_num_seqs` is the flag `--max-num-seqs` and the variable `QWENVL_MAX_NUM_SEQS`; a flag takes precedence
over the variable. An alias (`AliasChoices`) is a second flag and a second variable. Lists are several words after the
flag, and comma-separated in the variable. `none` unsets an optional setting.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
import types
from typing import Any, Self, Union, get_args, get_origin

from pydantic import AliasChoices, BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo


ENV_PREFIX = "QWENVL_"


class FlagSettings(BaseModel):
    """A settings model with command-line flags and environment variables for its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser, *, skip: Collection[str] = ()) -> None:
        """Adds one flag for every field not in `skip`; flags that are not given do not appear in the namespace."""
        for name, info in cls.model_fields.items():
            if name in skip:
                continue
            flags = ["--" + alias.replace("_", "-") for alias in _names(name, info)]
            annotation = info.annotation
            options: dict[str, Any] = {
                "default": argparse.SUPPRESS,
                "dest": name,
                "help": f"{info.description} (default: {_show_default(info.default)})",
            }
            if annotation is bool:
                parser.add_argument(*flags, action=argparse.BooleanOptionalAction, **options)
            elif _is_tuple(annotation):
                parser.add_argument(*flags, nargs="+", metavar=name.upper(), **options)
            else:
                parser.add_argument(*flags, metavar=name.upper(), **options)

    @classmethod
    def load(cls, flags: Mapping[str, Any], environ: Mapping[str, str]) -> Self:
        """Loads settings: flags take precedence over the environment, then defaults.

        Args:
            flags: Parsed flags; names that are not fields are ignored.
            environ: The process environment.

        Raises:
            SystemExit: A value is invalid; the message names the setting.
        """
        values: dict[str, Any] = {}
        for name, info in cls.model_fields.items():
            texts = (environ.get(ENV_PREFIX + alias.upper()) for alias in _names(name, info))
            text = next(filter(None, texts), None)
            if name in flags:
                values[name] = flags[name]
            elif text:
                values[name] = _words(text) if _is_tuple(info.annotation) else text
            if values.get(name) == "none" and type(None) in get_args(info.annotation):
                values[name] = None
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            lines = [
                f"--{str(item['loc'][0]).replace('_', '-')}: {item['msg']}"
                for item in error.errors()
            ]
            raise SystemExit("invalid settings:\n  " + "\n  ".join(lines)) from None


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
