"""The specification of a model, independent of its family: sizes, decoder settings, image and video policies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Final, Protocol


DTYPE_BYTES: Mapping[str, int] = MappingProxyType({"float32": 4, "float16": 2, "bfloat16": 2})
"""The supported dtypes of weights, activations and cache, as torch spells them, with their bytes per value."""


def resolve_dtype_name(
    name: str, checkpoint_dtype: str, *, on_gpu: bool, fast_bfloat16: bool = False
) -> str:
    """Resolves a dtype name; `auto` = the checkpoint's where the device is fast with it, else float32.

    Args:
        name: The name, or `auto`.
        checkpoint_dtype: A key of `DTYPE_BYTES`.
        on_gpu: The device is a GPU, which is fast with all dtypes.
        fast_bfloat16: The device is a CPU that is fast with bfloat16.

    Raises:
        ValueError: Unsupported dtype.
    """
    if name == "auto":
        fast = on_gpu or (fast_bfloat16 and checkpoint_dtype == "bfloat16")
        name = checkpoint_dtype if fast else "float32"
    if name not in DTYPE_BYTES:
        raise ValueError(f"dtype must be auto or one of {', '.join(DTYPE_BYTES)}, not {name}")
    return name


class BoxNotation(Enum):
    """How a family writes boxes into its answers.

    Attributes:
        NONE: It writes no boxes.
        REF_BOX: `<ref>cat</ref><box>(x1,y1),(x2,y2)</box>`, per mille of width and height.
        OBJECT_REF: The same between `<|object_ref_start|>`, `<|box_start|>` and their ends.
        JSON_PIXELS: `{"bbox_2d": [x1, y1, x2, y2], "label": "cat"}`, pixels of the resized image.
        JSON_PER_MILLE: The same, per mille of width and height.
    """

    NONE = "none"
    REF_BOX = "ref_box"
    OBJECT_REF = "object_ref"
    JSON_PIXELS = "json_pixels"
    JSON_PER_MILLE = "json_per_mille"


class ToolNotation(Enum):
    """How a family writes calls of tools into its answers.

    Attributes:
        NONE: It calls no tools.
        HERMES: `<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>`.
        XML: `<tool_call><function=f><parameter=x>1</parameter></function></tool_call>`.
    """

    NONE = "none"
    HERMES = "hermes"
    XML = "xml"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePolicy:
    """How images are preprocessed, from preprocessor_config.json and the family's own rules.

    Attributes:
        patch_size: Side of a vision patch in pixels.
        merge_size: Patches per side that become one token.
        temporal_patch_size: Frames per patch; a still image is repeated.
        min_pixels: Minimum area after resizing.
        max_pixels: Maximum area after resizing.
        mean: Per channel, of values in 0..1.
        std: Per channel, of values in 0..1.
        exif_transpose: Apply the EXIF orientation when decoding.
        white_background: Transparent images are put on white; else the alpha channel is dropped.
        square_side: Every image is resized to a square of this side in pixels; None = the aspect ratio is kept and the
            area limited.
        num_tokens: Tokens of every image; None = its patches / merge_size^2.
        max_images: Maximum images of one request; None = the family has no limit.
        as_decoded: Images are not resized here: the engine prepares them.
    """

    patch_size: int
    merge_size: int
    temporal_patch_size: int
    min_pixels: int
    max_pixels: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    exif_transpose: bool = True
    white_background: bool = True
    square_side: int | None = None
    num_tokens: int | None = None
    max_images: int | None = None
    as_decoded: bool = False

    @property
    def pixel_step(self) -> int:
        """Sides of a processed image are multiples of this."""
        return self.patch_size * self.merge_size

    def tokens_of(self, grid: tuple[int, int, int]) -> int:
        """Placeholder tokens of an image with this grid (frames, rows, columns) of patches."""
        if self.num_tokens is not None:
            return self.num_tokens
        frames, rows, columns = grid
        return frames * rows * columns // self.merge_size**2


class MediaRules(Protocol):
    """What preparing media needs to know of a model."""

    @property
    def image_policy(self) -> ImagePolicy:
        """How images are prepared."""

    @property
    def video(self) -> VideoPolicy | None:
        """How videos are prepared; None = videos are not supported."""

    @property
    def no_videos(self) -> str:
        """What callers are told where videos are not supported."""


NO_VIDEOS: Final = "Videos are not supported by this model."


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoPolicy:
    """How the frames of a video are preprocessed, where it differs from images.

    Attributes:
        min_pixels: Minimum area of a frame after resizing, or of all frames together.
        max_pixels: Maximum of the same.
        total_pixels: Maximum area of all frames together, divided by `temporal_patch_size`; None = the limits
            above are of all frames together.
        timestamps: In the prompt, each temporal patch is separate and preceded by its time as text.
        tokens_per_second: Positions on the time axis per second; None = one per temporal patch.
    """

    min_pixels: int
    max_pixels: int
    total_pixels: int | None = None
    timestamps: bool = False
    tokens_per_second: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicNtk:
    """A base of the rotary frequencies that grows with the prompt (Qwen, 2023).

    The length of the prompt fixes the frequencies of all positions of a sequence, also for a long answer: keys of
    different levels must not be mixed in one sequence.

    Attributes:
        trained_length: Prompts up to this many tokens have level 0.
        max_length: Maximum length of a prompt.
    """

    trained_length: int
    max_length: int

    def level(self, num_prompt_tokens: int) -> int:
        """How often the trained length must double to hold the prompt."""
        return (-(-num_prompt_tokens // self.trained_length) - 1).bit_length()

    @property
    def num_levels(self) -> int:
        """Number of levels."""
        return self.level(self.max_length) + 1

    def theta(self, level: int, theta: float, dim: int) -> float:
        """The base at a level: `theta` times alpha^(dim / (dim - 2)), alpha = 1, 3, 7, ..."""
        alpha = 2 ** (level + 1) - 1
        return float(theta * alpha ** (dim / (dim - 2)))


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeSpec:
    """Rotary positions on three axes (M-RoPE, arXiv 2409.12191).

    Attributes:
        theta: Base of the frequencies.
        sections: How many frequencies belong to time, height and width; together at most head_dim / 2. If they
            are fewer, only the first elements of a head are rotated.
        interleaved: The axes alternate from frequency to frequency (Qwen3-VL); else they are chunks (Qwen2-VL).
        ntk: The base depends on the length of the prompt; None = it does not.
        adjacent_pairs: Rotated pairs are adjacent elements of a head (GLM); else half the rotated width apart.
    """

    theta: float
    sections: tuple[int, int, int]
    interleaved: bool
    ntk: DynamicNtk | None = None
    adjacent_pairs: bool = False

    @property
    def dim(self) -> int:
        """Elements of a head that are rotated."""
        return 2 * sum(self.sections)

    def level(self, num_prompt_tokens: int) -> int:
        """The frequency level of a sequence with such a prompt; keys of different levels are not interchangeable."""
        return 0 if self.ntk is None else self.ntk.level(num_prompt_tokens)

    def frequency_axes(self) -> tuple[int, ...]:
        """For each frequency, the axis of its position: 0 = time, 1 = height, 2 = width."""
        time, height, width = self.sections
        if not self.interleaved:
            return (0,) * time + (1,) * height + (2,) * width
        axes = [0] * sum(self.sections)
        axes[1 : 3 * height : 3] = [1] * len(axes[1 : 3 * height : 3])
        axes[2 : 3 * width : 3] = [2] * len(axes[2 : 3 * width : 3])
        return tuple(axes)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderSpec:
    """Settings of the decoder.

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
        output_bias: The output projection of attention has a bias.
        qk_norm: Queries and keys are normalised per head, before RoPE.
        rope: Rotary positions.
        tie_word_embeddings: The output head is the token embedding.
        deepstack_levels: Number of first layers that add image features to their output.
        logn_length: Queries after this many tokens are scaled by log(n) / log(logn_length); None = they are not.
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
    deepstack_levels: int = 0
    logn_length: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A checkpoint.

    Attributes:
        family: Name in the registry.
        decoder: The language model.
        vision: Settings of the vision tower, for the modules of its family only.
        image_policy: How images are prepared.
        image_token_id: Placeholder of an image token.
        video_token_id: Placeholder of a video token; None = videos are not supported.
        vision_start_token_id: The token before the placeholders.
        vision_end_token_id: The token after them.
        max_position_embeddings: Context window in tokens.
        checkpoint_dtype: A key of `DTYPE_BYTES`.
        eos_token_ids: Tokens that end an answer; generation_config.json takes precedence over config.json.
        is_chat: The model supports conversations; a base model only completes text.
        image_has_ends: The first and the last token of an image are `vision_start_token_id` and
            `vision_end_token_id`, and the vision tower computes their vectors; else both are text around it.
        video: How videos are prepared; None = videos are not supported.
    """

    family: str
    decoder: DecoderSpec
    vision: object
    image_policy: ImagePolicy
    image_token_id: int
    video_token_id: int | None
    vision_start_token_id: int
    vision_end_token_id: int
    max_position_embeddings: int
    checkpoint_dtype: str
    eos_token_ids: tuple[int, ...]
    is_chat: bool = True
    image_has_ends: bool = False
    video: VideoPolicy | None = None

    @property
    def no_videos(self) -> str:
        """See `MediaRules`."""
        return NO_VIDEOS
