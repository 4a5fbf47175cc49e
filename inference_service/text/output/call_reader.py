"""The interface of a reader of one tool call, and what it reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol


class CallState(Enum):
    """The state of a tool call.

    Attributes:
        OPEN: More text may belong to it.
        DONE: It is complete.
        BROKEN: It is malformed, or calls a function that is not declared.
    """

    OPEN = "open"
    DONE = "done"
    BROKEN = "broken"


@dataclass(slots=True)
class ReadCall:
    """A piece of a call.

    Attributes:
        name: The function's name, if the call begins with this piece; else None.
        arguments: The next piece of the arguments' JSON text.
    """

    name: str | None
    arguments: str


@dataclass(slots=True)
class Reading:
    """What was read.

    Attributes:
        state: The state after it.
        calls: Pieces of calls.
        rest: If the state is not OPEN: the text behind the call, or what could not be read of a call that has begun.
    """

    state: CallState = CallState.OPEN
    calls: list[ReadCall] = field(default_factory=list)
    rest: str = ""


class CallReader(Protocol):
    """Reads one call, or a list of calls between one pair of tags.

    The results together do not depend on how the text is split into pieces.
    """

    def read(self, text: str, *, last: bool) -> Reading:
        """Takes the next piece of text.

        A call begins with the first piece of it that is returned: one that is BROKEN before that is no call.

        Args:
            text: The text; the first one begins with the opening tag.
            last: No text follows; a call that is still OPEN is cut off.
        """
