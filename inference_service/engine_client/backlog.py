"""The outputs of one choice that wait for a slow consumer, in pieces: small ones, and those that wait longer packed.

A position with the log probabilities of 20 tokens is 3 KiB of objects, and takes 0.1 ms to make a message of. A prompt
may have a quarter of a million: at once, they would be many seconds in which the event loop does nothing else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import msgspec

from inference_service.engine_protocol.messages import ChoiceOutput


_MERGE_AT: Final = 64
PIECE: Final = 256
"""Positions of one piece: tokens of the prompt with log probabilities, and tokens of the answer."""

_ENCODER: Final = msgspec.msgpack.Encoder()
_OUTPUTS: Final = msgspec.msgpack.Decoder(ChoiceOutput)


class Backlog:
    """Outputs of one choice, in order.

    Attributes:
        packed_bytes: Size of the packed pieces.
    """

    def __init__(self) -> None:
        self.packed_bytes = 0
        self._packed: deque[ChoiceOutput | bytes] = deque()
        self._newest: list[ChoiceOutput] = []
        self._positions = 0  # of the newest

    @property
    def has_pieces(self) -> bool:
        """Whether more than one piece waits."""
        return bool(self._packed)

    def push(self, output: ChoiceOutput) -> None:
        """Adds an output."""
        for piece in _pieces(output):
            if self._newest and self._positions + _size(piece) > PIECE:
                self._pack()
            self._newest.append(piece)
            self._positions += _size(piece)
        if len(self._newest) >= _MERGE_AT:
            self._newest[:] = [merge(self._newest)]

    def pop(self) -> ChoiceOutput:
        """The oldest piece; there is one."""
        if not self._packed:
            outputs, self._newest, self._positions = self._newest, [], 0
            return merge(outputs)
        oldest = self._packed.popleft()
        if isinstance(oldest, ChoiceOutput):
            return oldest
        self.packed_bytes -= len(oldest)
        return _OUTPUTS.decode(oldest)

    def __bool__(self) -> bool:
        return bool(self._packed or self._newest)

    def _pack(self) -> None:
        """Ends the newest piece, and packs it if its objects are large."""
        merged = merge(self._newest)
        self._newest, self._positions = [], 0
        if merged.logprobs or merged.prompt_logprobs:
            packed = _ENCODER.encode(merged)
            self.packed_bytes += len(packed)
            self._packed.append(packed)
        else:
            self._packed.append(merged)


def merge(outputs: Sequence[ChoiceOutput]) -> ChoiceOutput:
    """Joins consecutive outputs of one choice into one."""
    if len(outputs) == 1:
        return outputs[0]
    cached = [o.num_cached_tokens for o in outputs if o.num_cached_tokens is not None]
    return ChoiceOutput(
        request_id=outputs[0].request_id,
        choice_index=outputs[0].choice_index,
        token_ids=tuple(token for output in outputs for token in output.token_ids),
        logprobs=tuple(entry for output in outputs for entry in output.logprobs),
        prompt_logprobs=tuple(entry for output in outputs for entry in output.prompt_logprobs),
        num_cached_tokens=cached[0] if cached else None,
        num_cache_write_tokens=sum(output.num_cache_write_tokens for output in outputs),
        timings=next((output.timings for output in outputs if output.timings is not None), None),
        probe=outputs[-1].probe,
        finish_reason=outputs[-1].finish_reason,
        failure=outputs[-1].failure,
    )


def _size(output: ChoiceOutput) -> int:
    """Positions of an output."""
    return len(output.token_ids) + len(output.prompt_logprobs)


def _pieces(output: ChoiceOutput) -> Iterator[ChoiceOutput]:
    """An output whose prompt has too many positions for one piece, in several; an answer grows by few in a step."""
    entries = output.prompt_logprobs
    if len(entries) <= PIECE:
        yield output
        return
    for start in range(0, len(entries), PIECE):
        yield ChoiceOutput(
            request_id=output.request_id,
            choice_index=output.choice_index,
            prompt_logprobs=entries[start : start + PIECE],
        )
    yield replace(output, prompt_logprobs=())
