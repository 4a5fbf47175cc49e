"""Sampling settings as people type them, on the command line and in a conversation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, get_type_hints

from inference_service.sampling import RANGES, Sampling


_SWITCH: Final = {"true": True, "on": True, "false": False, "off": False}
_PARSERS: Final[Mapping[Any, tuple[Callable[[str], Any], str]]] = {
    int: (int, "an integer"),
    float: (float, "a number"),
    bool: (lambda text: _SWITCH[text.lower()], "true or false"),
}
_KINDS: Final = {
    name: _PARSERS[kind] for name, kind in get_type_hints(Sampling).items() if kind in _PARSERS
}
NAMES: Final = tuple(_KINDS)
"""The settings that can be typed."""


def read_sampling(name: str, text: str) -> Any:
    """The value of a setting.

    Args:
        name: One of `NAMES`.
        text: What was typed.

    Raises:
        ValueError: It is not a value of this setting; the message says what is.
    """
    parse, expected = _KINDS[name]
    limits = RANGES.get(name)
    if limits is not None:
        expected += f" from {limits.minimum:.15g} to {limits.maximum:.15g}"
    try:
        value = parse(text.strip())
    except (ValueError, KeyError):
        value = None
    if value is None or (limits is not None and value not in limits):
        raise ValueError(f"{name} cannot be {text}: it is {expected}")
    return value
