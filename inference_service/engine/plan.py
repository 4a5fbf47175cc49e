"""The plan of one step: which tokens of which sequences are computed, and which images are encoded."""

from __future__ import annotations

from dataclasses import dataclass, field

from inference_service.engine.sequence import Sequence
from inference_service.engine_protocol.messages import ImageSpan


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens [start, end) of a sequence, to be computed in one step.

    Attributes:
        sequence: The sequence.
        start: The number of computed tokens of the sequence.
        end: Exclusive.
        samples: The chunk ends with the sequence's newest token, so the next one is sampled, or judged for a probe.
        epoch: The epoch of the sequence.
    """

    sequence: Sequence
    start: int
    end: int
    samples: bool
    epoch: int = 0

    @property
    def extends(self) -> bool:
        """Whether the sequence gets another token."""
        return self.samples and self.sequence.probe is None


@dataclass(slots=True)
class Plan:
    """The plan of one step.

    Attributes:
        tokens_left: Remaining token budget of the step.
        encoder_tokens_left: Remaining budget of image tokens to encode.
        chunks: The chunks to compute; the newest sequence is last.
        images: The images to encode first, each key once, with a sequence that has the pixels.
        num_decodes: How many chunks, the first ones, are the next tokens of answers in progress.
        waits: Nothing is planned, as results are in flight for which somebody waits, and no answer goes on meanwhile:
            nothing would bound the step, so they are to be collected first.
    """

    tokens_left: int
    encoder_tokens_left: int
    chunks: list[Chunk] = field(default_factory=list)
    images: list[tuple[Sequence, ImageSpan]] = field(default_factory=list)
    num_decodes: int = 0
    waits: bool = False
