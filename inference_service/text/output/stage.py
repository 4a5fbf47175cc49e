"""What the stages of the output pipeline pass on, and the one method that each of them has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from inference_service.domain import Grounding, StopTrigger


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A piece of one answer on its way through the pipeline.

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

    def __add__(self, later: Piece) -> Piece:
        """This piece and the next one as one."""
        return Piece(
            token_ids=self.token_ids + later.token_ids,
            text=self.text + later.text,
            groundings=self.groundings + later.groundings,
            trigger=later.trigger,
            last=later.last,
        )


class Stage(Protocol):
    """One step of the pipeline, with the state of one answer.

    However an answer is cut into pieces, a stage's results together are the same.
    """

    def push(self, piece: Piece) -> Piece:
        """Takes a piece and gives what is certain now; fields that are not the stage's pass unchanged.

        A stage may end the answer: it sets `trigger` and `last`. Nothing is pushed behind a last piece.
        """
