"""Norms, gate and rotary positions equal transformers' own, in 16 bit too."""

from __future__ import annotations

import pytest
import torch
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLTextConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextRMSNorm,
    Qwen3VLTextRotaryEmbedding,
    apply_rotary_pos_emb,
)

from inference_service.kernels.rms_norm import add_rms_norm, rms_norm
from inference_service.kernels.rope import apply_rope, inverse_frequencies, mrope_cos_sin
from inference_service.kernels.silu_and_mul import silu_and_mul
from inference_service.model_spec import RopeSpec


DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", DTYPES)
def test_rms_norm_is_bit_equal(dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 48, generator=generator).to(dtype) * 3
    norm = Qwen3VLTextRMSNorm(48, eps=1e-5).to(dtype)
    norm.weight.data = torch.randn(48, generator=generator).to(dtype)
    with torch.inference_mode():
        assert torch.equal(rms_norm(x, norm.weight, 1e-5), norm(x))
        update = torch.randn(5, 48, generator=generator).to(dtype)
        normed, residual = add_rms_norm(update, x, norm.weight, 1e-5)
        assert torch.equal(residual, x + update)
        assert torch.equal(normed, norm(x + update))


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_and_mul(dtype):
    x = torch.randn(3, 10, generator=torch.Generator().manual_seed(1)).to(dtype)
    assert torch.equal(silu_and_mul(x), torch.nn.functional.silu(x[:, :5]) * x[:, 5:])


@pytest.mark.parametrize(
    ("theirs", "config", "interleaved"),
    [
        (Qwen3VLTextRotaryEmbedding, Qwen3VLTextConfig, True),
        (Qwen2VLRotaryEmbedding, Qwen2VLTextConfig, False),
    ],
)
@pytest.mark.parametrize("sections", [(4, 2, 2), (2, 3, 3), (3, 3, 2)])
def test_mrope_equals_transformers(theirs, config, interleaved, sections):
    settings = config(
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 100.0,
            "mrope_section": list(sections),
        },
    )
    generator = torch.Generator().manual_seed(2)
    positions = torch.randint(0, 5000, (3, 9), generator=generator)
    q, k = torch.randn(9, 4, 16, generator=generator), torch.randn(9, 2, 16, generator=generator)
    cos, sin = theirs(settings)(q, positions[:, None])
    expected = apply_rotary_pos_emb(q[None], k[None], cos, sin, unsqueeze_dim=2)

    rope = RopeSpec(theta=100.0, sections=sections, interleaved=interleaved)
    frequencies = inverse_frequencies(16, rope.theta, CPU)
    angles = mrope_cos_sin(positions, frequencies, torch.tensor(rope.frequency_axes()))
    for ours, reference in zip((q, k), expected, strict=True):
        torch.testing.assert_close(apply_rope(ours, *angles), reference[0], atol=1e-6, rtol=0)


def test_equal_axes_are_plain_rope():
    """In decoding all axes are equal: then sections do not matter."""
    positions = torch.arange(6).expand(3, 6)
    frequencies = inverse_frequencies(16, 100.0, CPU)
    x = torch.randn(6, 1, 16, generator=torch.Generator().manual_seed(3))
    results = [
        apply_rope(x, *mrope_cos_sin(positions, frequencies, torch.tensor(rope.frequency_axes())))
        for rope in (
            RopeSpec(theta=100.0, sections=(4, 2, 2), interleaved=True),
            RopeSpec(theta=100.0, sections=(8, 0, 0), interleaved=False),
        )
    ]
    assert torch.equal(*results)
