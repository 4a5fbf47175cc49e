"""The memory of an engine does not grow with the number of different images that it has seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
import gc
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from inference_service.engine.core import EngineCore
from inference_service.process_memory import return_free_memory
from tests.support.conversations import GREEDY, conversation, drain
from tests.support.tiny_qwen_vl import image


BEFORE = 90
"""Images after which all sizes have been computed, and the cache is full."""
MIB = 2**20


def see(core: EngineCore, first: int, count: int, at_once: int = 3) -> None:
    """Answers requests with different images, some of them in one pass of the vision tower."""
    for begin in range(first, first + count, at_once):
        for seed in range(begin, begin + at_once):
            prompt = conversation([image(1 + seed % 3, 1 + seed % 5, seed)])
            core.add(prompt.request(str(seed), replace(GREEDY, max_tokens=1)), prompt.pixels)
        drain(core)


def tensor_bytes() -> int:
    """Of all tensors that Python holds, each memory once."""
    gc.collect()
    held = [one for one in gc.get_objects() if type(one) is torch.Tensor]
    stored = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in held}
    return sum(stored.values())


def resident_bytes() -> int:
    return_free_memory()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("count", [150, pytest.param(5_000, marks=pytest.mark.full)])
def test_thousands_of_different_images(make_core: Callable[..., EngineCore], count: int) -> None:
    core = make_core(encoder_cache_tokens=60, enable_prefix_caching=False)
    see(core, 0, BEFORE)
    tensors, resident = tensor_bytes(), resident_bytes()
    see(core, BEFORE, count)
    assert tensor_bytes() - tensors < MIB // 4, "the cache has more or larger images, at most"
    assert resident_bytes() - resident < 4 * MIB


def test_notices_images_that_are_kept(
    make_core: Callable[..., EngineCore], monkeypatch: pytest.MonkeyPatch
) -> None:
    core = make_core(encoder_cache_tokens=60, enable_prefix_caching=False)
    kept = []
    cache = core._runner._encoder_cache
    real = cache.fill

    def fill(*given: Any) -> None:
        kept.append(given)
        real(*given)

    monkeypatch.setattr(cache, "fill", fill)
    see(core, 0, 60)
    before = tensor_bytes()
    see(core, 60, 90)
    assert tensor_bytes() - before > MIB // 4
