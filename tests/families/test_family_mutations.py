"""The comparison with transformers can fail: every error that has been seen in such models breaks it plainly."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.functional import gelu

from inference_service.families.qwen2_5_vl import vision as qwen2_5_vl
from inference_service.families.qwen2_vl import vision as qwen2_vl
from inference_service.families.qwen3_vl import vision as qwen3_vl
from inference_service.families.qwen_common import vision as vision_parts
from inference_service.families.qwen_common.positions import mrope_positions
from inference_service.models.preprocess import Patchifier
from tests.support.paged_forward import PagedForward
from tests.support.tiny_qwen_vl import (
    FAMILIES,
    MERGE,
    Clip,
    Layout,
    build_checkpoint,
    clip,
    image,
    prompt,
    reference_logits,
    reference_model,
)


IMAGES = [image(2, 3, 1), image(2, 3, 2), image(3, 7, 3)]
LAYOUT: Layout = [5, IMAGES[0], 3, IMAGES[1], 4, IMAGES[2], 8]
BROKEN = 1e-3  # ten times the tolerance of the comparison


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory):
    return build_checkpoint(tmp_path_factory.mktemp(request.param), family=request.param)


@pytest.fixture(scope="module")
def reference(checkpoint):
    return reference_model(checkpoint)


@pytest.fixture(scope="module")
def expected(reference):
    ids, _ = prompt(LAYOUT)
    return reference_logits(reference, ids, IMAGES)


def error_of(model, expected, change: Callable | None = None, layout: Layout = LAYOUT) -> float:
    """Greatest difference of logits; `change` may alter the sequence after its images are encoded."""
    ids, spans = prompt(layout)
    engine = PagedForward(model)
    sequence = engine.add(ids, spans, [seen for seen in layout if not isinstance(seen, int)])
    if change:
        change(sequence)
    (logits,) = engine.step([(sequence, len(ids))])
    return (logits - expected).abs().max().item()


def test_without_mutation_nothing_breaks(model, expected):
    assert error_of(model, expected) < 1e-4


def test_every_tensor_matters(model, expected):
    """Zeroing any single parameter, each bias and each part of a fused projection among them, shows."""
    pieces = {}
    for name, parameter in model.named_parameters():
        parts = 3 if "qkv" in name else 2 if "gate_up" in name else 1
        for i, piece in enumerate(parameter.tensor_split(parts)):
            pieces[f"{name}[{i}]"] = piece
    silent = []
    for name, piece in pieces.items():
        kept = piece.clone()
        piece.zero_()
        if error_of(model, expected) < BROKEN:
            silent.append(name)
        piece.copy_(kept)
    assert silent == []
    assert error_of(model, expected) < 1e-4


LAYERS = "decoder.layers"
BLOCKS = "visual.blocks"
NORM = "input_layernorm.weight"
SWAPS = [
    *(
        (family, *pair)
        for family in FAMILIES
        for pair in [
            (f"{LAYERS}.1.{NORM}", f"{LAYERS}.1.post_attention_layernorm.weight"),
            (f"{LAYERS}.0.{NORM}", f"{LAYERS}.2.{NORM}"),
            ("decoder.norm.weight", f"{LAYERS}.2.{NORM}"),
            (f"{BLOCKS}.1.norm1.weight", f"{BLOCKS}.1.norm2.weight"),
            (f"{BLOCKS}.0.norm1.weight", f"{BLOCKS}.2.norm1.weight"),
            (f"{BLOCKS}.0.attn.proj.bias", f"{BLOCKS}.1.attn.proj.bias"),
        ]
    ),
    ("qwen2_vl", f"{BLOCKS}.1.norm1.bias", f"{BLOCKS}.1.norm2.bias"),
    ("qwen2_vl", f"{BLOCKS}.1.norm1.weight", "visual.merger.norm.weight"),
    ("qwen2_vl", f"{BLOCKS}.0.mlp.fc1.weight", f"{BLOCKS}.2.mlp.fc1.weight"),
    ("qwen2_5_vl", f"{BLOCKS}.1.norm1.weight", "visual.merger.norm.weight"),
    ("qwen2_5_vl", f"{BLOCKS}.0.mlp.down_proj.weight", f"{BLOCKS}.2.mlp.down_proj.weight"),
    ("qwen3_vl", f"{LAYERS}.0.self_attn.q_norm.weight", f"{LAYERS}.0.self_attn.k_norm.weight"),
    ("qwen3_vl", f"{BLOCKS}.1.norm1.bias", f"{BLOCKS}.1.norm2.bias"),
    (
        "qwen3_vl",
        "visual.deepstack_merger_list.0.norm.weight",
        "visual.deepstack_merger_list.1.norm.weight",
    ),
    (
        "qwen3_vl",
        "visual.merger.linear_fc1.weight",
        "visual.deepstack_merger_list.0.linear_fc1.weight",
    ),
]


@pytest.mark.parametrize(("checkpoint", "one", "other"), SWAPS, indirect=["checkpoint"])
def test_two_tensors_exchanged(one, other, model, expected):
    parameters = dict(model.named_parameters())
    kept = parameters[one].clone()
    parameters[one].copy_(parameters[other])
    parameters[other].copy_(kept)
    assert error_of(model, expected) > BROKEN


def swap_gate_and_up(model):
    weight = model.decoder.layers[1].mlp.gate_up_proj.weight
    weight.copy_(weight.roll(weight.shape[0] // 2, 0))


def swap_keys_and_values(model):
    weight = model.decoder.layers[1].self_attn.qkv_proj.weight
    q, k, v = weight.split([64, 32, 32])
    weight.copy_(torch.cat([q, v, k]))


@pytest.mark.parametrize("mutate", [swap_gate_and_up, swap_keys_and_values])
def test_fused_in_the_wrong_order(mutate, model, expected):
    mutate(model)
    assert error_of(model, expected) > BROKEN


def swap_vision_gate_and_up(model):
    weight = model.visual.blocks[1].mlp.gate_up_proj.weight
    weight.copy_(weight.roll(weight.shape[0] // 2, 0))


@pytest.mark.parametrize("checkpoint", ["qwen2_5_vl"], indirect=True)
def test_vision_mlp_fused_in_the_wrong_order(model, expected):
    swap_vision_gate_and_up(model)
    assert error_of(model, expected) > BROKEN


@pytest.mark.parametrize(
    "change",
    [
        {"sections": (2, 4, 2)},
        {"sections": (8, 0, 0)},
        {"theta": 500000.0},
        {"interleaved": None},
    ],
    ids=str,
)
def test_wrong_rope(change, model, expected):
    rope = model.decoder.spec.rope
    if "interleaved" in change:
        change = {"interleaved": not rope.interleaved}
    model.decoder.spec = dataclasses.replace(
        model.decoder.spec, rope=dataclasses.replace(rope, **change)
    )
    assert error_of(model, expected) > BROKEN


def drop_deepstack(sequence):
    sequence.image_embeddings = sequence.image_embeddings[:, :64]


def drop_last_deepstack_level(sequence):
    sequence.image_embeddings = sequence.image_embeddings[:, :128]


def exchange_deepstack_levels(sequence):
    token, first, second = sequence.image_embeddings.split(64, dim=1)
    sequence.image_embeddings = torch.cat([token, second, first], dim=1)


def exchange_two_images(sequence):
    first, second, rest = sequence.image_embeddings.split([6, 6, 21])
    sequence.image_embeddings = torch.cat([second, first, rest])


def move_an_image_by_one_token(sequence):
    sequence.image_rows = sequence.image_rows - 1


def transpose_an_image(sequence):
    tokens = sequence.image_embeddings[-21:]
    turned = tokens.view(3, 7, -1).transpose(0, 1).flatten(0, 1)
    sequence.image_embeddings = torch.cat([sequence.image_embeddings[:-21], turned])


def number_positions_as_text(sequence):
    sequence.positions = np.tile(np.arange(len(sequence.ids)), (3, 1))


def exchange_height_and_width(sequence):
    sequence.positions = sequence.positions[[0, 2, 1]]


@pytest.mark.parametrize(
    "change",
    [
        exchange_two_images,
        move_an_image_by_one_token,
        transpose_an_image,
        number_positions_as_text,
        exchange_height_and_width,
    ],
)
def test_images_put_in_wrongly(change, model, expected):
    assert error_of(model, expected, change) > BROKEN


@pytest.mark.parametrize("checkpoint", ["qwen3_vl"], indirect=True)
@pytest.mark.parametrize(
    "change", [drop_deepstack, drop_last_deepstack_level, exchange_deepstack_levels]
)
def test_deepstack_put_in_wrongly(change, model, expected):
    assert error_of(model, expected, change) > BROKEN


def exact_gelu(x, **_):
    return gelu(x)


def tanh_gelu(x, **_):
    return gelu(x, approximate="tanh")


def in_raster_order(rows, columns, _):
    index = torch.arange(rows * columns)
    return torch.stack((index // columns, index % columns))


def nearest_entries(self, index, _):
    entries = index.clamp(max=self._side - 1)
    return entries, entries, torch.zeros(index.shape)


def windows_of_patches(layout, vision):
    """The side not rounded down to whole tokens."""
    rows, columns = layout.places // (vision.window_size // vision.patch_size)
    return layout.frames * 100 + rows * 10 + columns


def one_window(layout, _):
    return layout.frames


def cut_without_merging(self, pixels, dtype):
    """Patches row by row, instead of those of a token together."""
    plain = Patchifier(dataclasses.replace(self._policy, merge_size=1), pixels.device)
    return CUT(plain, pixels, dtype)


CUT = Patchifier.pieces

MUTATIONS = {
    "vision theta": (FAMILIES, vision_parts, "VISION_ROPE_THETA", 1000.0),
    "patches in raster order": (FAMILIES, vision_parts, "patch_places", in_raster_order),
    "pixels in raster order": (FAMILIES, Patchifier, "pieces", cut_without_merging),
    "exact gelu": (["qwen3_vl"], qwen3_vl, "gelu", exact_gelu),
    "tanh gelu": (["qwen3_vl"], qwen3_vl, "gelu", tanh_gelu),
    "no interpolation": (["qwen3_vl"], qwen3_vl.PositionTable, "_neighbours", nearest_entries),
    "gelu in blocks": (["qwen2_vl"], qwen2_vl, "quick_gelu", gelu),
    "quick gelu in the merger": (["qwen2_vl"], vision_parts, "gelu", qwen2_vl.quick_gelu),
    "windows of patches": (["qwen2_5_vl"], qwen2_5_vl, "window_labels", windows_of_patches),
    "no windows": (["qwen2_5_vl"], qwen2_5_vl, "window_labels", one_window),
    "tanh gelu in the merger": (["qwen2_5_vl"], vision_parts, "gelu", tanh_gelu),
}


@pytest.mark.parametrize(
    ("checkpoint", "mutation"),
    [
        pytest.param(family, mutation, id=f"{family}, {name}")
        for name, (families, *mutation) in MUTATIONS.items()
        for family in families
    ],
    indirect=["checkpoint"],
)
def test_wrong_vision_arithmetic(mutation, model, expected, monkeypatch):
    monkeypatch.setattr(*mutation)
    assert error_of(model, expected) > BROKEN


@pytest.mark.parametrize("checkpoint", ["qwen2_5_vl"], indirect=True)
@pytest.mark.parametrize("layers", [(), (0,), (1, 2)])
def test_windows_in_the_wrong_blocks(layers, model, expected):
    model.visual.vision = dataclasses.replace(model.visual.vision, full_attention_layers=layers)
    assert error_of(model, expected) > BROKEN


def test_norm_epsilon(model, expected):
    for layer in model.decoder.layers:
        layer.input_layernorm.eps = layer.post_attention_layernorm.eps = 1e-2
    assert error_of(model, expected) > BROKEN


# Eleven frames of 3 x 2 tokens: time is the longest axis, though a step of it is no whole position.
VIDEO = clip(3, 2, 11, 4, time_step=1.3)
VIDEO_LAYOUT: Layout = [5, IMAGES[0], 2, VIDEO, 7]
VIDEO_TOKENS = 6 * 3 * 2


@pytest.fixture(scope="module")
def expected_of_video(reference):
    ids, _ = prompt(VIDEO_LAYOUT)
    return reference_logits(reference, ids, [IMAGES[0], VIDEO])


def test_without_mutation_a_video_is_right(model, expected_of_video):
    assert error_of(model, expected_of_video, layout=VIDEO_LAYOUT) < 1e-4


def whole_steps(sequence):
    sequence.positions = positions_with(1.0)


def no_time(sequence):
    sequence.positions = positions_with(0.0)


def steps_rounded_up(sequence):
    sequence.positions = positions_with(1.5)


def text_behind_rows_and_columns(sequence):
    """The rule of transformers since 5.3."""
    last = len(sequence.ids) - 8  # the video's end, and text
    sequence.positions[:, last:] += 3 - 7


def positions_with(time_step: float) -> np.ndarray:
    ids, spans = prompt([*VIDEO_LAYOUT[:3], dataclasses.replace(VIDEO, time_step=time_step), 7])
    return mrope_positions(len(ids), spans, MERGE)[0]


def exchange_times(sequence):
    """The video's tokens, latest first."""
    still, times = sequence.image_embeddings.split([6, VIDEO_TOKENS])
    sequence.image_embeddings = torch.cat([still, times.view(6, 6, -1).flip(0).flatten(0, 1)])


