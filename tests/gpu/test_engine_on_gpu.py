"""The engine on a CUDA device against the same engine on the CPU and against the golden answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from inference_service.constraint import Constraint, ConstraintKind
from inference_service.engine import memory
from inference_service.engine.core import EngineCore
from inference_service.engine_protocol.messages import EngineConfig, EngineRequest, SamplingParams
from inference_service.families.footprint import graph_sizes
from tests.support import glm_4v, qwen_vl_v1
from tests.support.conversations import GREEDY, ask, conversations, drain
from tests.support.tiny_qwen_vl import FAMILIES, build_checkpoint


pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def exact_float32() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("tiny"), family=request.param, seed=4)


def make_core(checkpoint: Path, device: str, dtype: str, **changes: Any) -> EngineCore:
    settings = {"page_size": 16, "num_kv_pages": 600} | changes
    return EngineCore(
        EngineConfig(model_dir=str(checkpoint), device=device, dtype=dtype, **settings)
    )


def answers(checkpoint: Path, device: str, dtype: str, **changes: Any) -> list[tuple[int, ...]]:
    core = make_core(checkpoint, device, dtype, **changes)
    return [tuple(answer) for answer in ask(core, conversations())]


def greedy_answer(core: EngineCore, prompt: Any, count: int) -> list[int]:
    sampling = SamplingParams(max_tokens=count, temperature=0.0)
    core.add(prompt.request(sampling, request_id=prompt.name), prompt.pixels)
    return list(drain(core)[prompt.name].token_ids)


@pytest.mark.parametrize("prefix_caching", [True, False])
def test_float32_answers_equal_the_cpu(checkpoint: Path, prefix_caching: bool) -> None:
    changes = {"enable_prefix_caching": prefix_caching}
    expected = answers(checkpoint, "cpu", "float32", **changes)
    for depth in (0, 1):
        assert answers(checkpoint, "cuda", "float32", pipeline_depth=depth, **changes) == expected


@pytest.mark.parametrize("depth", [0, 1])
def test_graphs_give_the_answers_of_steps_without(
    checkpoint: Path, depth: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Greedy, sampled with penalties, both within the graphs, and with a bias behind them."""
    pytest.importorskip("triton")
    sampled = SamplingParams(max_tokens=14, temperature=1.0, top_k=20, repetition_penalty=1.2)
    every = replace(sampled, top_k=0, top_p=0.9, min_p=0.01, frequency_penalty=0.3, logprobs=1)
    for sampling in (GREEDY, sampled, every, replace(sampled, logit_bias=((5, 2.0),))):
        found = []
        for setting in ("auto", "off"):
            core = make_core(
                checkpoint, "cuda", "float32", cuda_graphs=setting, pipeline_depth=depth
            )
            assert core._runner._model.ops.samples_in_graphs, caplog.text
            wanted = graph_sizes(64) if setting == "auto" else ()
            assert core._runner.graphs.sizes == wanted, caplog.text
            found.append(ask(core, conversations(), sampling))
        assert found[0] == found[1]


def test_qwen_vl_v1_answers_as_the_original(qwen_vl_a: Path) -> None:
    core = make_core(qwen_vl_a, "cuda", "float32")
    expected = {run["name"]: run["new_tokens"] for run in qwen_vl_v1.golden("A.json")["generation"]}
    for name, prompt in qwen_vl_v1.SHORT_PROMPTS.items():
        assert greedy_answer(core, prompt, 32) == expected[name], name


def test_glm_4v_answers_as_the_original(tmp_path: Path) -> None:
    core = make_core(glm_4v.build_checkpoint(tmp_path), "cuda", "float32")
    expected = {run["name"]: run["new_tokens"] for run in glm_4v.DATA["generation"]}
    for name, prompt in glm_4v.PROMPTS.items():
        assert greedy_answer(core, prompt, 16) == expected[name], name


@pytest.mark.parametrize("devices", ["cuda:0,cpu", "cpu,cuda:0", "cpu,cuda:0,cpu"])
def test_layers_on_two_kinds_of_devices(
    checkpoint: Path, devices: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tensor left behind on the device before would be an error."""
    monkeypatch.setattr(memory, "_room", lambda *_: 2**40)
    assert answers(checkpoint, devices, "float32") == answers(checkpoint, "cpu", "float32")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bit_answers_do_not_depend_on_chunks(checkpoint: Path, dtype: str) -> None:
    """States the agreement seen; random weights have near ties, so equality is not asked for."""
    whole = answers(checkpoint, "cuda", dtype)
    chunked = answers(checkpoint, "cuda", dtype, max_num_batched_tokens=64)
    agreement = sum(a == b for a, b in zip(whole, chunked, strict=True)) / len(whole)
    assert agreement >= 0.5


def test_it_measures_the_vision_tower_and_the_memory_of_the_device(checkpoint: Path) -> None:
    core = make_core(checkpoint, "cuda", "float32")
    ask(core, conversations())
    torch.cuda.synchronize()
    stats = core.stats
    assert sum(stats.encode_durations.counts) > 0
    assert 0 < stats.encode_durations.total < stats.step_durations.total
    assert stats.device_memory is not None
    assert 0 < stats.device_memory.allocated <= stats.device_memory.reserved
    assert stats.device_memory.reserved < stats.device_memory.total


def test_constrained_answers_equal_the_cpu() -> None:
    """Masks are copied while the forward pass runs; rows without one are not touched."""
    digits = Constraint(kind=ConstraintKind.REGEX, text="[0-9]{3}(-[a-f]{2}){4}")
    sampling = SamplingParams(max_tokens=24, temperature=0.0, eos_token_ids=(1232, 1230))
    found = []
    for device in ("cpu", "cuda"):
        core = make_core(Path("inference_service/demo/model"), device, "float32")
        for index in range(12):
            request = EngineRequest(
                request_id=str(index),
                prompt_token_ids=(1231, 100 + index, 1232),
                sampling=sampling,
                constraint=digits if index % 3 else None,
            )
            core.add(request, b"")
        found.append({name: answer.token_ids for name, answer in drain(core).items()})
    assert found[0] == found[1]
