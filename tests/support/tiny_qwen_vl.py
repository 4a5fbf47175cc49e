"""Tiny checkpoints of each family in which every tensor is random, and transformers' own models as the oracle.

Weights are scaled so that logits have a standard deviation above 1 and every tensor matters: an error anywhere
shows in the logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForImageTextToText,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from inference_service.engine_protocol.messages import ImageSpan


VOCAB_SIZE = 600
IMAGE_TOKEN, VIDEO_TOKEN, VISION_START, VISION_END = 590, 591, 592, 593
EOS_TOKENS = (594, 595)
PATCH, MERGE = 8, 2
STEP = PATCH * MERGE


TOKEN_IDS = {
    "image_token_id": IMAGE_TOKEN,
    "video_token_id": VIDEO_TOKEN,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}
MODELS = {
    "qwen2_vl": (Qwen2VLConfig, Qwen2VLForConditionalGeneration),
    "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
    "qwen3_vl": (Qwen3VLConfig, Qwen3VLForConditionalGeneration),
}
FAMILIES = tuple(MODELS)


def build_checkpoint(
    directory: Path,
    *,
    family: str = "qwen3_vl",
    tied: bool = False,
    seed: int = 1,
    max_shard_size: str = "1GB",
    max_position_embeddings: int = 4096,
    token_ids: Mapping[str, Any] = TOKEN_IDS,
    **settings: Any,
) -> Path:
    """Writes a checkpoint as transformers does, float32; returns the directory.

    Settings of Qwen3-VL: `attention_bias`, `deepstack`.
    """
    text, vision = _family_settings(family, **settings)
    text |= {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": max_position_embeddings,
        "eos_token_id": EOS_TOKENS[0],
        "tie_word_embeddings": tied,
    }
    vision |= {
        "depth": 3,
        "num_heads": 3,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
    }
    config_class, model_class = MODELS[family]
    config = config_class(
        text_config=text,
        vision_config=vision,
        **token_ids,
        tie_word_embeddings=tied,
        dtype="float32",
    )
    model = model_class(config)
    randomise(model, seed)
    model.generation_config.eos_token_id = list(EOS_TOKENS)
    model.save_pretrained(directory, max_shard_size=max_shard_size)
    image_processor().save_pretrained(directory)
    return directory


def _family_settings(
    family: str, *, attention_bias: bool = False, deepstack: Sequence[int] = (0, 2)
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What distinguishes the families: settings of the language model, and of the tower."""
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": 100.0,  # small: every frequency turns within a short prompt
        "mrope_section": [4, 2, 2],
    }
    text: dict[str, Any] = {"rope_parameters": rope}
    if family == "qwen2_vl":
        return text, {"embed_dim": 48, "mlp_ratio": 2, "hidden_size": 64}
    vision: dict[str, Any] = {"hidden_size": 48, "intermediate_size": 80, "out_hidden_size": 64}
    if family == "qwen2_5_vl":
        # Windows of 3 x 3 tokens: the side is no multiple of a token's.
        return text, vision | {"window_size": 3 * STEP + PATCH, "fullatt_block_indexes": [1]}
    rope["mrope_interleaved"] = True
    text |= {"head_dim": 16, "attention_bias": attention_bias}
    return text, vision | {
        "num_position_embeddings": 25,
        "deepstack_visual_indexes": list(deepstack),
    }


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Fills every parameter: norms around 1, biases around 0, matrices so that outputs are about as wide as inputs."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                parameter.copy_(noise * 0.3)
            elif parameter.ndim == 1:
                parameter.copy_(1 + noise * 0.3)
            elif "embed_tokens" in name or "lm_head" in name or "pos_embed" in name:
                parameter.copy_(noise * 0.4)
            else:
                parameter.copy_(noise * 1.2 * parameter[0].numel() ** -0.5)


def image_processor() -> Qwen2VLImageProcessorPil:
    """The processor whose settings stand in the checkpoint."""
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        merge_size=MERGE,
        temporal_patch_size=2,
        size={"shortest_edge": 4 * STEP * STEP, "longest_edge": 400 * STEP * STEP},
        image_mean=[0.5, 0.45, 0.4],
        image_std=[0.5, 0.25, 0.3],
    )


def reference_model(directory: Path) -> torch.nn.Module:
    """transformers' model of the checkpoint, float32."""
    return AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32).eval()


