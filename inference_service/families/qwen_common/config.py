"""Reads the common configuration of Qwen2-VL and its successors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from inference_service.families.config_file import (
    Section,
    SpecError,
    check_key_heads,
    read_config,
    read_dtype,
    read_eos,
)
from inference_service.model_spec import (
    DecoderSpec,
    ImagePolicy,
    ModelSpec,
    RopeSpec,
    VideoPolicy,
)


VISION_ROPE_THETA = 10_000.0
QWEN2_VIDEO = VideoPolicy(
    min_pixels=128 * 28 * 28, max_pixels=768 * 28 * 28, total_pixels=16384 * 28 * 28
)
"""As in transformers' `Qwen2VLVideoProcessor` with `cap_pixels_per_frame`."""

BICUBIC = 3  # PIL.Image.Resampling.BICUBIC in preprocessor_config.json


@dataclass(frozen=True, slots=True, kw_only=True)
class QwenVisionSpec:
    """The common settings of the vision towers.

    Attributes:
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the MLP.
        num_layers: Blocks.
        num_heads: Attention heads.
        in_channels: Colour channels.
        patch_size: Side of a patch in pixels.
        temporal_patch_size: Frames of a patch.
        merge_size: Patches per side that become one token.
        output_size: Width of an image token: the decoder's hidden size.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    merge_size: int
    output_size: int

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.hidden_size // self.num_heads

    @property
    def patch_values(self) -> int:
        """Values of one patch: channels x frames x side x side."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def merged_size(self) -> int:
        """Width of the concatenated patches of one token."""
        return self.hidden_size * self.merge_size**2


def text_section(config: Section) -> Section:
    """The language model's settings: in `text_config`, or (transformers 4, Qwen2) at top level."""
    return config.section("text_config") if "text_config" in config else config


def expect_rgb_and_axial_rope(section: Section) -> None:
    """Raises for a vision tower with other input than RGB or other rotary positions."""
    section.expect("in_channels", 3)
    section.expect("in_chans", 3)  # the key in the published Qwen2-VL and Qwen2.5-VL
    if "rope_parameters" in section:  # written since transformers 5
        section.section("rope_parameters").expect("rope_type", "axial")
        section.section("rope_parameters").expect("rope_theta", VISION_ROPE_THETA)


def read_model(
    model_dir: Path,
    config: Section,
    *,
    family: str,
    decoder: DecoderSpec,
    vision: QwenVisionSpec,
    video: VideoPolicy,
) -> ModelSpec:
    """Reads the rest of the specification, given decoder and vision tower.

    Raises:
        SpecError: A file is missing or invalid, or decoder and tower do not match.
    """
    text, section = text_section(config), config.section("vision_config")
    if vision.hidden_size % vision.num_heads or vision.head_dim % 4:
        raise SpecError(f"{section.where}: hidden_size / num_heads must be a multiple of 4")
    if vision.output_size != decoder.hidden_size:
        raise SpecError(f"{section.where}: out_hidden_size must be the decoder's hidden_size")
    return ModelSpec(
        family=family,
        decoder=decoder,
        vision=vision,
        image_policy=_read_image_policy(model_dir, vision),
        image_token_id=_token_id(config, "image_token_id", decoder),
        video_token_id=_token_id(config, "video_token_id", decoder),
        vision_start_token_id=_token_id(config, "vision_start_token_id", decoder),
        vision_end_token_id=_token_id(config, "vision_end_token_id", decoder),
        max_position_embeddings=text.integer("max_position_embeddings"),
        checkpoint_dtype=read_dtype(config, text),
        eos_token_ids=read_eos(model_dir, config, text),
        video=_read_video_policy(model_dir, video),
    )


