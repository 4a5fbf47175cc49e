"""Counts how far this process has come, so that a long step can be told from one that hangs."""

from __future__ import annotations


class _Progress:
    count = 0


def advance(*_: object) -> None:
    """Notes that a part of the work is done; takes any arguments, as a hook of a module does."""
    _Progress.count += 1


def progress() -> int:
    """The number of parts that are done."""
    return _Progress.count
