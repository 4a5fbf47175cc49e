"""Masks the tokens that constraints and lists of tokens do not permit: made on the host, applied on the device."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
import math
import os
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from inference_service.engine.sequence import Sequence
from inference_service.engine.staging import Fence


if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from inference_service.engine.constraint_state import ConstraintState

_MAX_THREADS: Final = 4
_WORD: Final = 32


@dataclass(frozen=True, slots=True)
class TokenMask:
    """The permitted tokens of some rows of a batch.

    Attributes:
        rows: [C] int64 on the device: C rows of the batch.
        bits: [C, ceil(V / 32)] int32 on the device; bit i of word w is token 32 * w + i.
    """

    rows: Tensor
    bits: Tensor

    def apply_(self, logits: Tensor, unbanned: Tensor) -> None:
        """Masks the rows in place; the others are not changed.

        Args:
            logits: [R, V] float32.
            unbanned: [C, V]: the C rows before any token was excluded: its values apply in a row in which every
                permitted token has been excluded, so that one of them is chosen all the same.
        """
        shifts = torch.arange(_WORD, dtype=torch.int32, device=logits.device)
        bits = (self.bits.unsqueeze(-1) >> shifts) & 1
        forbidden = bits.flatten(1)[:, : logits.shape[-1]] == 0
        masked = logits.index_select(0, self.rows).masked_fill_(forbidden, -math.inf)
        is_empty = masked.amax(dim=-1, keepdim=True) == -math.inf
        fallback = unbanned.masked_fill(forbidden, -math.inf)
        logits.index_copy_(0, self.rows, torch.where(is_empty, fallback, masked))


class MaskBuffers:
    """Computes the masks of a step while the device computes its forward pass; allocated with the first mask."""

    def __init__(self, max_seqs: int) -> None:
        self._max_seqs = max_seqs
        self._buffers: Iterator[_Buffer] | None = None
        self._threads: ThreadPoolExecutor | None = None

    def fill(
        self, sequences: Seq[Sequence], rows: Tensor, vocab_size: int, device: torch.device
    ) -> TokenMask:
        """The mask of sequences of which only some tokens are permitted next.

        A constraint wins over a list of which it permits nothing. A matcher that fails meanwhile tells so when it takes
        the token, see `ConstraintState.take`.

        Args:
            sequences: C sequences, at least one.
            rows: [C] int64 on the device: their rows in the batch.
            vocab_size: Width of the logits.
            device: Their device.
        """
        if self._buffers is None:
            made = [_Buffer(self._max_seqs, -(-vocab_size // _WORD), device) for _ in range(2)]
            self._buffers = cycle(made)
        buffer = next(self._buffers)
        buffer.wait()
        words: npt.NDArray[np.int32] = buffer.host.numpy()
        self._compute(sequences, words)
        for row, sequence in enumerate(sequences):
            if allowed := sequence.sampling.allowed_tokens:
                _allow(words[row], np.frombuffer(allowed, np.int32), sequence.is_masked)
        return TokenMask(rows, buffer.upload(len(sequences)))

    def _compute(self, sequences: Seq[Sequence], words: npt.NDArray[np.int32]) -> None:
        """Computes the masks of constraints."""
        masked = [
            (sequence.constraint, words[row])
            for row, sequence in enumerate(sequences)
            if sequence.constraint is not None and sequence.is_masked
        ]
        if not masked:
            return
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="masks")
        rest = iter(
            masked
        )  # of this thread and its helpers: each takes the next one when it is free
        helpers = min(_MAX_THREADS, os.cpu_count() or 1, len(masked)) - 1
        helping = [self._threads.submit(_fill, rest) for _ in range(helpers)]
        _fill(rest)
        for helper in helping:
            if not helper.cancel():  # it came in time to help
                helper.result()


def _fill(masked: Iterable[tuple[ConstraintState, npt.NDArray[np.int32]]]) -> None:
    for state, words in masked:
        state.fill(words)


def _allow(
    words: npt.NDArray[np.int32], allowed: npt.NDArray[np.int32], is_constrained: bool
) -> None:
    """Writes a list of tokens into a row, or what it has in common with the constraint that is there."""
    common = words & allowed if is_constrained else allowed
    if common.any():
        words[:] = common


class _Buffer:
    """Words of masks on the host (pinned for CUDA) and on the device; on a CPU they are the same memory."""

    def __init__(self, max_seqs: int, words: int, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self.host = torch.zeros(max_seqs, words, dtype=torch.int32, pin_memory=on_gpu)
        self._target = torch.zeros_like(self.host, device=device) if on_gpu else self.host
        self._uploaded = Fence(device)

    def wait(self) -> None:
        """Blocks until the last upload is complete."""
        self._uploaded.wait()

    def upload(self, rows: int) -> Tensor:
        """Copies the first rows to the device, asynchronously."""
        if self._target is not self.host:
            self._target[:rows].copy_(self.host[:rows], non_blocking=True)
            self._uploaded.record()
        return self._target[:rows]
