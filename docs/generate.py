"""Generates the tables of docs/*.md: flags from the settings classes, errors from `qwenvl.errors`.

A table is between `<!-- generated: NAME -->` and `<!-- end generated -->`. Run it with `make docs`; `--check`
changes nothing and ends with status 1 if a table is out of date.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
import re
import sys
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import AliasChoices
from pydantic.fields import FieldInfo


DOCS = Path(__file__).resolve().parent
sys.path[:0] = [str(DOCS.parent), str(DOCS.parent / "protos")]

from inference_service.cli import build_parser  # noqa: E402 - found by the path above
from inference_service.families.registry import FAMILIES, load_spec  # noqa: E402
from inference_service.families.tables import kv_bytes_per_token, module_parts  # noqa: E402
from inference_service.settings import ServiceSettings  # noqa: E402
from qwenvl.errors import BY_REASON  # noqa: E402
from qwenvl.flags import ENV_PREFIX, FlagSettings  # noqa: E402
from rest_adapter.settings import AdapterSettings  # noqa: E402


_BOUNDS: dict[type, tuple[str, str]] = {
    Ge: ("≥", "ge"),
    Gt: (">", "gt"),
    Le: ("≤", "le"),
    Lt: ("<", "lt"),
}
_TYPES = {bool: "switch", int: "integer", float: "number", str: "text"}
_REGION = re.compile(r"(<!-- generated: ([\w -]+) -->\n).*?(<!-- end generated -->)", re.DOTALL)


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrites or checks all documents; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; 1 = out of date")
    check = parser.parse_args(argv).check
    stale = []
    for path in sorted(DOCS.glob("*.md")):
        old = path.read_text(encoding="utf-8")
        new = render(old)
        if new != old:
            stale.append(path.name)
            if not check:
                path.write_text(new, encoding="utf-8")
    if check and stale:
        print(f"out of date, run `make docs`: {', '.join(stale)}", file=sys.stderr)
    return 1 if check and stale else 0


def render(document: str) -> str:
    """A document with its tables as they should be."""
    return _REGION.sub(lambda m: f"{m[1]}\n{_TABLES[m[2]]()}\n\n{m[3]}", document)


def _settings_table(settings: type[FlagSettings]) -> str:
    rows = (
        (_flags(name, info), _type(info), _default(info), _cell(info.description or ""))
        for name, info in settings.model_fields.items()
    )
    return _table(("flag and variable", "type", "default", "meaning"), rows)


def _flags(name: str, info: FieldInfo) -> str:
    aliases = info.validation_alias
    names = list(map(str, aliases.choices)) if isinstance(aliases, AliasChoices) else [name]
    flags = [f"`--{name.replace('_', '-')}`" for name in names]
    if info.annotation is bool:
        flags = [flag.replace("`--", "`--[no-]") for flag in flags]
    variables = [f"`{ENV_PREFIX}{name.upper()}`" for name in names]
    return "<br>".join((*flags, *variables))


def _type(info: FieldInfo) -> str:
    return _type_of(info.annotation, info.metadata)


def _type_of(annotation: Any, metadata: Iterable[object] = ()) -> str:
    """A type in words, with its limits."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        base, *inner = parts
        return _type_of(base, [*metadata, *_flat(inner)])
    if origin in (Union, types.UnionType):
        return _type_of(next(part for part in parts if part is not type(None)), metadata)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in parts)
    if origin is tuple:
        return "list"
    limits = [
        f"{_BOUNDS[type(bound)][0]} {getattr(bound, _BOUNDS[type(bound)][1]):g}"
        for bound in metadata
        if type(bound) in _BOUNDS
    ]
    return " ".join((_TYPES[annotation], ", ".join(limits))).strip()


def _flat(metadata: Iterable[object]) -> Iterator[object]:
    """Limits inside `Field(...)`, which pydantic keeps one level down."""
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from item.metadata
        else:
            yield item


def _default(info: FieldInfo) -> str:
    value = info.default
    if value == ():
        return "empty"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{' '.join(value) if isinstance(value, tuple) else value}`"


def _actions(command: str) -> list[argparse.Action]:
    """All arguments of a `qwenvl` command."""
    commands = next(
        action.choices
        for action in build_parser()._actions  # argparse has no public way
        if isinstance(action, argparse._SubParsersAction)
    )
    return list(commands[command]._actions)


def _command_table(command: str) -> str:
    """Arguments of a `qwenvl` command that are not settings of the inference service."""
    rows = []
    for action in _actions(command):
        if action.default is argparse.SUPPRESS:  # a setting, or --help
            continue
        name = ", ".join(action.option_strings) or action.dest.upper()
        value = f" {action.metavar or action.dest.upper()}" if action.option_strings else ""
        rows.append((f"`{_cell(name + value)}`", _cell(action.help or "")))
    return _table(("argument", "meaning"), rows)


def _command_settings(command: str) -> str:
    """The settings of the inference service that a `qwenvl` command takes as flags."""
    flags = [
        f"`{action.option_strings[0]}`"
        for action in _actions(command)
        if action.default is argparse.SUPPRESS and action.dest in ServiceSettings.model_fields
    ]
    return ", ".join(flags)


def _error_table() -> str:
    rows = (
        (
            f"`{row.reason}`",
            f"`{row.grpc_code.name}`",
            str(row.http_status),
            f"`{row.openai_type}`",
            f"`{row.openai_code}`",
            "yes" if row.retry else "no",
        )
        for row in BY_REASON.values()
    )
    titles = ("reason", "gRPC status", "HTTP status", "`error.type`", "`error.code`", "retry")
    return _table(titles, rows)


def _size_table() -> str:
    """Parameters and 16-bit sizes of published models, from their configuration files in the tests."""
    configs = DOCS.parent / "tests" / "golden" / "configs"
    models = [
        (path.name, load_spec(path), module_parts(load_spec(path))) for path in configs.iterdir()
    ]
    order = list(FAMILIES)
    models.sort(key=lambda model: (order.index(model[1].family), sum(n for _, n in model[2])))
    rows = (
        (
            name,
            f"`{spec.family}`",
            *(f"{count / 1e9:.2f} B" for _, count in parts),
            f"{2 * sum(count for _, count in parts) / 2**30:.1f} GiB",
            f"{kv_bytes_per_token(spec, 2) // 1024} KiB",
            str(spec.max_position_embeddings),
        )
        for name, spec, parts in models
    )
    titles = ("model", "family", "vision", "adapter", "language", "weights", "KV cache per token")
    return _table((*titles, "context window"), rows)


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


_TABLES: dict[str, Callable[[], str]] = {
    "inference-service": lambda: _settings_table(ServiceSettings),
    "rest-adapter": lambda: _settings_table(AdapterSettings),
    "errors": _error_table,
    "sizes": _size_table,
    **{
        f"qwenvl {name}": lambda name=name: _command_table(name)  # type: ignore[misc]
        for name in ("serve", "chat", "download", "check")
    },
    **{
        f"qwenvl {name} settings": lambda name=name: _command_settings(name)  # type: ignore[misc]
        for name in ("download", "check")
    },
}


if __name__ == "__main__":
    raise SystemExit(main())
