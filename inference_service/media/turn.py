"""When an image may be decoded: whoever shares workers and memory among callers decides it."""

from __future__ import annotations

from collections.abc import Callable
import contextlib
from contextvars import ContextVar


Turn = Callable[[], contextlib.AbstractAsyncContextManager[None]]

_turn: ContextVar[Turn | None] = ContextVar("qwenvl_turn", default=None)


def set_turn(turn: Turn) -> None:
    """Sets the context in which every image of this task's request is decoded, after all of them were fetched."""
    _turn.set(turn)


def my_turn() -> contextlib.AbstractAsyncContextManager[None]:
    """The context in which an image of this task's request is decoded; entering it waits for the turn."""
    turn = _turn.get()
    return contextlib.nullcontext() if turn is None else turn()
