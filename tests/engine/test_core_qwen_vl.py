"""Qwen-VL v1 through the engine itself gives what the original code gave: logits, log probabilities, greedy tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inference_service.engine import blocks as blocks_module
from inference_service.engine import inputs as inputs_module
from inference_service.engine import runner as runner_module
from inference_service.engine.core import EngineCore
from inference_service.engine.inputs import Packed
from inference_service.engine_protocol.messages import EngineConfig, FinishReason, SamplingParams
from tests.support.conversations import drain
from tests.support.qwen_vl_v1 import (
    GOLDEN,
    LONG_PROMPTS,
    SHORT_PROMPTS,
    GoldenPrompt,
    golden,
)


TOLERANCE = 5e-5  # the golden data allow 2e-4


def make_core(checkpoint: Path, **changes: Any) -> EngineCore:
    settings = {"page_size": 16, "num_kv_pages": 400, "cpu_threads": 1}
    return EngineCore(EngineConfig(model_dir=str(checkpoint), **(settings | changes)))


def greedy(max_tokens: int, **changes: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0.0, **changes)


def answers(
    core: EngineCore, prompts: Iterable[GoldenPrompt], tokens: int, **changes: Any
) -> list[list[int]]:
    """Greedy answers of prompts that run together."""
    prompts = list(prompts)
    for index, prompt in enumerate(prompts):
        request = prompt.request(greedy(tokens, **changes), request_id=str(index))
        core.add(request, prompt.pixels)
    outputs = drain(core)
    return [outputs[str(index)].token_ids for index in range(len(prompts))]


def hidden_of(core: EngineCore, prompt: GoldenPrompt, monkeypatch) -> torch.Tensor:
    """What the engine's own forward passes give for the prompt: [T, hidden] after the final norm."""
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
    return torch.cat(seen)


def check_logits(core: EngineCore, prompt: GoldenPrompt, expected, prefix: str, monkeypatch):
    hidden = hidden_of(core, prompt, monkeypatch)
    assert len(hidden) == len(prompt.ids)
    positions = torch.from_numpy(expected[f"{prefix}/positions"]).long()
    with torch.inference_mode():
        logits = core._runner._model.logits(hidden[positions])
    sample = torch.from_numpy(expected["vocab_sample"]).long()
    for name, ours in (
        ("logits_sub", logits[:, sample]),
        ("logsumexp", logits.logsumexp(1)),
        ("logits_mean", logits.mean(1)),
        ("top5_logits", logits.topk(5).values),
        ("final_hidden", hidden[-8:]),
    ):
        np.testing.assert_allclose(ours, expected[f"{prefix}/{name}"], atol=TOLERANCE, rtol=0)


@pytest.fixture(scope="module")
def core_a(qwen_vl_a) -> EngineCore:
    return make_core(qwen_vl_a, enable_prefix_caching=False)


@pytest.fixture(scope="module")
def core_b(qwen_vl_b) -> EngineCore:
    return make_core(
        qwen_vl_b, enable_prefix_caching=False, max_num_batched_tokens=700, max_num_seqs=8
    )


@pytest.mark.parametrize("name", SHORT_PROMPTS)
def test_logits_with_images(core_a, name, monkeypatch):
    with np.load(GOLDEN / "A_logits.npz") as expected:
        check_logits(core_a, SHORT_PROMPTS[name], expected, name, monkeypatch)


@pytest.mark.parametrize("name", [prompt["name"] for prompt in golden("B.json")["prompts"]])
def test_logits_beyond_the_trained_length(core_b, name, monkeypatch):
    """In chunks of 700: each takes its frequencies from the whole prompt."""
    with np.load(GOLDEN / "B_logits.npz") as expected:
        check_logits(core_b, LONG_PROMPTS[name], expected, name, monkeypatch)


