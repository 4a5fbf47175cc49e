"""Brings the integers and floats of a step to the device in one copy."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


Array = npt.NDArray[Any]

_WORD = 8
_FIRST_WORDS = 4096
_VIEWED: dict[np.dtype[Any], torch.dtype | None] = {
    np.dtype(np.int64): None,  # the buffer's own
    np.dtype(np.int32): torch.int32,
    np.dtype(np.float32): torch.float32,
}


class Fence:
    """A point in the work queued on a device, for which the host can wait; on a CPU nothing is queued."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # torch does not annotate its constructor.
        self._event = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def record(self) -> None:
        """Moves the fence to the end of the work that is queued now."""
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(self._device))

    def wait(self) -> None:
        """Blocks until the work before the fence is complete; returns at once if it was never recorded."""
        if self._event is not None:
            self._event.synchronize()


class Staging:
    """Two buffers on the host (pinned for CUDA), used in turn, and one on the device; on a CPU they are the same.

    Arrays lie one after the other. So steps whose first arrays have equal sizes find those at the same addresses of a
    GPU, whatever follows them. The tensors of a step are valid on the device until the next step's copy, which is
    queued behind all work that reads them; on a CPU, until the step after the next one begins.
    """

    def __init__(self, device: torch.device) -> None:
        """Allocates 64 KiB; a step that needs more doubles it."""
        self._hosts = cycle([_Host(device) for _ in range(2)])
        self._device = device
        self._target: Tensor | None = None
        self._empty = {
            kind: torch.empty(0, dtype=dtype or torch.int64, device=device)
            for kind, dtype in _VIEWED.items()
        }

    def send(self, arrays: Seq[Array]) -> list[Tensor]:
        """Copies arrays to the device, asynchronously.

        Waits for the copy of the last step but one, whose buffer this one takes over.

        Args:
            arrays: Arrays of int64, int32 or float32, of any shape.

        Returns:
            A tensor for each, flat.
        """
        host = next(self._hosts)
        host.fence.wait()
        words = [-(-array.nbytes // _WORD) for array in arrays if array.size]
        used = sum(words)
        host.reserve(used)
        begin, taken = 0, iter(words)
        for array in arrays:
            if array.size:
                end = begin + next(taken)
                host.words[begin:end].view(array.dtype)[: array.size] = array.reshape(-1)
                begin = end
        parts = iter(self._upload(host, used).split_with_sizes(words))
        # Most arrays of most steps are empty, and making views takes microseconds.
        return [
            _viewed(next(parts), array) if array.size else self._empty[array.dtype]
            for array in arrays
        ]

    def _upload(self, host: _Host, used: int) -> Tensor:
        """The first words of the buffer on the device."""
        if self._device.type == "cpu":
            return host.tensor[:used]
        if self._target is None or len(self._target) < used:
            self._target = torch.zeros_like(host.tensor, device=self._device)
        target = self._target[:used]
        target.copy_(host.tensor[:used], non_blocking=True)
        host.fence.record()
        return target


def _viewed(words: Tensor, array: Array) -> Tensor:
    """The words as what was written."""
    dtype = _VIEWED[array.dtype]
    return words if dtype is None else words.view(dtype)[: array.size]


class _Host:
    """A buffer on the host.

    Attributes:
        tensor: [N] int64.
        words: The same memory as a numpy array.
        fence: The end of its last copy to the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._pinned = device.type == "cuda"
        self.fence = Fence(device)
        self._allocate(_FIRST_WORDS)

    def reserve(self, count: int) -> None:
        """Makes room for `count` words, without what is in it; nothing may be reading it."""
        if count > len(self.words):
            self._allocate(1 << (count - 1).bit_length())

    def _allocate(self, count: int) -> None:
        self.tensor = torch.zeros(count, dtype=torch.int64, pin_memory=self._pinned)
        self.words: npt.NDArray[np.int64] = self.tensor.numpy()
