"""Every tower, cut into pieces of a few rows, gives what it gives in one piece, and no piece is larger than allowed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inference_service.families.glm_4v import vision as glm_4v
from inference_service.families.glm_4v.spec import GlmVisionSpec
from inference_service.families.qwen2_5_vl import vision as qwen2_5_vl
from inference_service.families.qwen2_5_vl.spec import Qwen25VisionSpec
from inference_service.families.qwen2_vl import vision as qwen2_vl
from inference_service.families.qwen3_vl import vision as qwen3_vl
from inference_service.families.qwen3_vl.spec import Qwen3VisionSpec
from inference_service.families.qwen_common.config import QwenVisionSpec
from inference_service.families.qwen_vl import vision as qwen_vl
from inference_service.families.qwen_vl.spec import QwenVLVisionSpec
from inference_service.kernels import pieces
from inference_service.kernels.pieces import TowerInPieces


QWEN: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_layers": 3,
    "num_heads": 2,
    "in_channels": 3,
    "patch_size": 2,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "output_size": 8,
}
GLM: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_layers": 3,
    "num_heads": 2,
    "norm_eps": 1e-6,
    "patch_size": 2,
    "patches_per_side": 8,
    "scaling_factor": 8.0,
    "output_size": 8,
    "adapter_size": 24,
}
V1: dict[str, Any] = {
    "width": 16,
    "intermediate_size": 24,
    "num_layers": 3,
    "num_heads": 2,
    "patch_size": 2,
    "patches_per_side": 8,
    "num_queries": 16,
    "output_size": 128,
    "position_table_side": 4,
}
SIZES = [(1, 4, 6), (2, 8, 4), (1, 2, 2), (1, 8, 10)]
SQUARES = [(1, 8, 8)] * 3

TOWERS: dict[str, tuple[TowerInPieces, list[tuple[int, int, int]]]] = {
    "qwen2-vl": (qwen2_vl.VisionTower(QwenVisionSpec(**QWEN)), SIZES),
    "qwen2.5-vl": (
        qwen2_5_vl.VisionTower(Qwen25VisionSpec(**QWEN, window_size=8, full_attention_layers=(1,))),
        SIZES,
    ),
    "qwen3-vl": (
        qwen3_vl.VisionTower(
            Qwen3VisionSpec(**QWEN, position_table_side=6, deepstack_layers=(0, 1))
        ),
        SIZES,
    ),
    "glm-4v": (glm_4v.VisionTower(GlmVisionSpec(**GLM)), SQUARES),
    "qwen-vl": (qwen_vl.VisionTower(QwenVLVisionSpec(**V1)), SQUARES),
}


@pytest.fixture(params=sorted(TOWERS))
def inputs(request: pytest.FixtureRequest) -> tuple[TowerInPieces, list, list]:
    tower, grids = TOWERS[request.param]
    generator = torch.Generator().manual_seed(1)
    for parameter in tower.parameters():
        parameter.data.normal_(0, 0.2, generator=generator)
    width = 24 if grids is SIZES else 12
    counts = [frames * rows * columns for frames, rows, columns in grids]
    patches = [torch.randn(count, width, generator=generator) for count in counts]
    return tower, patches, grids


def count_pieces(monkeypatch: pytest.MonkeyPatch, inputs: Any, flop: float) -> tuple[int, list]:
    monkeypatch.setattr(pieces, "PIECE_FLOP", {"cpu": flop})
    tower, patches, grids = inputs
    count = 0
    with torch.inference_mode():
        running = tower.pieces(patches, grids)
        while True:
            try:
                next(running)
            except StopIteration as end:
                return count, end.value
            count += 1


def test_pieces_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch, inputs: Any) -> None:
    count, whole = count_pieces(monkeypatch, inputs, 1e12)
    for flop in (1, 3e4, 2e5):
        more, found = count_pieces(monkeypatch, inputs, flop)
        assert more > count
        for image, expected in zip(found, whole, strict=True):
            torch.testing.assert_close(image, expected, atol=2e-5, rtol=2e-5)


def test_the_same_pieces_give_the_same_bits(monkeypatch: pytest.MonkeyPatch, inputs: Any) -> None:
    _, at_once = count_pieces(monkeypatch, inputs, 3e4)
    tower, patches, grids = inputs
    with torch.inference_mode():
        again = tower(patches, grids)
    assert all(map(torch.equal, again, at_once))


def test_no_product_is_larger_than_a_piece(monkeypatch: pytest.MonkeyPatch, inputs: Any) -> None:
    """The rows of a piece are bounded, of products and of attention; the queries of Qwen-VL's resampler are few."""
    tower, patches, grids = inputs
    rows: list[int] = []

    def keep(module: Any, given: Any) -> None:
        if given[0].shape[-1] == 16:
            rows.append(given[0].numel() // 16)

    monkeypatch.setattr(pieces, "PIECE_FLOP", {"cpu": 24 * 16**2 * 20})
    hooks = [
        part.register_forward_pre_hook(keep)
        for name, part in tower.named_modules()
        if ".mlp." in name or ".attn." in name or ".attention." in name
    ]
    with torch.inference_mode():
        tower(patches, grids)
    for hook in hooks:
        hook.remove()
    assert rows
    assert max(rows) <= 20
