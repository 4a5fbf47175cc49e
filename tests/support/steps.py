"""Counts what Python does, as a measure of work that does not depend on the machine."""

from __future__ import annotations

from collections.abc import Callable
import sys
from types import FrameType
from typing import Any


def steps_of(work: Callable[[], object], path: str) -> int:
    """Lines that some work runs in files whose path contains `path`."""
    steps = 0

    def line(_: FrameType, event: str, __: Any) -> Any:
        nonlocal steps
        steps += event == "line"
        return line

    def call(frame: FrameType, _: str, __: Any) -> Any:
        return line if path in frame.f_code.co_filename else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        work()
    finally:
        sys.settrace(before)
    return steps
