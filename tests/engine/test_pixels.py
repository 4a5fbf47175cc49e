"""Pixels are copied once on the host, pinned for a GPU, and embeddings are copied only where they share memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inference_service.engine.pixels import own, send_pixels


DATA = bytes(range(2 * 3 * 4 * 3))


def test_pixels_on_a_cpu_are_a_copy() -> None:
    buffer = bytearray(DATA)
    found = send_pixels(memoryview(buffer), 3, 4, torch.device("cpu"))
    buffer[0] = 99
    assert found.shape == (2, 3, 4, 3)
    assert found.flatten().tolist() == list(DATA)
    assert send_pixels(memoryview(DATA), 3, 4, torch.device("cpu")).shape == (
        2,
        3,
        4,
        3,
    )  # read-only


def test_pixels_to_a_gpu_are_pinned_and_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    empty, to = torch.empty, torch.Tensor.to

    def pinned(size: int, *, dtype: torch.dtype, pin_memory: bool) -> torch.Tensor:
        asked.append({"pin_memory": pin_memory})
        return empty(size, dtype=dtype)

    def sent(self: torch.Tensor, device: Any, *, non_blocking: bool) -> torch.Tensor:
        asked.append({"device": device, "non_blocking": non_blocking})
        return to(self, "cpu")

    monkeypatch.setattr(torch, "empty", pinned)
    monkeypatch.setattr(torch.Tensor, "to", sent)
    card: Any = SimpleNamespace(type="cuda")
    found = send_pixels(memoryview(DATA), 3, 4, card)
    assert asked == [{"pin_memory": True}, {"device": card, "non_blocking": True}]
    assert found.flatten().tolist() == list(DATA)


@pytest.mark.parametrize("count", [1, 2])
def test_an_embedding_is_copied_only_if_it_shares_memory(count: int) -> None:
    together = torch.randn(6, 4)
    for part in together.chunk(count):
        kept = own(part)
        assert torch.equal(kept, part)
        assert kept.untyped_storage().nbytes() == part.nbytes
        assert (kept.data_ptr() == part.data_ptr()) == (count == 1)