@pytest.mark.parametrize(
    "change", [whole_steps, no_time, steps_rounded_up, text_behind_rows_and_columns, exchange_times]
)
def test_a_video_put_in_wrongly(change, model, expected_of_video):
    assert error_of(model, expected_of_video, change, VIDEO_LAYOUT) > BROKEN


def exchange_frames_of_pairs(frames: np.ndarray) -> np.ndarray:
    order = np.arange(12).reshape(6, 2)[:, ::-1].flatten().clip(max=10)
    return frames[order]


def first_frame_of_each_pair(frames: np.ndarray) -> np.ndarray:
    return frames[::2].repeat(2, axis=0)


def black_behind_the_last(frames: np.ndarray) -> np.ndarray:
    return np.concatenate([frames, np.zeros_like(frames[:1])])


@pytest.mark.parametrize(
    "change", [exchange_frames_of_pairs, first_frame_of_each_pair, black_behind_the_last]
)
def test_wrong_frames(change, model, expected_of_video):
    layout = [*VIDEO_LAYOUT[:3], Clip(change(VIDEO.frames), VIDEO.time_step), 7]
    assert error_of(model, expected_of_video, layout=layout) > BROKEN


def test_frames_that_see_each_other(model, expected_of_video, monkeypatch):
    of = vision_parts.Layout.of

    def as_one_frame(grids, merge_size):
        layout = of(grids, merge_size)
        return dataclasses.replace(layout, frames=layout.frames.clamp(max=1))

    monkeypatch.setattr(vision_parts.Layout, "of", as_one_frame)
    assert error_of(model, expected_of_video, layout=VIDEO_LAYOUT) > BROKEN
