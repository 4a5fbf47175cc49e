"""Every tower, cut into pieces of a few rows, gives what it gives in one piece, and no piece is larger than allowed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import accumulate
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
from inference_service.kernels.ops import REFERENCE
from inference_service.kernels.packed import parts_of
from inference_service.kernels.pieces import TowerInPieces
from inference_service.kernels.varlen import varlen_attention


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
PACKING = replace(REFERENCE, varlen_attention=partial(varlen_attention))
"""As on a GPU: attention within segments of different lengths is one call."""
SIZES = [(1, 4, 6), (2, 8, 4), (1, 2, 2), (1, 8, 10)]
SQUARES = [(1, 8, 8)] * 3

QWEN2 = QwenVisionSpec(**QWEN)
QWEN25 = Qwen25VisionSpec(**QWEN, window_size=8, full_attention_layers=(1,))
QWEN3 = Qwen3VisionSpec(**QWEN, position_table_side=6, deepstack_layers=(0, 1))

TOWERS: dict[str, tuple[TowerInPieces, list[tuple[int, int, int]]]] = {
    "qwen2-vl": (qwen2_vl.VisionTower(QWEN2), SIZES),
    "qwen2-vl packed": (qwen2_vl.VisionTower(QWEN2, PACKING), SIZES),
    "qwen2.5-vl": (qwen2_5_vl.VisionTower(QWEN25), SIZES),
    "qwen2.5-vl packed": (qwen2_5_vl.VisionTower(QWEN25, PACKING), SIZES),
    "qwen3-vl": (qwen3_vl.VisionTower(QWEN3), SIZES),
    "qwen3-vl packed": (qwen3_vl.VisionTower(QWEN3, PACKING), SIZES),
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


@pytest.mark.parametrize("family", ["qwen2-vl", "qwen2.5-vl", "qwen3-vl"])
@pytest.mark.parametrize("flop", [1e12, 3e4])
def test_packed_images_give_what_each_gives_alone(
    monkeypatch: pytest.MonkeyPatch, family: str, flop: float
) -> None:
    """Alone and without packing, which is the path of a CPU."""
    monkeypatch.setattr(pieces, "PIECE_FLOP", {"cpu": flop})
    (plain, grids), (packing, _) = TOWERS[family], TOWERS[f"{family} packed"]
    generator = torch.Generator().manual_seed(1)
    for parameter in plain.parameters():
        parameter.data.normal_(0, 0.2, generator=generator)
    packing.load_state_dict(plain.state_dict())
    # A frame of 7 x 5 windows, of which those at the edges are smaller.
    grids = [*grids, (1, 26, 18)]
    patches = [torch.randn(t * h * w, 24, generator=generator) for t, h, w in grids]
    with torch.inference_mode():
        together = packing(patches, grids)
        alone = [plain([image], [grid])[0] for image, grid in zip(patches, grids, strict=True)]
    for found, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("flop", [1, 3e4, 2e5, 1e12])
@pytest.mark.parametrize("lengths", [[5], [1, 1, 1], [64, 3, 17, 64, 9], [200, 4], [4, 200]])
def test_parts_cover_all_rows_once(monkeypatch, lengths: list[int], flop: float) -> None:
    monkeypatch.setattr(pieces, "PIECE_FLOP", {"cpu": flop})
    parts = parts_of(lengths, 16, torch.device("cpu"))
    ends = list(accumulate(lengths))
    assert [part.rows.start for part in parts] == [0, *(part.rows.stop for part in parts[:-1])]
    assert parts[-1].rows.stop == ends[-1]
    for part in parts:
        spans = part.spans
        asking, asked = spans.query_start.diff(), spans.key_start.diff()
        assert (int(asking.max()), int(asked.max())) == (spans.max_queries, spans.max_keys)
        assert part.rows.stop - part.rows.start == int(asking.sum())
        assert part.keys.stop - part.keys.start == int(asked.sum())
        # Keys are whole segments, and queries are of them.
        assert {part.keys.start, part.keys.stop} <= {0, *ends}
        assert part.keys.start <= part.rows.start < part.rows.stop <= part.keys.stop
        cost = sum(
            rows * pieces.flop_of_row(16, keys)
            for rows, keys in zip(asking.tolist(), asked.tolist(), strict=True)
        )
        assert cost <= flop or part.rows.stop - part.rows.start == 1


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
