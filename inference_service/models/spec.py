"""What a checkpoint is, read from its configuration files; torch-free, so that the front can read it too.

Owns the values that describe a model, and how config.json, generation_config.json and preprocessor_config.json
become them. Must not know torch, tensors or requests.
"""

from __future__ import annotations

from dataclasses import dataclass
import math
from pathlib import Path

from inference_service.models.config_file import Section, SpecError, read_config
from inference_service.models.registry import FAMILIES, REFUSALS, Family


__all__ = [
    "DecoderSpec",
    "ImagePolicy",
    "ModelSpec",
    "RopeSpec",
    "SpecError",
    "VisionSpec",
    "load_spec",
]

VISION_ROPE_THETA = 10_000.0
BICUBIC = 3  # PIL.Image.Resampling.BICUBIC, as preprocessor_config.json writes it


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePolicy:
    """How a family wants its pictures, from preprocessor_config.json and the family's own rules.

    Attributes:
        patch_size: Side of a vision patch in pixels.
        merge_size: Patches per side that become one token.
        temporal_patch_size: Frames per patch; a still picture is repeated.
        min_pixels: Least area after resizing.
        max_pixels: Greatest area after resizing.
        mean: Per channel, of values in 0..1.
        std: Per channel, of values in 0..1.
        exif_transpose: Apply the EXIF orientation when decoding.
    """

    patch_size: int
    merge_size: int
    temporal_patch_size: int
    min_pixels: int
    max_pixels: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    exif_transpose: bool = True

    @property
    def pixel_step(self) -> int:
        """Sides of a processed picture are multiples of this."""
        return self.patch_size * self.merge_size


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """Rotary positions on three axes (M-RoPE, arXiv 2409.12191).

    Attributes:
        theta: Base of the frequencies.
        sections: How many of the head_dim / 2 frequencies belong to time, height and width.
        interleaved: The axes alternate from frequency to frequency (Qwen3-VL); else they are chunks (Qwen2-VL).
    """

    theta: float
    sections: tuple[int, int, int]
    interleaved: bool

    def frequency_axes(self) -> tuple[int, ...]:
        """For each frequency the axis whose position turns it: 0 = time, 1 = height, 2 = width."""
        time, height, width = self.sections
        if not self.interleaved:
            return (0,) * time + (1,) * height + (2,) * width
        axes = [0] * sum(self.sections)
        axes[1 : 3 * height : 3] = [1] * len(axes[1 : 3 * height : 3])
        axes[2 : 3 * width : 3] = [2] * len(axes[2 : 3 * width : 3])
        return tuple(axes)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    """Settings of the one decoder.

    Attributes:
        vocab_size: Rows of the token embedding.
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the gated MLP.
        num_layers: Decoder layers.
        num_heads: Query heads.
        num_kv_heads: Key and value heads; divides `num_heads`.
        head_dim: Width of a head.
        rms_norm_eps: Epsilon of every RMS norm.
        qkv_bias: The projections to queries, keys and values have biases.
        output_bias: The projection out of attention has one.
        qk_norm: Queries and keys are normalised per head, before RoPE.
        rope: Rotary positions.
        tie_word_embeddings: The output head is the token embedding.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    qkv_bias: bool
    output_bias: bool
    qk_norm: bool
    rope: RopeSpec
    tie_word_embeddings: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionSpec:
    """Settings of the Qwen3-VL vision tower.

    Attributes:
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the MLP.
        num_layers: Blocks.
        num_heads: Attention heads.
        in_channels: Colour channels.
        patch_size: Side of a patch in pixels.
        temporal_patch_size: Frames of a patch.
        merge_size: Patches per side that become one token.
        output_size: Width of a picture token: the decoder's hidden size.
        position_table_side: The learned positions are a square table of this side, interpolated to each picture.
        deepstack_layers: Blocks, ascending, whose output is added to the first decoder layers (arXiv 2406.04334).
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
    position_table_side: int
    deepstack_layers: tuple[int, ...]

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
        """Width of the patches that become one token, side by side."""
        return self.hidden_size * self.merge_size**2


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A checkpoint.

    Attributes:
        family: Name in the registry.
        decoder: The language model.
        vision: The vision tower.
        image_policy: How pictures are prepared.
        image_token_id: Placeholder of a picture token.
        video_token_id: Placeholder of a video token.
        vision_start_token_id: Stands before the placeholders.
        vision_end_token_id: Stands after them.
        max_position_embeddings: Context window in tokens.
        checkpoint_dtype: `float32`, `float16` or `bfloat16`.
        eos_token_ids: Tokens that end an answer; generation_config.json wins over config.json.
    """

    family: str
    decoder: DecoderSpec
    vision: VisionSpec
    image_policy: ImagePolicy
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    max_position_embeddings: int
    checkpoint_dtype: str
    eos_token_ids: tuple[int, ...]


def load_spec(model_dir: Path) -> ModelSpec:
    """Reads what the checkpoint in a directory is.

    Raises:
        SpecError: A file is missing or broken, the model's family is not supported, or a setting is not.
    """
    config = read_config(model_dir / "config.json")
    model_type = config.text("model_type")
    family = FAMILIES.get(model_type)
    if family is None:
        why = REFUSALS.get(model_type, f"model_type {model_type!r} is not supported")
        raise SpecError(f"config.json: {why}; supported: {', '.join(sorted(FAMILIES))}")
    if "quantization_config" in config:
        raise SpecError("config.json: quantised checkpoints are not supported")
    text = config.section("text_config")
    decoder = _read_decoder(config, text, family)
    vision = _read_vision(config.section("vision_config"), decoder)
    return ModelSpec(
        family=family.name,
        decoder=decoder,
        vision=vision,
        image_policy=_read_image_policy(model_dir, vision),
        image_token_id=_token_id(config, "image_token_id", decoder),
        video_token_id=_token_id(config, "video_token_id", decoder),
        vision_start_token_id=_token_id(config, "vision_start_token_id", decoder),
        vision_end_token_id=_token_id(config, "vision_end_token_id", decoder),
        max_position_embeddings=text.integer("max_position_embeddings"),
        checkpoint_dtype=_read_dtype(config, text),
        eos_token_ids=_read_eos(model_dir, config, text),
    )


def _read_decoder(config: Section, text: Section, family: Family) -> DecoderSpec:
    text.expect("hidden_act", "silu")
    num_heads = text.integer("num_attention_heads")
    num_kv_heads = text.integer("num_key_value_heads", num_heads)
    hidden_size = text.integer("hidden_size")
    head_dim = text.integer("head_dim", max(1, hidden_size // num_heads))
    bias = text.flag("attention_bias", default=False)
    if num_heads % num_kv_heads:
        raise SpecError(
            f"{text.where}: {num_heads} attention heads cannot share {num_kv_heads} key heads"
        )
    return DecoderSpec(
        vocab_size=text.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=text.integer("intermediate_size"),
        num_layers=text.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rms_norm_eps=text.number("rms_norm_eps", 1e-6),
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=family.qk_norm,
        rope=_read_rope(text, head_dim, interleaved=family.mrope_interleaved),
        tie_word_embeddings=config.flag("tie_word_embeddings", default=False),
    )


def _read_rope(text: Section, head_dim: int, *, interleaved: bool) -> RopeSpec:
    """Reads both spellings: `rope_parameters` (transformers 5), or `rope_scaling` beside `rope_theta` (4.x)."""
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


def _read_vision(section: Section, decoder: DecoderSpec) -> VisionSpec:
    section.expect("hidden_act", "gelu_pytorch_tanh")
    section.expect("in_channels", 3)
    if "rope_parameters" in section:  # written since transformers 5; never told before
        section.section("rope_parameters").expect("rope_type", "axial")
        section.section("rope_parameters").expect("rope_theta", VISION_ROPE_THETA)
    num_positions = section.integer("num_position_embeddings")
    vision = VisionSpec(
        hidden_size=section.integer("hidden_size"),
        intermediate_size=section.integer("intermediate_size"),
        num_layers=section.integer("depth"),
        num_heads=section.integer("num_heads"),
        in_channels=3,
        patch_size=section.integer("patch_size"),
        temporal_patch_size=section.integer("temporal_patch_size"),
        merge_size=section.integer("spatial_merge_size"),
        output_size=section.integer("out_hidden_size"),
        position_table_side=math.isqrt(num_positions),
        deepstack_layers=section.integers("deepstack_visual_indexes"),
    )
    levels = vision.deepstack_layers
    if vision.position_table_side**2 != num_positions:
        raise SpecError(f"{section.where}: num_position_embeddings must be a square")
    if vision.hidden_size % vision.num_heads or vision.head_dim % 4:
        raise SpecError(f"{section.where}: hidden_size / num_heads must be a multiple of 4")
    if vision.output_size != decoder.hidden_size:
        raise SpecError(f"{section.where}: out_hidden_size must be the decoder's hidden_size")
    if list(levels) != sorted(set(levels)) or any(i >= vision.num_layers for i in levels):
        raise SpecError(f"{section.where}: deepstack_visual_indexes must be ascending blocks")
    if len(levels) > decoder.num_layers:
        raise SpecError(f"{section.where}: more deepstack levels than decoder layers")
    return vision


def _read_image_policy(model_dir: Path, vision: VisionSpec) -> ImagePolicy:
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
    if policy.min_pixels > policy.max_pixels or 0.0 in policy.std:
        raise SpecError(f"{section.where}: pixel limits or standard deviations make no sense")
    return policy


def _read_preprocessor(model_dir: Path) -> Section:
    """Image processors are saved in a file of their own, or as an object of their processor's."""
    nested = model_dir / "processor_config.json"
    if not (model_dir / "preprocessor_config.json").is_file() and nested.is_file():
        return read_config(nested).section("image_processor")
    return read_config(model_dir / "preprocessor_config.json")


def _read_dtype(config: Section, text: Section) -> str:
    for section in (config, text):
        for key in ("dtype", "torch_dtype"):
            if key in section:
                dtype = section.text(key)
                if dtype not in {"float32", "float16", "bfloat16"}:
                    raise SpecError(f"{section.where}: dtype {dtype!r} is not supported")
                return dtype
    return "float32"  # what the absence of the key has always meant


def _read_eos(model_dir: Path, config: Section, text: Section) -> tuple[int, ...]:
    sections = [config, text]
    if (model_dir / "generation_config.json").is_file():
        sections.insert(0, read_config(model_dir / "generation_config.json"))
    for section in sections:
        if "eos_token_id" in section:
            return section.integers("eos_token_id")
    raise SpecError("neither generation_config.json nor config.json has eos_token_id")


def _token_id(config: Section, key: str, decoder: DecoderSpec) -> int:
    token_id = config.integer(key, least=0)
    if token_id >= decoder.vocab_size:
        raise SpecError(f"{config.where}: {key} {token_id} is beyond the vocabulary")
    return token_id
