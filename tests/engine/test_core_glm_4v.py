"""GLM-4V-9B through the engine itself gives what the original code gave: tower, logits, greedy tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inference_service.engine import loader
from inference_service.engine.core import EngineCore
from inference_service.engine_protocol.messages import EngineConfig, SamplingParams
from inference_service.families.glm_4v import vision as glm_4v
from inference_service.families.qwen_vl.positions import sequential_positions
from inference_service.families.registry import FAMILIES
from inference_service.kernels import heads
from inference_service.kernels.ops import REFERENCE
from tests.support.conversations import drain
from tests.support.glm_4v import DATA, GOLDEN, PROMPTS, GoldenPrompt, build_checkpoint, processed


TOLERANCE = 2e-4
ANSWERS = {run["name"]: run["new_tokens"] for run in DATA["generation"]}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_checkpoint(tmp_path_factory.mktemp("glm_4v"))


def make_core(checkpoint: Path, **changes: Any) -> EngineCore:
    settings = {"page_size": 16, "num_kv_pages": 200, "cpu_threads": 1}
    return EngineCore(EngineConfig(model_dir=str(checkpoint), **(settings | changes)))


@pytest.fixture(scope="module")
def core(checkpoint: Path) -> EngineCore:
    """Chunks of 24 tokens: an image's 38 are cut."""
    return make_core(checkpoint, enable_prefix_caching=False, max_num_batched_tokens=24)


@pytest.fixture(scope="module")
def expected():
    with np.load(GOLDEN / "logits.npz") as arrays:
        return dict(arrays)


def greedy(max_tokens: int, **changes: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, **changes)


def answers(core: EngineCore, prompts: Iterable[GoldenPrompt], tokens: int) -> list[list[int]]:
    """Greedy answers of prompts that run together."""
    prompts = list(prompts)
    for prompt in prompts:
        core.add(prompt.request(greedy(tokens)), prompt.pixels)
    outputs = drain(core)
    return [outputs[prompt.name].token_ids for prompt in prompts]


def logits_of(core: EngineCore, prompt: GoldenPrompt, rows, monkeypatch) -> torch.Tensor:
    """Logits of the engine's own forward passes behind these tokens of the prompt."""
    seen: list[torch.Tensor] = []
    model = core._runner._model
    real = model.forward

    def forward(*inputs: Any) -> Any:
        seen.append(real(*inputs).clone())
        return seen[-1]

    monkeypatch.setattr(model, "forward", forward)
    core.add(prompt.request(greedy(1)), prompt.pixels)
    drain(core)
    monkeypatch.undo()
    hidden = torch.cat(seen)
    assert len(hidden) == len(prompt.ids)
    with torch.inference_mode():
        logits: torch.Tensor = model.logits(hidden[torch.from_numpy(rows).long()])
    return logits


def check_logits(core: EngineCore, name: str, expected, monkeypatch) -> None:
    logits = logits_of(core, PROMPTS[name], expected[f"{name}/positions"], monkeypatch)
    sample = torch.from_numpy(expected["vocab_sample"]).long()
    for part, ours in (
        ("logits_sub", logits[:, sample]),
        ("logsumexp", logits.logsumexp(1)),
        ("top5_logits", logits.topk(5).values),
    ):
        np.testing.assert_allclose(ours, expected[f"{name}/{part}"], atol=TOLERANCE, rtol=0)
    assert logits.topk(5).indices.tolist() == expected[f"{name}/top5_ids"].tolist()


@pytest.mark.parametrize("name", PROMPTS)
def test_logits_equal_the_original(core, name, expected, monkeypatch):
    lengths = {entry["name"]: entry["embedded_length"] for entry in DATA["logits"]}
    assert len(PROMPTS[name].ids) == lengths[name]
    check_logits(core, name, expected, monkeypatch)


def test_image_embeddings_equal_the_original(core, expected):
    shown = processed("wide_rgb")
    pixels = torch.frombuffer(bytearray(shown.pixels), dtype=torch.uint8)
    with torch.inference_mode():
        [tokens] = core._runner._model.encode_images(
            [pixels.view(1, shown.height, shown.width, 3)], [shown.grid]
        )
    np.testing.assert_allclose(tokens, expected["vision/output"], atol=TOLERANCE, rtol=0)


def test_greedy_answers_equal_the_original(core):
    """Text and images in one batch, prompts in chunks."""
    assert answers(core, PROMPTS.values(), 16) == [ANSWERS[name] for name in PROMPTS]


def test_greedy_answers_from_cached_pages(checkpoint):
    core = make_core(checkpoint, page_size=8)
    names = ["image_turns", "image", "image_no_text"]
    for _ in range(2):
        for name in names:
            assert answers(core, [PROMPTS[name]], 16) == [ANSWERS[name]]
    assert core.stats.prefix_hits > 2 * 40
    assert core.stats.encoder_hits > 0


def test_prompt_logprobs_equal_the_original(core, expected):
    prompt = PROMPTS["image_second_turn"]
    core.add(prompt.request(greedy(1, prompt_logprobs=5, logprobs=5)), prompt.pixels)
    outputs = drain(core)[prompt.name].outputs
    entries = [entry for o in outputs for entry in (*o.prompt_logprobs, *o.logprobs)]
    assert len(entries) == len(prompt.ids)
    for row, position in enumerate(expected[f"{prompt.name}/positions"]):
        ids, values = zip(*entries[position].top, strict=True)
        assert list(ids) == expected[f"{prompt.name}/top5_ids"][row].tolist()
        wanted = expected[f"{prompt.name}/top5_logits"][row]
        wanted = wanted - expected[f"{prompt.name}/logsumexp"][row]
        np.testing.assert_allclose(values, wanted, atol=TOLERANCE, rtol=0)


# The suite must be able to fail. Each mutation below is a mistake that somebody could make.


def halves(x, norms, rotation, *others):
    return heads.rotate_and_write(x, norms, replace(rotation, adjacent_pairs=False), *others)


MUTATIONS = {
    "halves instead of pairs": (
        loader,
        "choose_ops",
        lambda *_, **__: replace(REFERENCE, rotate_and_write=halves),
    ),
    "patches count like text": (
        FAMILIES,
        "glm_4v",
        replace(FAMILIES["glm_4v"], positions=sequential_positions),
    ),
    "another norm in the adapter": (glm_4v, "ADAPTER_NORM_EPS", 0.1),
    "sigmoid for the gate": (glm_4v, "silu", torch.sigmoid),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_the_comparison_notices_mutations(checkpoint, mutation, expected, monkeypatch):
    target, name, value = MUTATIONS[mutation]
    with monkeypatch.context() as patch:
        setter = patch.setitem if isinstance(target, dict) else patch.setattr
        setter(target, name, value)
        core = make_core(checkpoint)
        with pytest.raises(AssertionError):
            check_logits(core, "image_turns", expected, monkeypatch)
