"""Finds calls of C that work on all of a long text at once: in whatever thread, no other one can run meanwhile.

What only copies or finds bytes, at the speed of memory, does not count.
"""

from __future__ import annotations

from collections.abc import Callable
import sys
from types import FrameType
from typing import Any, Final


_DEAR: Final = frozenset(
    (
        *("replace", "translate", "expandtabs", "split", "rsplit", "splitlines"),
        *("lower", "upper", "casefold", "title", "swapcase", "capitalize"),
        *("strip", "lstrip", "rstrip", "encode", "decode", "hex"),
    )
)


def long_calls(call: Callable[[], object], most: int) -> list[tuple[str, int]]:
    """The dear methods that a call calls on texts or bytes longer than `most`, each with the length."""
    found: list[tuple[str, int]] = []

    def noted(frame: FrameType, event: str, argument: Any) -> None:
        del frame
        text = getattr(argument, "__self__", None)
        if event != "c_call" or not isinstance(text, str | bytes | bytearray):
            return
        if argument.__name__ in _DEAR and len(text) > most:
            found.append((argument.__name__, len(text)))

    before = sys.getprofile()
    sys.setprofile(noted)
    try:
        call()
    finally:
        sys.setprofile(before)
    return found