def image(rows: int, columns: int, seed: int) -> np.ndarray:
    """A random image [rows * STEP, columns * STEP, 3] uint8: rows x columns image tokens, no resizing needed."""
    shape = (rows * STEP, columns * STEP, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@dataclass(frozen=True)
class Clip:
    """A video that stands in one piece: frames [F, H, W, 3], and the time step of its positions."""

    frames: np.ndarray
    time_step: float = 1.0


Seen = np.ndarray | Clip
Layout = Sequence[int | Seen]


def clip(rows: int, columns: int, frames: int, seed: int, time_step: float = 1.0) -> Clip:
    """Random frames, rows x columns tokens each time."""
    parts = [image(rows, columns, seed + 1000 * i) for i in range(frames)]
    return Clip(np.stack(parts), time_step)


def frames_of(seen: Seen) -> np.ndarray:
    """[F, H, W, 3]; an image is one frame."""
    return seen.frames if isinstance(seen, Clip) else seen[None]


def grid_of(seen: Seen) -> tuple[int, int, int]:
    """(times, rows, columns) in patches."""
    frames, height, width, _ = frames_of(seen).shape
    return -(-frames // 2), height // PATCH, width // PATCH


def span_of(seen: Seen, start: int, pixel_offset: int) -> ImageSpan:
    """Where an image or video stands; its key is its content."""
    frames, grid = frames_of(seen), grid_of(seen)
    time_step = seen.time_step if isinstance(seen, Clip) else 1.0
    return ImageSpan(
        key=sha256(repr((frames.shape, time_step)).encode() + frames.tobytes()).digest(),
        start=start,
        num_tokens=grid[0] * grid[1] * grid[2] // MERGE**2,
        grid=grid,
        height=frames.shape[1],
        width=frames.shape[2],
        pixel_offset=pixel_offset,
        frames=len(frames),
        time_step=time_step,
    )


def placeholder_of(seen: Seen) -> int:
    """The token that stands for it."""
    return VIDEO_TOKEN if isinstance(seen, Clip) else IMAGE_TOKEN


def prompt(layout: Layout, seed: int = 0) -> tuple[list[int], tuple[ImageSpan, ...]]:
    """Token ids and spans: an int stands for so many random text tokens, an array or clip for itself."""
    rng = np.random.default_rng(seed)
    ids: list[int] = []
    spans: list[ImageSpan] = []
    for item in layout:
        if isinstance(item, int):
            ids += rng.integers(0, IMAGE_TOKEN, item).tolist()
            continue
        spans.append(span_of(item, len(ids) + 1, sum(span.pixel_bytes for span in spans)))
        ids += [VISION_START, *[placeholder_of(item)] * spans[-1].num_tokens, VISION_END]
    return ids, tuple(spans)


def reference_inputs(token_ids: torch.Tensor, seen: Sequence[Seen]) -> dict[str, Any]:
    """What transformers' models take beside the ids [1, T]; nothing must need resizing."""
    if not seen:
        return {}
    extra: dict[str, Any] = {
        "mm_token_type_ids": (token_ids == IMAGE_TOKEN) + 2 * (token_ids == VIDEO_TOKEN).int()
    }
    images = [item for item in seen if not isinstance(item, Clip)]
    if images:
        extra["pixel_values"] = torch.cat([reference_patches(item) for item in images])
        extra["image_grid_thw"] = torch.tensor([grid_of(item) for item in images])
    clips = [item for item in seen if isinstance(item, Clip)]
    if clips:
        extra["pixel_values_videos"] = torch.cat([reference_patches(item) for item in clips])
        extra["video_grid_thw"] = torch.tensor([grid_of(item) for item in clips])
    return extra


def reference_patches(seen: Seen) -> torch.Tensor:
    """By the processor of images, which repeats each: of a pair of frames the halves of both are taken."""
    frames = list(frames_of(seen))
    frames += frames[-1:] * (len(frames) % 2)
    processed = image_processor()(images=frames, do_resize=False, input_data_format="channels_last")
    patches = torch.from_numpy(np.asarray(processed["pixel_values"]))
    pairs = patches.view(len(frames) // 2, 2, -1, 3, 2, PATCH * PATCH)
    return torch.stack([pairs[:, 0, :, :, 0], pairs[:, 1, :, :, 1]], dim=3).flatten(2).flatten(0, 1)


def published_positions(ids: Sequence[int], seen: Sequence[Seen]) -> torch.Tensor:
    """[3, 1, T] by the rule the models were trained with: what follows goes on behind the greatest position."""
    columns: list[tuple[int, int, int]] = []
    waiting = iter(seen)
    token = 0
    while token < len(ids):
        first = max(max(column) for column in columns) + 1 if columns else 0
        if ids[token] not in {IMAGE_TOKEN, VIDEO_TOKEN}:
            columns.append((first, first, first))
            token += 1
            continue
        item = next(waiting)
        times, rows, across = grid_of(item)
        step = item.time_step if isinstance(item, Clip) else 1.0
        columns += [
            (first + time, first + row, first + column)
            for time in (torch.arange(times) * step).long().tolist()
            for row in range(rows // MERGE)
            for column in range(across // MERGE)
        ]
        token = len(columns)
    return torch.tensor(columns).T[:, None]


def reference_logits(model: Any, ids: Sequence[int], seen: Sequence[Seen]) -> torch.Tensor:
    """[T, vocab] of one sequence; nothing must need resizing."""
    token_ids = torch.tensor([list(ids)])
    extra = reference_inputs(token_ids, seen)
    if any(isinstance(item, Clip) for item in seen):
        extra["position_ids"] = published_positions(ids, seen)
    with torch.inference_mode():
        model.model.rope_deltas = None
        return model(input_ids=token_ids, use_cache=False, **extra).logits[0]
