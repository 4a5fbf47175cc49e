"""GLM-4V-9B: reads its configuration and lists the tensors of its checkpoints.

Source: configuration_chatglm.py, modeling_chatglm.py and visual.py of the release (arXiv 2406.12793). config.json
shares its model_type with ChatGLM, the language models; only `vision_config` distinguishes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from inference_service.families.clip import clip_image_policy
from inference_service.families.config_file import (
    Section,
    SpecError,
    check_key_heads,
    read_dtype,
    read_eos,
)
from inference_service.families.family import TensorEntry
from inference_service.model_spec import DecoderSpec, ModelSpec, RopeSpec


NAME = "glm_4v"
ROPE_THETA = 10_000.0
POOL_SIDE = 2  # patches per side that the convolution after the blocks merges into one token
TOKENS_BEFORE_IMAGE = 10  # ids from <|endoftext|>, the placeholder of an image, to boi_token_id


@dataclass(frozen=True, slots=True, kw_only=True)
class GlmVisionSpec:
    """Settings of the EVA2-CLIP tower and of the adapter after it.

    Attributes:
        hidden_size: Width of the tower's residual stream.
        intermediate_size: Width of its MLP.
        num_layers: Blocks.
        num_heads: Attention heads.
        norm_eps: Epsilon of the tower's layer norms.
        patch_size: Side of a patch in pixels.
        patches_per_side: Patches along a side of the square image.
        scaling_factor: Divisor of the tower's output.
        output_size: Width of an image token: the decoder's hidden size.
        adapter_size: Width of the adapter's gated MLP, the same as the decoder's.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    norm_eps: float
    patch_size: int
    patches_per_side: int
    scaling_factor: float
    output_size: int
    adapter_size: int

    @property
    def patch_values(self) -> int:
        """Values of one patch: channels x side x side."""
        return 3 * self.patch_size**2

    @property
    def num_tokens(self) -> int:
        """Tokens of an image, including the vectors for its begin and end."""
        return (self.patches_per_side // POOL_SIDE) ** 2 + 2


def read(model_dir: Path, config: Section) -> ModelSpec:
    """See `Family.read`."""
    if "vision_config" not in config:
        raise SpecError(
            "config.json: this is ChatGLM, a language model without vision (`vision_config` is missing);"
            " only GLM-4V-9B is supported"
        )
    decoder = _read_decoder(config)
    vision = _read_vision(config.section("vision_config"), decoder)
    begin, end = config.integer("boi_token_id"), config.integer("eoi_token_id")
    if end >= decoder.vocab_size or begin < TOKENS_BEFORE_IMAGE:
        raise SpecError("config.json: boi_token_id and eoi_token_id are not in the vocabulary")
    return ModelSpec(
        family=NAME,
        decoder=decoder,
        vision=vision,
        image_policy=clip_image_policy(
            patch_size=vision.patch_size,
            patches_per_side=vision.patches_per_side,
            num_tokens=vision.num_tokens,
            max_images=1,
        ),
        image_token_id=begin - TOKENS_BEFORE_IMAGE,
        video_token_id=None,
        vision_start_token_id=begin,
        vision_end_token_id=end,
        max_position_embeddings=config.integer("seq_length"),
        checkpoint_dtype=read_dtype(config, config),
        eos_token_ids=read_eos(model_dir, config, config),
        image_has_ends=True,
    )


def _read_decoder(config: Section) -> DecoderSpec:
    config.expect("add_bias_linear", wanted=False)
    config.expect("rmsnorm", wanted=True)
    config.expect("post_layer_norm", wanted=True)
    config.expect("apply_residual_connection_post_layernorm", wanted=False)
    config.expect("original_rope", wanted=True)
    config.expect("tie_word_embeddings", wanted=False)
    # Without groups the fused projection is laid out head by head, which no release uses.
    config.expect("multi_query_attention", wanted=True)
    num_heads, head_dim = config.integer("num_attention_heads"), config.integer("kv_channels")
    num_kv_heads = config.integer("multi_query_group_num")
    check_key_heads(config, num_heads, num_kv_heads)
    if head_dim % 4:
        raise SpecError("config.json: kv_channels must be a multiple of 4")
    return DecoderSpec(
        vocab_size=config.integer("padded_vocab_size"),
        hidden_size=config.integer("hidden_size"),
        intermediate_size=config.integer("ffn_hidden_size"),
        num_layers=config.integer("num_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rms_norm_eps=config.number("layernorm_epsilon"),
        qkv_bias=config.flag("add_qkv_bias", default=False),
        output_bias=False,
        qk_norm=False,
        rope=RopeSpec(
            theta=ROPE_THETA * config.number("rope_ratio", 1.0),
            sections=(head_dim // 4, 0, 0),
            interleaved=False,
            adjacent_pairs=True,
        ),
        tie_word_embeddings=False,
    )


def _read_vision(section: Section, decoder: DecoderSpec) -> GlmVisionSpec:
    section.expect("hidden_act", "gelu")
    section.expect("in_channels", 3)
    image_size, patch_size = section.integer("image_size"), section.integer("patch_size")
    vision = GlmVisionSpec(
        hidden_size=section.integer("hidden_size"),
        intermediate_size=section.integer("intermediate_size"),
        num_layers=section.integer("num_hidden_layers"),
        num_heads=section.integer("num_heads"),
        norm_eps=section.number("layer_norm_eps"),
        patch_size=patch_size,
        patches_per_side=image_size // patch_size,
        scaling_factor=section.number("scaling_factor"),
        output_size=decoder.hidden_size,
        adapter_size=decoder.intermediate_size,
    )
    if image_size % (patch_size * POOL_SIDE):
        raise SpecError(
            f"{section.where}: image_size must be a multiple of {POOL_SIDE} patch sizes"
        )
    if section.integer("num_positions") != vision.patches_per_side**2 + 1:
        raise SpecError(f"{section.where}: num_positions must be the number of patches plus one")
    if vision.hidden_size % vision.num_heads:
        raise SpecError(f"{section.where}: hidden_size must be a multiple of num_heads")
    return vision


def tensors(spec: ModelSpec) -> Iterator[TensorEntry]:
    """See `Family.tensors`."""
    if not isinstance(spec.vision, GlmVisionSpec):
        raise TypeError(f"{type(spec.vision).__name__} does not belong to {NAME}")
    yield from _language_entries(spec.decoder)
    yield from _vision_entries(spec.vision)
    yield from _adapter_entries(spec.vision)


def _language_entries(decoder: DecoderSpec) -> Iterator[TensorEntry]:
    hidden, inner = decoder.hidden_size, decoder.intermediate_size
    heads = decoder.num_heads * decoder.head_dim
    fused = heads + 2 * decoder.num_kv_heads * decoder.head_dim
    layer: dict[str, tuple[tuple[int, ...], str]] = {
        "input_layernorm.weight": ((hidden,), "input_layernorm.weight"),
        "self_attention.query_key_value.weight": ((fused, hidden), "self_attn.qkv_proj.weight"),
        "self_attention.dense.weight": ((hidden, heads), "self_attn.o_proj.weight"),
        "post_attention_layernorm.weight": ((hidden,), "post_attention_layernorm.weight"),
        "mlp.dense_h_to_4h.weight": ((2 * inner, hidden), "mlp.gate_up_proj.weight"),
        "mlp.dense_4h_to_h.weight": ((hidden, inner), "mlp.down_proj.weight"),
    }
    if decoder.qkv_bias:
        layer["self_attention.query_key_value.bias"] = ((fused,), "self_attn.qkv_proj.bias")
    words = (decoder.vocab_size, hidden)
    whole: dict[str, tuple[tuple[int, ...], str]] = {
        "embedding.word_embeddings.weight": (words, "embed_tokens.weight"),
        "encoder.final_layernorm.weight": ((hidden,), "norm.weight"),
        "output_layer.weight": (words, "lm_head.weight"),
    }
    for name, (shape, ours) in whole.items():
        yield TensorEntry(f"transformer.{name}", shape, f"decoder.{ours}", "language")
    for i in range(decoder.num_layers):
        for name, (shape, ours) in layer.items():
            theirs = f"transformer.encoder.layers.{i}.{name}"
            yield TensorEntry(theirs, shape, f"decoder.layers.{i}.{ours}", "language")


def _vision_entries(vision: GlmVisionSpec) -> Iterator[TensorEntry]:
    width, inner, side = vision.hidden_size, vision.intermediate_size, vision.patch_size
    block: dict[str, tuple[int, ...]] = {
        "input_layernorm": (width,),
        "attention.query_key_value": (3 * width, width),
        "attention.dense": (width, width),
        "post_attention_layernorm": (width,),
        "mlp.fc1": (inner, width),
        "mlp.fc2": (width, inner),
    }
    yield _entry("patch_embedding.cls_embedding", (1, width), "vision")
    yield from _entry("patch_embedding.proj.weight", (width, 3, side, side), "vision").with_bias()
    positions = (vision.patches_per_side**2 + 1, width)
    yield _entry("patch_embedding.position_embedding.weight", positions, "vision")
    for i in range(vision.num_layers):
        for name, shape in block.items():
            yield from _entry(f"transformer.layers.{i}.{name}.weight", shape, "vision").with_bias()


def _adapter_entries(vision: GlmVisionSpec) -> Iterator[TensorEntry]:
    width, out, inner = vision.hidden_size, vision.output_size, vision.adapter_size
    yield from _entry("conv.weight", (out, width, POOL_SIDE, POOL_SIDE), "adapter").with_bias()
    yield _entry("linear_proj.linear_proj.weight", (out, out), "adapter")
    yield from _entry("linear_proj.norm1.weight", (out,), "adapter").with_bias()
    yield _entry("linear_proj.dense_h_to_4h.weight", (inner, out), "adapter")
    yield _entry("linear_proj.gate_proj.weight", (inner, out), "adapter")
    yield _entry("linear_proj.dense_4h_to_h.weight", (out, inner), "adapter")
    yield _entry("boi", (1, 1, out), "adapter")
    yield _entry("eoi", (1, 1, out), "adapter")


def _entry(name: str, shape: tuple[int, ...], part: str) -> TensorEntry:
    ours = name.replace("transformer.layers.", "blocks.").replace("linear_proj.", "adapter.", 1)
    return TensorEntry(f"transformer.vision.{name}", shape, f"visual.{ours}", part)
