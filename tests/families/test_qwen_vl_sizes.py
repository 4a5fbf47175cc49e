"""Qwen-VL v1 of other heads, widths, queries and borders than the golden ones.

The engine gives what a second, plain implementation gives, which is itself held against the golden data; and what it
gives alone, it gives in batches and chunks.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from inference_service.engine.core import EngineCore
from inference_service.engine_protocol.messages import (
    EngineConfig,
    EngineRequest,
    ImageSpan,
    SamplingParams,
)
from inference_service.families.registry import load_spec
from inference_service.families.tables import tensor_shapes
from tests.support.conversations import drain
from tests.support.qwen_vl_reference import Reference
from tests.support.qwen_vl_v1 import GOLDEN, LONG_PROMPTS


IMG, IMG_END, PAD = 470, 471, 472
SIZES: dict[str, dict[str, Any]] = {
    # Attention narrower than the residual stream; the tower's tables are not resized; 9 queries on a 3 x 3 table.
    "narrow heads": {
        "kv_channels": 24,
        "num_attention_heads": 3,
        "seq_length": 10,
        "visual": {"image_size": 64, "patch_size": 4, "n_queries": 9},
    },
    # Attention wider than it, three heads of the resampler, a tower of the decoder's width, tables made smaller.
    "wide heads": {
        "hidden_size": 384,
        "kv_channels": 128,
        "num_attention_heads": 4,
        "seq_length": 7,
        "visual": {
            "image_size": 40,
            "patch_size": 8,
            "width": 384,
            "output_dim": 384,
            "heads": 6,
            "n_queries": 16,
        },
    },
    # Heads of the resampler wider than 128, no borders: plain frequencies, plain queries.
    "plain": {
        "hidden_size": 320,
        "num_hidden_layers": 4,
        "num_attention_heads": 5,
        "kv_channels": 64,
        "rotary_emb_base": 500,
        "layer_norm_epsilon": 1e-3,
        "seq_length": 11,
        "use_dynamic_ntk": False,
        "use_logn_attn": False,
        "visual": {"output_dim": 320, "image_size": 32, "patch_size": 8, "n_queries": 25},
    },
    # One block each, one head, an odd ratio, no border in reach.
    "small": {
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "kv_channels": 6,
        "seq_length": 4096,
        "visual": {"layers": 1, "heads": 1, "mlp_ratio": 2.7, "image_size": 28, "n_queries": 4},
    },
}


def build(directory: Path, changes: dict[str, Any]) -> Path:
    config = json.loads((GOLDEN / "configs" / "B" / "config.json").read_text())
    visual = config["visual"] | {"image_start_id": IMG} | changes.get("visual", {})
    config |= {"vocab_size": 500, "max_position_embeddings": 200} | changes | {"visual": visual}
    (directory / "config.json").write_text(json.dumps(config))
    generator = np.random.default_rng(7)
    tensors = {
        name: generator.normal(scale=0.3, size=shape).astype(np.float32)
        for name, shape in tensor_shapes(load_spec(directory)).items()
    }
    save_file(tensors, directory / "model.safetensors")
    return directory


def requests(directory: Path) -> list[tuple[EngineRequest, bytes]]:
    """Prompts on both sides of several borders, with no image, one and two."""
    policy = load_spec(directory).image_policy
    side, tokens = policy.square_side, policy.num_tokens
    assert side is not None
    assert tokens is not None
    generator = np.random.default_rng(8)
    pixels = generator.integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    made = []
    for number, (length, shown) in enumerate(((3, 0), (12, 0), (8, 1), (30, 2), (41, 0), (5, 2))):
        ids = generator.integers(0, 250, length).tolist()
        spans = []
        for index in range(shown):
            ids += [IMG, *[PAD] * tokens, IMG_END, 9]
            span = ImageSpan(
                key=bytes([index]) * 32,
                start=len(ids) - tokens - 2,
                num_tokens=tokens,
                grid=(1, side // policy.patch_size, side // policy.patch_size),
                height=side,
                width=side,
                pixel_offset=index * side * side * 3,
            )
            spans.append(span)
        request = EngineRequest(
            request_id=str(number),
            prompt_token_ids=tuple(ids),
            images=tuple(spans),
            sampling=SamplingParams(max_tokens=12, temperature=0.0, logprobs=1),
        )
        made.append((request, pixels[:shown].tobytes()))
    return made


def run(directory: Path, *, together: bool, **changes: Any) -> list[list[tuple[int, float]]]:
    """(token, log probability) of every answer."""
    settings: dict[str, Any] = {"page_size": 4, "num_kv_pages": 200, "cpu_threads": 1} | changes
    core = EngineCore(EngineConfig(model_dir=str(directory), **settings))
    asked = requests(directory)
    outputs: dict[str, Any] = {}
    for group in [asked] if together else [[one] for one in asked]:
        for request, pixels in group:
            core.add(request, pixels)
        outputs |= drain(core)
    return [
        [(e.token_id, e.logprob) for output in outputs[str(i)].outputs for e in output.logprobs]
        for i in range(len(asked))
    ]


@pytest.mark.parametrize("name", ["len_1025", "long_then_two_images"])
def test_the_reference_gives_the_golden_logits(qwen_vl_b, name):
    config = json.loads((qwen_vl_b / "config.json").read_text())
    prompt = LONG_PROMPTS[name]
    images = [*np.frombuffer(bytearray(prompt.pixels), np.uint8).reshape(-1, 224, 224, 3)]
    logits = Reference.load(qwen_vl_b, config).logits(prompt.ids, images, len(prompt.ids))
    with np.load(GOLDEN / "B_logits.npz") as expected:
        rows, columns = expected[f"{name}/positions"], expected["vocab_sample"]
        np.testing.assert_allclose(
            logits[rows][:, columns], expected[f"{name}/logits_sub"], atol=2e-4, rtol=0
        )


@pytest.mark.parametrize("name", SIZES)
def test_what_the_reference_gives(name, tmp_path):
    directory = build(tmp_path, SIZES[name])
    reference = Reference.load(directory, json.loads((directory / "config.json").read_text()))
    answers = run(directory, together=True, max_num_batched_tokens=16)
    for (request, pixels), answer in zip(requests(directory), answers, strict=True):
        side = load_spec(directory).image_policy.square_side
        assert side is not None
        images = [*np.frombuffer(bytearray(pixels), np.uint8).reshape(-1, side, side, 3)]
        expected = reference.greedy(request.prompt_token_ids, images, len(answer))
        assert [token for token, _ in answer] == [token for token, _ in expected]
        np.testing.assert_allclose(
            [value for _, value in answer], [value for _, value in expected], atol=1e-3
        )


@pytest.mark.parametrize("name", SIZES)
def test_one_pass_and_chunks(name, tmp_path):
    directory = build(tmp_path, SIZES[name])
    alone = run(directory, together=False, enable_prefix_caching=False)
    assert len({tuple(answer) for answer in alone}) == len(alone)
    for changes in ({"max_num_batched_tokens": 16}, {"max_num_seqs": 3}, {"num_kv_pages": 30}):
        mixed = run(directory, together=True, **changes)
        for one, other in zip(alone, mixed, strict=True):
            assert [token for token, _ in one] == [token for token, _ in other]
            np.testing.assert_allclose(
                [value for _, value in one], [value for _, value in other], atol=1e-4
            )