def read_decoder(
    config: Section,
    *,
    qkv_bias: bool,
    output_bias: bool,
    qk_norm: bool,
    mrope_interleaved: bool,
    deepstack_levels: int = 0,
) -> DecoderSpec:
    """Reads the language model's settings; the arguments are fixed by the family.

    Raises:
        SpecError: A setting is missing, invalid or not supported.
    """
    text = text_section(config)
    text.expect("hidden_act", "silu")
    num_heads = text.integer("num_attention_heads")
    num_kv_heads = text.integer("num_key_value_heads", num_heads)
    hidden_size = text.integer("hidden_size")
    head_dim = text.integer("head_dim", max(1, hidden_size // num_heads))
    check_key_heads(text, num_heads, num_kv_heads)
    return DecoderSpec(
        vocab_size=text.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=text.integer("intermediate_size"),
        num_layers=text.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rms_norm_eps=text.number("rms_norm_eps", 1e-6),
        qkv_bias=qkv_bias,
        output_bias=output_bias,
        qk_norm=qk_norm,
        rope=_read_rope(text, head_dim, interleaved=mrope_interleaved),
        tie_word_embeddings=config.flag("tie_word_embeddings", default=False),
        deepstack_levels=deepstack_levels,
    )


def read_qwen2_decoder(config: Section) -> DecoderSpec:
    """The language model of Qwen2-VL and Qwen2.5-VL.

    Raises:
        SpecError: A setting is missing, invalid or not supported.
    """
    text_section(config).expect("use_sliding_window", wanted=False)
    return read_decoder(
        config, qkv_bias=True, output_bias=False, qk_norm=False, mrope_interleaved=False
    )


def _read_rope(text: Section, head_dim: int, *, interleaved: bool) -> RopeSpec:
    """Reads both spellings: `rope_parameters` (transformers 5), or `rope_scaling` and `rope_theta` (4.x)."""
    if "rope_parameters" in text:
        rope = text.section("rope_parameters")
        theta = rope.number("rope_theta")
    else:
        rope = text.section("rope_scaling")
        theta = text.number("rope_theta")
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind not in {"default", "mrope"}:
        raise SpecError(f"{rope.where}: rope_type {kind!r} is not supported")
    sections = rope.integers("mrope_section")
    if len(sections) != 3 or 2 * sum(sections) != head_dim:
        raise SpecError(
            f"{rope.where}: mrope_section must be three integers with the sum {head_dim // 2}"
        )
    time, height, width = sections
    return RopeSpec(theta=theta, sections=(time, height, width), interleaved=interleaved)


def _read_image_policy(model_dir: Path, vision: QwenVisionSpec) -> ImagePolicy:
    section = _read_preprocessor(model_dir)
    for step in ("do_resize", "do_rescale", "do_normalize"):
        section.expect(step, wanted=True)
    section.expect("resample", BICUBIC)
    section.expect("rescale_factor", 1 / 255)
    section.expect("patch_size", vision.patch_size)
    section.expect("merge_size", vision.merge_size)
    section.expect("temporal_patch_size", vision.temporal_patch_size)
    size = section.section("size") if "size" in section else section
    min_key, max_key = (
        ("shortest_edge", "longest_edge")
        if "shortest_edge" in size
        else ("min_pixels", "max_pixels")
    )
    policy = ImagePolicy(
        patch_size=vision.patch_size,
        merge_size=vision.merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        min_pixels=size.integer(min_key),
        max_pixels=size.integer(max_key),
        mean=section.three_numbers("image_mean"),
        std=section.three_numbers("image_std"),
    )
    if policy.min_pixels > policy.max_pixels:
        raise SpecError(f"{size.where}: {min_key} is above {max_key}")
    if 0.0 in policy.std:
        raise SpecError(f"{section.where}: image_std must not contain 0")
    return policy


def _read_video_policy(model_dir: Path, default: VideoPolicy) -> VideoPolicy:
    """Reads the limits in video_preprocessor_config.json; older models were published without it."""
    if not (model_dir / "video_preprocessor_config.json").is_file():
        return default
    section = read_config(model_dir / "video_preprocessor_config.json").section("size")
    policy = replace(
        default,
        min_pixels=section.integer("shortest_edge"),
        max_pixels=section.integer("longest_edge"),
    )
    if policy.min_pixels > policy.max_pixels:
        raise SpecError(f"{section.where}: shortest_edge is above longest_edge")
    return policy


def _read_preprocessor(model_dir: Path) -> Section:
    """Reads the image processor, saved in its own file or as an object in its processor's file."""
    nested = model_dir / "processor_config.json"
    if not (model_dir / "preprocessor_config.json").is_file() and nested.is_file():
        return read_config(nested).section("image_processor")
    return read_config(model_dir / "preprocessor_config.json")


def _token_id(config: Section, key: str, decoder: DecoderSpec) -> int:
    token_id = config.integer(key, minimum=0)
    if token_id >= decoder.vocab_size:
        raise SpecError(
            f"{config.where}: {key} is {token_id}, but must be less than vocab_size {decoder.vocab_size}"
        )
    return token_id
