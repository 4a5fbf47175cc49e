"""Messages between the front and the trial process, one in each packet of a socket; msgpack, never pickle."""

from __future__ import annotations

from typing import Final

import msgspec

from inference_service.constraint import Constraint


MAX_PACKET_BYTES: Final = 512 * 2**10
"""More than a constraint within its limits, with every character escaped."""


class Trial(msgspec.Struct, frozen=True, tag="trial"):
    """Front to process: try this constraint."""

    number: int
    constraint: Constraint


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Process to front, once: the vocabulary is loaded."""


class Verdict(msgspec.Struct, frozen=True, tag="verdict"):
    """Process to front, once for each trial.

    Attributes:
        number: The trial.
        error: Why the constraint cannot be compiled; empty = it can.
        exhausted: The trial reached its limit of CPU time or memory, or crashed the compiler.
        lost: The trial was ended by something else, and says nothing about the constraint.
        cpu_s: CPU time of the trial.
    """

    number: int
    error: str = ""
    exhausted: bool = False
    lost: bool = False
    cpu_s: float = 0.0

    @property
    def passed(self) -> bool:
        """The constraint can be compiled."""
        return not (self.error or self.exhausted or self.lost)


Reply = Ready | Verdict

_ENCODER: Final = msgspec.msgpack.Encoder()
TRIALS: Final = msgspec.msgpack.Decoder(Trial)
REPLIES: Final[msgspec.msgpack.Decoder[Reply]] = msgspec.msgpack.Decoder(Reply)


def encode(message: Trial | Reply) -> bytes:
    """The packet of a message."""
    return _ENCODER.encode(message)
