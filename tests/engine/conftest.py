"""One tiny checkpoint for all engine tests, and what transformers answers on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from inference_service.engine.core import EngineCore
from inference_service.engine.graphs import Surroundings
from inference_service.engine_protocol.messages import EngineConfig
from tests.support import graph_tape
from tests.support.conversations import Conversation, conversations, generate
from tests.support.tiny_qwen_vl import build_checkpoint, reference_model


MakeCore = Callable[..., EngineCore]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    # With this seed no greedy choice of the prompts is a near tie; see `generate`.
    return build_checkpoint(tmp_path_factory.mktemp("tiny"), seed=4)


@pytest.fixture(scope="session")
def reference(checkpoint: Path):
    return reference_model(checkpoint)


@pytest.fixture
def make_core(checkpoint: Path) -> MakeCore:
    def make(**changes: Any) -> EngineCore:
        settings = {"page_size": 4, "num_kv_pages": 600, "cpu_threads": 1}
        return EngineCore(EngineConfig(model_dir=str(checkpoint), **(settings | changes)))

    return make


@pytest.fixture(scope="session")
def prompts() -> list[Conversation]:
    return conversations()


@pytest.fixture(scope="session")
def expected(reference, prompts: list[Conversation]) -> list[list[int]]:
    """Greedy answers of `transformers.generate`, one prompt at a time."""
    return [generate(reference, prompt) for prompt in prompts]


# Engines with graphs, on a CPU


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> graph_tape.TapeCapture:
    return graph_tape.install(monkeypatch)


@pytest.fixture
def make(make_core: MakeCore) -> MakeCore:
    def small(**changes: Any) -> EngineCore:
        return make_core(**({"max_num_seqs": 5, "max_model_len": 120} | changes))

    return small


@pytest.fixture
def around(make: MakeCore, capture: graph_tape.TapeCapture) -> Surroundings:
    core = make(max_num_seqs=8, num_kv_pages=30)
    return core._runner.surroundings(8)
