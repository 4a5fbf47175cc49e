"""What the stages of the output pipeline pass on, and the one method that each of them has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from inference_service.domain import Grounding, StopTrigger


@dataclass(slots=True, kw_only=True)
class Piece:
    """A piece of one answer on its way through the pipeline; stages change it in place, for there is one a token.

    Attributes:
        token_ids: The tokens that the piece was made from.
        text: The text that the stages so far let through: whole characters only.
        groundings: Boxes read from the answer, in its order.
        trigger: What ended the answer, where a stage did and not the engine.
        last: No piece follows: a stage gives all that it still holds back.
    """

    token_ids: tuple[int, ...] = ()
    text: str = ""
    groundings: tuple[Grounding, ...] = ()
    trigger: StopTrigger | None = None
    last: bool = False

    def extend(self, later: Piece) -> None:
        """Appends the next piece."""
        self.token_ids += later.token_ids
        self.text += later.text
        self.groundings += later.groundings
        self.trigger = later.trigger
        self.last = later.last


class Stage(Protocol):
    """One step of the pipeline, with the state of one answer.

    However an answer is cut into pieces, a stage's results together are the same.
    """

    def push(self, piece: Piece) -> None:
        """Changes a piece into what is certain now, and keeps the rest for the next one.

        A stage may end the answer: it sets `trigger` and `last`. Nothing is pushed behind a last piece.
        """
