"""Choice of device and dtype, and the size of the cache on a GPU, without one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
import torch

from inference_service.engine import memory
from inference_service.engine.loader import load_model
from inference_service.engine_protocol.messages import EngineConfig
from inference_service.families.footprint import largest_state_bytes
from inference_service.model_spec import DTYPE_BYTES
from inference_service.settings import ServiceSettings


@pytest.mark.parametrize(("available", "device"), [(True, "cuda:0"), (False, "cpu")])
def test_devices_are_resolved_by_name(
    monkeypatch: pytest.MonkeyPatch, available: bool, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert memory.resolve_devices("auto") == (torch.device(device),)
    assert memory.resolve_devices("cpu") == (torch.device("cpu"),)
    assert memory.resolve_devices("cuda") == (torch.device("cuda:0"),)
    assert memory.resolve_devices("cuda:3") == (torch.device("cuda:3"),)
    several = (torch.device("cuda:2"), torch.device("cuda:0"))
    assert memory.resolve_devices("cuda:2,cuda:0") == several
    with pytest.raises(ValueError, match="twice"):
        memory.resolve_devices("cuda,cuda:0")


@pytest.mark.parametrize(
    ("name", "count", "missing"),
    [("cuda", 0, "cuda:0"), ("cuda:2", 2, "cuda:2"), ("cuda:0,cuda:1", 1, "cuda:1")],
)
def test_a_gpu_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, name: str, count: int, missing: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(ValueError, match=f"{missing} does not exist: torch finds {count} GPUs"):
        memory.resolve_devices(name)


def test_the_dtype_follows_flag_checkpoint_and_device(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda:0")
    monkeypatch.setattr(memory, "can_pack", lambda _: True)
    for fast, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(memory, "has_fast_bfloat16", lambda fast=fast: fast)
        assert memory.resolve_dtype("auto", "bfloat16", cpu) is dtype
        assert memory.resolve_dtype("auto", "float16", cpu) is torch.float32
        assert memory.resolve_dtype("auto", "float32", cpu) is torch.float32
    monkeypatch.setattr(memory, "can_pack", lambda _: False)
    monkeypatch.setattr(memory, "has_fast_bfloat16", lambda: True)
    assert memory.resolve_dtype("auto", "bfloat16", cpu) is torch.float32
    assert memory.resolve_dtype("auto", "bfloat16", gpu) is torch.bfloat16
    assert memory.resolve_dtype("float16", "bfloat16", gpu) is torch.float16
    with pytest.raises(ValueError, match="dtype"):
        memory.resolve_dtype("float8", "bfloat16", gpu)


def test_one_list_of_dtypes() -> None:
    assert {name: dtype.itemsize for name, dtype in memory.TORCH_DTYPES.items()} == DTYPE_BYTES
    offered = get_args(ServiceSettings.model_fields["dtype"].annotation)
    assert sorted(offered) == sorted(["auto", *DTYPE_BYTES])


def test_gpu_cache_gets_what_weights_steps_and_images_leave(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The largest step really runs; the device's counters are stand-ins."""
    held, peak, total, free = 100, 150_000, 10_000_000, 7_000_000
    counters = iter([held])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: next(counters))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: peak)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, total))
    model = load_model(checkpoint, dtype=torch.float32, device=torch.device("cpu"))
    config = EngineConfig(
        model_dir=str(checkpoint),
        max_num_batched_tokens=37,
        encoder_cache_tokens=50,
        gpu_memory_utilization=0.5,
    )
    embeddings = 50 * 64 * 3 * 4
    used = total - free
    room = total // 2 - used - (peak - held) - embeddings
    slots = memory._decode_bytes(config, model, room)
    assert slots > largest_state_bytes(1, 1, 64, model.spec.decoder.vocab_size)
    wanted = room - slots
    device = model.device
    assert memory._free_bytes_on_gpus(config, model, [device]) == {device: wanted}


def test_the_largest_step_is_full_of_images(
    qwen_vl_b: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of 256 tokens each: a step may encode as many as have its tokens together, and one at least."""
    model = load_model(qwen_vl_b, dtype=torch.float32, device=torch.device("cpu"))
    encoded: list[tuple[int, int]] = []
    pieces = 0

    def encoding(pixels: list[torch.Tensor], _grids: object) -> Iterator[None]:
        nonlocal pieces
        for pieces in (1, 2, 3):
            encoded.append((len(pixels), pieces))
            yield

    monkeypatch.setattr(model, "encoding", encoding)
    monkeypatch.setattr(memory, "_allocated_bytes", lambda _: {1: 10, 2: 30, 3: 20}[pieces])
    for tokens, images in ((100, 1), (256, 1), (600, 2)):
        config = EngineConfig(model_dir="", max_num_batched_tokens=tokens)
        encoded.clear()
        memory._run_largest_step(config, model)
        # Once as a whole, and once until most is held, which stays beside the decoder.
        assert encoded == [(images, piece) for piece in (1, 2, 3, 1, 2)]
