"""What the files of the made-up family say, and the tensors of its checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inference_service.engine_protocol.messages import ImageSpan
from inference_service.families.config_file import Section
from inference_service.families.family import TensorEntry
from inference_service.families.qwen_common.tensors import language_entries
from inference_service.model_spec import DecoderSpec, ImagePolicy, ModelSpec, RopeSpec


if TYPE_CHECKING:
    from inference_service.families.positions import Positions


NAME = "made_up"
PATCH = 4
END, IMAGE, IMAGE_BEGIN, IMAGE_END = 256, 257, 258, 259
VOCAB_SIZE = 260


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeUpVisionSpec:
    """Each patch becomes one token by one linear map."""

    output_size: int

    @property
    def patch_values(self) -> int:
        """Values of one patch: channels x side x side."""
        return 3 * PATCH**2


def read(model_dir: Path, config: Section) -> ModelSpec:
    """See `Family.read`."""
    del model_dir
    width = config.integer("width")
    decoder = DecoderSpec(
        vocab_size=VOCAB_SIZE,
        hidden_size=width,
        intermediate_size=2 * width,
        num_layers=config.integer("layers"),
        num_heads=2,
        num_kv_heads=1,
        head_dim=width // 2,
        rms_norm_eps=1e-6,
        qkv_bias=False,
        output_bias=False,
        qk_norm=False,
        rope=RopeSpec(theta=100.0, sections=(width // 4, 0, 0), interleaved=False),
        tie_word_embeddings=True,
    )
    return ModelSpec(
        family=NAME,
        decoder=decoder,
        vision=MadeUpVisionSpec(output_size=width),
        image_policy=ImagePolicy(
            patch_size=PATCH,
            merge_size=1,
            temporal_patch_size=1,
            min_pixels=PATCH**2,
            max_pixels=64 * PATCH**2,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        ),
        image_token_id=IMAGE,
        video_token_id=None,
        vision_start_token_id=IMAGE_BEGIN,
        vision_end_token_id=IMAGE_END,
        max_position_embeddings=config.integer("context"),
        checkpoint_dtype="float32",
        eos_token_ids=(END,),
    )


def tensors(spec: ModelSpec) -> Iterator[TensorEntry]:
    """See `Family.tensors`."""
    assert isinstance(spec.vision, MadeUpVisionSpec)
    shape = (spec.vision.output_size, spec.vision.patch_values)
    yield TensorEntry("eye.weight", shape, "visual.eye.weight", "vision")
    yield from language_entries(spec.decoder)


def positions(num_tokens: int, images: Sequence[ImageSpan], merge_size: int) -> Positions:
    """See `Family.positions`: images are counted like text."""
    del images, merge_size
    return np.tile(np.arange(num_tokens), (3, 1)), 0
