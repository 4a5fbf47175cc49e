"""Qwen-VL and Qwen-VL-Chat (2023): reads their configuration and lists the tensors of their checkpoints.

Source: configuration_qwen.py, modeling_qwen.py and visual.py of the release (arXiv 2308.12966). config.json shares
name and model_type with Qwen, the language model of the same year; only `visual` distinguishes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
import math
from pathlib import Path

from inference_service.families.clip import clip_image_policy
from inference_service.families.config_file import Section, SpecError, read_config, read_dtype
from inference_service.families.family import TensorEntry
from inference_service.model_spec import (
    DecoderSpec,
    DynamicNtk,
    ModelSpec,
    RopeSpec,
)


NAME = "qwen_vl"
POSITION_TABLE_SIDE = 16  # for images of any size: the original hard-codes 256
POOL_HEAD_DIM = 128
TAGS_BEFORE_IMG = 6  # ref, box and quad with their ends
EXTRA_TOKENS = 205


@dataclass(frozen=True, slots=True, kw_only=True)
class QwenVLVisionSpec:
    """Settings of the vision tower and its resampler.

    Attributes:
        width: Width of the tower's residual stream.
        intermediate_size: Width of its MLP.
        num_layers: Blocks.
        num_heads: Attention heads of a block.
        patch_size: Side of a patch in pixels.
        patches_per_side: Patches along a side of the square image.
        num_queries: Tokens of an image, a square number.
        output_size: Width of an image token: the decoder's hidden size.
        position_table_side: The learned positions of patches are a square table of this side.
    """

    width: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    patch_size: int
    patches_per_side: int
    num_queries: int
    output_size: int
    position_table_side: int = POSITION_TABLE_SIDE

    @property
    def patch_values(self) -> int:
        """Values of one patch: channels x side x side."""
        return 3 * self.patch_size**2

    @property
    def pool_heads(self) -> int:
        """Number of attention heads of the resampler, each with POOL_HEAD_DIM elements or more."""
        return self.output_size // POOL_HEAD_DIM


def read(model_dir: Path, config: Section) -> ModelSpec:
    """See `Family.read`."""
    if "visual" not in config:
        raise SpecError(
            "config.json: this is Qwen, a language model without vision (`visual` is missing);"
            " only Qwen-VL and Qwen-VL-Chat are supported"
        )
    decoder = _read_decoder(config)
    section = config.section("visual")
    vision = _read_vision(section, decoder)
    image_start = section.integer("image_start_id")
    end_of_text = image_start - TAGS_BEFORE_IMG - EXTRA_TOKENS - 3
    if end_of_text < 256 or image_start + 2 >= decoder.vocab_size:
        raise SpecError(f"{section.where}: image_start_id {image_start} is not in the vocabulary")
    is_chat = _read_is_chat(model_dir)
    return ModelSpec(
        family=NAME,
        decoder=decoder,
        vision=vision,
        image_policy=clip_image_policy(
            patch_size=vision.patch_size,
            patches_per_side=vision.patches_per_side,
            num_tokens=vision.num_queries,
        ),
        image_token_id=image_start + 2,
        video_token_id=None,
        vision_start_token_id=image_start,
        vision_end_token_id=image_start + 1,
        max_position_embeddings=config.integer("max_position_embeddings"),
        checkpoint_dtype=read_dtype(config, config),
        # The original also stops at the texts <|im_end|> and <|im_start|>, besides its eos_token_id.
        eos_token_ids=tuple(range(end_of_text, end_of_text + (3 if is_chat else 1))),
        is_chat=is_chat,
    )


def _read_decoder(config: Section) -> DecoderSpec:
    config.expect("no_bias", wanted=True)
    config.expect("rotary_pct", 1.0)
    config.expect("scale_attn_weights", wanted=True)
    config.expect("tie_word_embeddings", wanted=False)
    num_heads, head_dim = config.integer("num_attention_heads"), config.integer("kv_channels")
    if head_dim % 2 or head_dim == 2:
        raise SpecError(f"config.json: kv_channels {head_dim} must be even and above 2")
    doubled = config.integer("intermediate_size")
    if doubled % 2:
        raise SpecError("config.json: intermediate_size must be even")
    seq_length = config.integer("seq_length", minimum=2)
    ntk = DynamicNtk(
        trained_length=seq_length, max_length=config.integer("max_position_embeddings")
    )
    return DecoderSpec(
        vocab_size=config.integer("vocab_size"),
        hidden_size=config.integer("hidden_size"),
        intermediate_size=doubled // 2,
        num_layers=config.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        rms_norm_eps=config.number("layer_norm_epsilon"),
        qkv_bias=True,
        output_bias=False,
        qk_norm=False,
        rope=RopeSpec(
            theta=config.number("rotary_emb_base"),
            sections=(head_dim // 2, 0, 0),
            interleaved=False,
            ntk=ntk if config.flag("use_dynamic_ntk", default=True) else None,
        ),
        tie_word_embeddings=False,
        logn_length=seq_length if config.flag("use_logn_attn", default=True) else None,
    )


def _read_vision(section: Section, decoder: DecoderSpec) -> QwenVLVisionSpec:
    image_size, patch_size = section.integer("image_size"), section.integer("patch_size")
    width, ratio = section.integer("width"), section.number("mlp_ratio")
    vision = QwenVLVisionSpec(
        width=width,
        intermediate_size=int(width * ratio),
        num_layers=section.integer("layers"),
        num_heads=section.integer("heads"),
        patch_size=patch_size,
        patches_per_side=image_size // patch_size,
        num_queries=section.integer("n_queries", 256),
        output_size=section.integer("output_dim"),
    )
    if image_size % patch_size:
        raise SpecError(f"{section.where}: image_size must be a multiple of patch_size")
    if width % vision.num_heads:
        raise SpecError(f"{section.where}: width must be a multiple of heads")
    if math.isqrt(vision.num_queries) ** 2 != vision.num_queries:
        raise SpecError(f"{section.where}: n_queries must be a square number")
    if vision.pool_heads == 0 or vision.output_size % vision.pool_heads:
        raise SpecError(
            f"{section.where}: output_dim {vision.output_size} cannot be divided among"
            f" {vision.pool_heads} heads of {POOL_HEAD_DIM} or more"
        )
    if vision.output_size != decoder.hidden_size:
        raise SpecError(f"{section.where}: output_dim must be the decoder's hidden_size")
    return vision


def _read_is_chat(model_dir: Path) -> bool:
    """Whether the model was trained for conversations: `chat_format` of generation_config.json."""
    path = model_dir / "generation_config.json"
    if not path.is_file():
        return True
    chat_format = read_config(path).text("chat_format", "chatml")
    if chat_format not in {"chatml", "raw"}:
        raise SpecError(f"{path.name}: chat_format {chat_format!r} is not supported")
    return chat_format == "chatml"


def tensors(spec: ModelSpec) -> Iterator[TensorEntry]:
    """See `Family.tensors`."""
    if not isinstance(spec.vision, QwenVLVisionSpec):
        raise TypeError(f"{type(spec.vision).__name__} does not belong to {NAME}")
    yield from _language_entries(spec.decoder)
    yield from _vision_entries(spec.vision)
    yield from _resampler_entries(spec.vision)


def _language_entries(decoder: DecoderSpec) -> Iterator[TensorEntry]:
    hidden, inner = decoder.hidden_size, decoder.intermediate_size
    heads = decoder.num_heads * decoder.head_dim
    layer = (
        ("ln_1.weight", (hidden,), "input_layernorm.weight", 0),
        ("attn.c_attn.weight", (3 * heads, hidden), "self_attn.qkv_proj.weight", 0),
        ("attn.c_attn.bias", (3 * heads,), "self_attn.qkv_proj.bias", 0),
        ("attn.c_proj.weight", (hidden, heads), "self_attn.o_proj.weight", 0),
        ("ln_2.weight", (hidden,), "post_attention_layernorm.weight", 0),
        ("mlp.w2.weight", (inner, hidden), "mlp.gate_up_proj.weight", 0),  # the gate is w2
        ("mlp.w1.weight", (inner, hidden), "mlp.gate_up_proj.weight", inner),
        ("mlp.c_proj.weight", (hidden, inner), "mlp.down_proj.weight", 0),
    )
    words = (decoder.vocab_size, hidden)
    for name, shape, ours in (
        ("transformer.wte.weight", words, "embed_tokens.weight"),
        ("transformer.ln_f.weight", (hidden,), "norm.weight"),
        ("lm_head.weight", words, "lm_head.weight"),
    ):
        yield TensorEntry(name, shape, f"decoder.{ours}", "language")
    for i in range(decoder.num_layers):
        for name, shape, ours, row in layer:
            theirs = f"transformer.h.{i}.{name}"
            yield TensorEntry(theirs, shape, f"decoder.layers.{i}.{ours}", "language", row)


def _vision_entries(vision: QwenVLVisionSpec) -> Iterator[TensorEntry]:
    width, inner, side, out = (
        vision.width,
        vision.intermediate_size,
        vision.patch_size,
        vision.output_size,
    )
    block = {
        "ln_1": (width,),
        "attn.in_proj": (3 * width, width),
        "attn.out_proj": (width, width),
        "ln_2": (width,),
        "mlp.c_fc": (inner, width),
        "mlp.c_proj": (width, inner),
    }
    yield _entry("conv1.weight", (width, 3, side, side), "vision")
    yield _entry("positional_embedding", (vision.position_table_side**2, width), "vision")
    yield from _entry("ln_pre.weight", (width,), "vision").with_bias()
    for i in range(vision.num_layers):
        for name, shape in block.items():
            yield from _entry(
                f"transformer.resblocks.{i}.{name}.weight", shape, "vision"
            ).with_bias()
    yield from _entry("ln_post.weight", (out,), "vision").with_bias()
    yield _entry("proj", (out, out), "vision")


def _resampler_entries(vision: QwenVLVisionSpec) -> Iterator[TensorEntry]:
    width, out = vision.width, vision.output_size
    yield _entry("attn_pool.query", (vision.num_queries, out), "adapter")
    yield _entry("attn_pool.pos_embed", (vision.num_queries, out), "adapter")
    if width != out:
        yield _entry("attn_pool.kv_proj.weight", (out, width), "adapter")
    yield _entry("attn_pool.attn.in_proj_weight", (3 * out, out), "adapter")
    yield _entry("attn_pool.attn.in_proj_bias", (3 * out,), "adapter")
    yield from _entry("attn_pool.attn.out_proj.weight", (out, out), "adapter").with_bias()
    yield from _entry("attn_pool.ln_q.weight", (out,), "adapter").with_bias()
    yield from _entry("attn_pool.ln_kv.weight", (out,), "adapter").with_bias()


def _entry(name: str, shape: tuple[int, ...], part: str) -> TensorEntry:
    ours = name.replace("transformer.resblocks.", "blocks.").replace(".in_proj_", ".in_proj.")
    return TensorEntry(f"transformer.visual.{name}", shape, f"visual.{ours}", part)
