"""The engine on a CUDA device against the same engine on the CPU: the references are proven there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from inference_service.engine import memory
from inference_service.engine.core import EngineCore
from inference_service.engine_protocol.messages import EngineConfig
from tests.support.conversations import ask, conversations
from tests.support.tiny_qwen_vl import build_checkpoint


pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("tiny"), seed=4)


def answers(checkpoint: Path, device: str, dtype: str, **changes: Any) -> list[tuple[int, ...]]:
    settings = {"page_size": 16, "num_kv_pages": 600} | changes
    core = EngineCore(
        EngineConfig(model_dir=str(checkpoint), device=device, dtype=dtype, **settings)
    )
    return [tuple(answer) for answer in ask(core, conversations())]


def test_float32_answers_equal_the_cpu(checkpoint: Path) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    assert answers(checkpoint, "cuda", "float32") == answers(checkpoint, "cpu", "float32")


@pytest.mark.parametrize("devices", ["cuda:0,cpu", "cpu,cuda:0", "cpu,cuda:0,cpu"])
def test_layers_on_two_kinds_of_devices(
    checkpoint: Path, devices: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tensor left behind on the device before would be an error."""
    torch.backends.cuda.matmul.allow_tf32 = False
    monkeypatch.setattr(memory, "_room", lambda *_: 2**40)
    assert answers(checkpoint, devices, "float32") == answers(checkpoint, "cpu", "float32")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_answers_do_not_depend_on_chunks(checkpoint: Path, dtype: str) -> None:
    """States the agreement seen; random weights have near ties, so equality is not asked for."""
    whole = answers(checkpoint, "cuda", dtype)
    chunked = answers(checkpoint, "cuda", dtype, max_num_batched_tokens=64)
    agreement = sum(a == b for a, b in zip(whole, chunked, strict=True)) / len(whole)
    assert agreement >= 0.5
