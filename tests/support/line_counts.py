"""Counts the lines of Python that a call executes: a measure of its work that no other load changes."""

from __future__ import annotations

from collections.abc import Callable
import sys
from types import FrameType
from typing import Any


def lines_of(call: Callable[[], object], within: str = "inference_service") -> int:
    """The lines that a call executes in modules below a package."""
    count = 0

    def line(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        del frame, argument
        count += event == "line"
        return line

    def begin(frame: FrameType, event: str, argument: Any) -> Any:
        del event, argument
        is_within = str(frame.f_globals.get("__name__", "")).startswith(within)
        return line if is_within else None

    before = sys.gettrace()
    sys.settrace(begin)
    try:
        call()
    finally:
        sys.settrace(before)
    return count