@pytest.mark.parametrize(
    ("ntk", "logn"), [(True, True), (True, False), (False, True), (False, False)]
)
def test_ntk_and_logn_follow_the_configuration(qwen_vl_b, tmp_path, ntk, logn, monkeypatch):
    for path in qwen_vl_b.iterdir():
        (tmp_path / path.name).symlink_to(path)
    config = json.loads((qwen_vl_b / "config.json").read_text())
    config |= {"use_dynamic_ntk": ntk, "use_logn_attn": logn}
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    core = make_core(tmp_path)
    with np.load(GOLDEN / "B_flags_logits.npz") as flags, np.load(GOLDEN / "B_logits.npz") as rest:
        expected = dict(flags) | {"vocab_sample": rest["vocab_sample"]}
    prefix = f"ntk{ntk:d}_logn{logn:d}"
    check_logits(core, LONG_PROMPTS["len_1300"], expected, prefix, monkeypatch)


def test_prompt_logprobs_equal_the_original(core_a):
    prompt = SHORT_PROMPTS["chat_one_image"]
    core_a.add(prompt.request(greedy(1, prompt_logprobs=5, logprobs=5)), prompt.pixels)
    answer = drain(core_a)[prompt.name]
    entries = [e for output in answer.outputs for e in (*output.prompt_logprobs, *output.logprobs)]
    with np.load(GOLDEN / "A_logits.npz") as expected:
        positions = expected[f"{prompt.name}/positions"]
        top = expected[f"{prompt.name}/top5_logits"]
        top_ids = expected[f"{prompt.name}/top5_ids"]
        total = expected[f"{prompt.name}/logsumexp"]
    assert len(entries) == len(prompt.ids)
    for row, position in enumerate(positions):
        ids, values = zip(*entries[position].top, strict=True)
        assert list(ids) == top_ids[row].tolist()
        np.testing.assert_allclose(values, top[row] - total[row], atol=TOLERANCE, rtol=0)


def bfloat16_attention_problem() -> str:
    """torch 2.13 on a processor with AMX, told by ATEN_CPU_CAPABILITY to use no AVX-512, fails in its attention."""
    x = torch.zeros(1, 1, 64, 64, dtype=torch.bfloat16)
    try:
        torch.nn.functional.scaled_dot_product_attention(x, x, x)
    except RuntimeError as error:
        return str(error)
    return ""


def test_sixteen_bit_logits_are_near_the_original(core_a, qwen_vl_a):
    """Half the bits, nearly the same: the likeliest next token, and log probabilities to a few hundredths."""
    if "pack_vnni2" in (problem := bfloat16_attention_problem()):
        pytest.skip(f"torch cannot compute this here: {problem}")
    half = make_core(qwen_vl_a, dtype="bfloat16")
    for name in ("raw_en", "chat_one_image"):
        entries = []
        for core in (core_a, half):
            prompt = SHORT_PROMPTS[name]
            core.add(prompt.request(greedy(1, logprobs=3)), prompt.pixels)
            entries.append(drain(core)[name].outputs[-1].logprobs[0])
        exact, rounded = entries
        assert rounded.token_id in [token for token, _ in exact.top]
        assert rounded.logprob == pytest.approx(exact.logprob, abs=0.25)


def new_tokens(file: str) -> dict[str, Any]:
    runs = golden(file)["generation"]
    return {run["name"]: run["new_tokens"] for run in runs}


SHORT_ANSWERS = new_tokens("A.json")
LONG_ANSWERS = new_tokens("B.json")


def test_greedy_answers_equal_the_original(core_a):
    expected = [SHORT_ANSWERS[name] for name in SHORT_PROMPTS]
    assert answers(core_a, SHORT_PROMPTS.values(), 32) == expected


@pytest.mark.full
def test_greedy_answers_alone(core_a):
    for name, prompt in SHORT_PROMPTS.items():
        assert answers(core_a, [prompt], 32) == [SHORT_ANSWERS[name]]


