"""The decoder's settings carry other families: with those of Qwen2-VL it equals transformers' Qwen2-VL text model."""

from __future__ import annotations

import torch
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLTextConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLTextModel

from inference_service.kernels.attention import new_kv_cache
from inference_service.model_spec import DecoderSpec, RopeSpec
from inference_service.models.batch import ForwardBatch
from inference_service.models.decoder import Decoder
from tests.support.attention_metadata import attention_metadata
from tests.support.tiny_qwen_vl import randomise


SPEC = DecoderSpec(
    vocab_size=200,
    hidden_size=48,
    intermediate_size=80,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=8,
    rms_norm_eps=1e-5,
    qkv_bias=True,
    output_bias=False,
    qk_norm=False,
    rope=RopeSpec(theta=100.0, sections=(2, 1, 1), interleaved=False),
    tie_word_embeddings=True,
)


def reference() -> Qwen2VLTextModel:
    config = Qwen2VLTextConfig(
        vocab_size=SPEC.vocab_size,
        hidden_size=SPEC.hidden_size,
        intermediate_size=SPEC.intermediate_size,
        num_hidden_layers=SPEC.num_layers,
        num_attention_heads=SPEC.num_heads,
        num_key_value_heads=SPEC.num_kv_heads,
        rms_norm_eps=SPEC.rms_norm_eps,
        bos_token_id=None,
        eos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 1, 1]},
    )
    model = Qwen2VLTextModel(config).eval()
    randomise(model, 3)
    return model


def filled(model: Qwen2VLTextModel) -> Decoder:
    decoder = Decoder(SPEC)
    theirs = model.state_dict()
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parts = [name]
            if "qkv_proj" in name:
                parts = [name.replace("qkv_proj", f"{part}_proj") for part in "qkv"]
            if "gate_up_proj" in name:
                parts = [name.replace("gate_up", part) for part in ("gate", "up")]
            parameter.copy_(torch.cat([theirs.pop(part) for part in parts]))
    assert not theirs
    return decoder


def test_qwen2_vl_text_model():
    model = reference()
    decoder = filled(model)
    generator = torch.Generator().manual_seed(4)
    tokens = 23
    ids = torch.randint(0, SPEC.vocab_size, (tokens,), generator=generator)
    positions = torch.randint(0, 30, (3, tokens), generator=generator)
    cache = new_kv_cache(
        2, 8, 4, SPEC.num_kv_heads, SPEC.head_dim, dtype=torch.float32, device=ids.device
    )
    meta = attention_metadata(torch.arange(tokens), torch.arange(6)[None], [0, tokens], [tokens])
    with torch.inference_mode():
        expected = model(input_ids=ids[None], position_ids=positions[:, None]).last_hidden_state[0]
        got = decoder(ForwardBatch(ids, positions, meta), cache)
        logits = decoder.logits(got)
        expected_logits = expected @ model.embed_tokens.weight.T
    assert expected.std() > 0.5
    torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(logits, expected_logits, atol=1e-4, rtol=0)
