"""GLM-4V of other heads, groups, widths and images than the golden one, through the engine.

The engine gives what a second, plain implementation gives, which is itself held against the golden data.
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
from tests.support.glm_4v import DATA, GOLDEN, PROMPTS, build_checkpoint
from tests.support.glm_4v_reference import Reference


BEGIN, END, PLACEHOLDER = 470, 471, 460
SIZES: dict[str, dict[str, Any]] = {
    "a group for each head": {
        "num_attention_heads": 3,
        "multi_query_group_num": 3,
        "kv_channels": 8,
        "rope_ratio": 500,
        "vision_config": {"image_size": 32, "patch_size": 4, "num_positions": 65, "num_heads": 2},
    },
    "one group": {
        "hidden_size": 96,
        "ffn_hidden_size": 50,
        "num_attention_heads": 4,
        "multi_query_group_num": 1,
        "kv_channels": 20,
        "num_layers": 4,
        "layernorm_epsilon": 1e-2,
        "vision_config": {
            "image_size": 84,
            "num_positions": 37,
            "hidden_size": 48,
            "intermediate_size": 30,
            "num_hidden_layers": 3,
            "num_heads": 6,
            "layer_norm_eps": 1e-2,
            "scaling_factor": 3,
        },
    },
}


def build(directory: Path, changes: dict[str, Any]) -> Path:
    config = json.loads((GOLDEN / "config" / "config.json").read_text())
    vision = config["vision_config"] | changes.get("vision_config", {})
    config |= {"padded_vocab_size": 500, "boi_token_id": BEGIN, "eoi_token_id": END}
    config |= {"eos_token_id": [499]} | changes | {"vision_config": vision}
    (directory / "config.json").write_text(json.dumps(config))
    generator = np.random.default_rng(5)
    tensors = {
        name: generator.normal(scale=0.3, size=shape).astype(np.float32)
        for name, shape in tensor_shapes(load_spec(directory)).items()
    }
    save_file(tensors, directory / "model.safetensors")
    return directory


def requests(directory: Path) -> list[tuple[EngineRequest, np.ndarray | None]]:
    """Prompts with and without an image."""
    policy = load_spec(directory).image_policy
    side, tokens = policy.square_side, policy.num_tokens
    assert side is not None
    assert tokens is not None
    generator = np.random.default_rng(8)
    made = []
    for number, (before, after, shown) in enumerate(((3, 0, 0), (8, 5, 1), (40, 0, 0), (1, 30, 1))):
        ids = generator.integers(0, 400, before).tolist()
        spans, image = [], None
        if shown:
            image = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
            patches = side // policy.patch_size
            span = ImageSpan(
                key=bytes([number]) * 32,
                start=len(ids),
                num_tokens=tokens,
                grid=(1, patches, patches),
                height=side,
                width=side,
                pixel_offset=0,
            )
            spans.append(span)
            ids += [BEGIN, *[PLACEHOLDER] * (tokens - 2), END]
        ids += generator.integers(0, 400, after).tolist()
        request = EngineRequest(
            request_id=str(number),
            prompt_token_ids=tuple(ids),
            images=tuple(spans),
            sampling=SamplingParams(max_tokens=12, temperature=0.0, logprobs=1),
        )
        made.append((request, image))
    return made


@pytest.mark.parametrize("name", SIZES)
def test_what_the_reference_gives(name, tmp_path):
    directory = build(tmp_path, SIZES[name])
    settings: dict[str, Any] = {"page_size": 4, "num_kv_pages": 200, "cpu_threads": 1}
    config = EngineConfig(model_dir=str(directory), max_num_batched_tokens=16, **settings)
    core = EngineCore(config)
    asked = requests(directory)
    for request, image in asked:
        core.add(request, b"" if image is None else image.tobytes())
    outputs = drain(core)
    reference = Reference.load(directory, json.loads((directory / "config.json").read_text()))
    for request, image in asked:
        answer = [e for out in outputs[request.request_id].outputs for e in out.logprobs]
        expected = reference.greedy(request.prompt_token_ids, image, len(answer))
        assert [entry.token_id for entry in answer] == [token for token, _ in expected]
        np.testing.assert_allclose(
            [entry.logprob for entry in answer], [value for _, value in expected], atol=1e-3
        )


def test_the_reference_gives_the_golden_logits(tmp_path):
    directory = build_checkpoint(tmp_path)
    reference = Reference.load(directory, json.loads((directory / "config.json").read_text()))
    with np.load(GOLDEN / "logits.npz") as stored:
        expected = dict(stored)
    assert {entry["name"] for entry in DATA["logits"]} == set(PROMPTS)
    for name, prompt in PROMPTS.items():
        side = load_spec(directory).image_policy.square_side
        assert side is not None
        image = np.frombuffer(bytearray(prompt.pixels), np.uint8).reshape(-1, side, side, 3)
        logits = reference.logits(prompt.ids, image[0] if len(image) else None)
        rows, columns = expected[f"{name}/positions"], expected["vocab_sample"]
        np.testing.assert_allclose(
            logits[rows][:, columns], expected[f"{name}/logits_sub"], atol=2e-4, rtol=0
        )