@pytest.mark.parametrize("name", ["batch_text", "batch_images"])
def test_padded_batches_of_the_original(core_a, name):
    rows = next(p["rows"] for p in golden("A.json")["prompts"] if p["name"] == name)
    assert answers(core_a, [SHORT_PROMPTS[row] for row in rows], 16) == SHORT_ANSWERS[name]


def test_stop_tokens(core_a):
    prompt = SHORT_PROMPTS["raw_en"]
    expected = SHORT_ANSWERS["stop_single"]  # the original says <|endoftext|> once more
    [stopped] = answers(core_a, [prompt], 32, stop_token_ids=(55687,))
    assert [*stopped, 151643] == expected
    core_a.add(prompt.request(greedy(32, eos_token_ids=(55687,))), b"")
    assert drain(core_a)["raw_en"].finish_reason is FinishReason.EOS


CROSSING = ["short", "cross_512", "cross_1024", "from_600", "image_then_long"]


def crossing_answers(core: EngineCore, names: list[str] = CROSSING) -> dict[str, list[int]]:
    """Answers of prompts on both sides of two borders, which some of them cross while they answer."""
    found = answers(core, [LONG_PROMPTS[name] for name in names], 40)
    return dict(zip(names, found, strict=True))


def same(found: dict[str, list[int]]) -> bool:
    return all(
        tokens[: len(LONG_ANSWERS[name])] == LONG_ANSWERS[name] for name, tokens in found.items()
    )


def test_mixed_batches_across_a_border(core_b):
    """What the original gave each of them alone."""
    assert same(crossing_answers(core_b))


@pytest.mark.full
def test_alone_across_a_border(core_b):
    """Further than the original was asked to go on."""
    mixed = crossing_answers(core_b)
    assert {name: crossing_answers(core_b, [name])[name] for name in CROSSING} == mixed


@pytest.mark.parametrize("caching", [False, True])
def test_preemption_keeps_the_frequencies(qwen_vl_b, caching):
    """The second is computed again when prompt and answer are beyond 512; the prompt alone decides."""
    core = make_core(
        qwen_vl_b,
        num_kv_pages=98,
        max_model_len=1060,
        max_num_batched_tokens=300,
        enable_prefix_caching=caching,
    )
    assert same(crossing_answers(core, ["cross_1024", "cross_512"]))
    assert core.stats.preemptions > 0


def test_the_prefix_cache_does_not_mix_frequencies(qwen_vl_b):
    """The prompts have their first 500 ids in common, and three bases."""
    core = make_core(qwen_vl_b)
    names = ["cross_512", "cross_1024"]
    for _ in range(2):
        for name in names:
            assert same(crossing_answers(core, [name]))
    assert core.stats.prefix_hits == 496 + 1008  # each its own pages of the first round
    answers(core, [LONG_PROMPTS["len_1024"]], 1)
    assert core.stats.prefix_hits == 496 + 2 * 1008  # shared where the base is the same


# The suite must be able to fail. Each mutation below is a mistake that somebody could make.


def test_notices_shared_pages_of_unequal_frequencies(qwen_vl_b, monkeypatch):
    real = blocks_module.root_hash
    monkeypatch.setattr(blocks_module, "root_hash", lambda salt, _: real(salt))
    core = make_core(qwen_vl_b)
    assert same(crossing_answers(core, ["cross_512"]))
    assert not same(crossing_answers(core, ["cross_1024"]))


def test_notices_frequencies_of_the_chunk(qwen_vl_b, monkeypatch):
    core = make_core(qwen_vl_b)
    rope = core._runner._model.spec.decoder.rope
    real = inputs_module.pack

    def by_length(inputs, *images, **options) -> Packed:
        lengths = [sequence.start + len(sequence.token_ids) for sequence in inputs]
        mistaken = [
            replace(sequence, rope_level=rope.level(length))
            for sequence, length in zip(inputs, lengths, strict=True)
        ]
        return real(mistaken, *images, **options)

    monkeypatch.setattr(runner_module, "pack", by_length)
    assert not same(crossing_answers(core, ["cross_512"]))
