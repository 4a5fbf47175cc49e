"""Positions equal `get_rope_index` of transformers."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import assume, given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
import torch

from inference_service.engine_protocol.messages import ImageSpan
from inference_service.families.qwen_common.positions import mrope_positions
from tests.support.tiny_qwen_vl import (
    FAMILIES,
    IMAGE_TOKEN,
    STEP,
    VIDEO_TOKEN,
    Clip,
    build_checkpoint,
    prompt,
    published_positions,
    reference_model,
)


MERGE = 2


def spans_of(layout):
    """Text lengths and image sizes (rows, columns in tokens) -> token types, spans."""
    types: list[int] = []
    spans = []
    for item in layout:
        if isinstance(item, int):
            types += [0] * item
            continue
        rows, columns = item
        # Adjacent images are parted by at least their own start and end tokens.
        types.append(0)
        spans.append(
            ImageSpan(
                key=b"",
                start=len(types),
                num_tokens=rows * columns,
                grid=(1, rows * MERGE, columns * MERGE),
                height=0,
                width=0,
                pixel_offset=0,
            )
        )
        types += [1] * (rows * columns)
    return types, spans


layouts = st.lists(
    st.one_of(st.integers(1, 30), st.tuples(st.integers(1, 9), st.integers(1, 9))),
    min_size=1,
    max_size=8,
)


@settings(max_examples=200, deadline=None)
@given(layout=layouts)
def test_equal_to_transformers(layout, reference):
    types, spans = spans_of(layout)
    grids = torch.tensor([span.grid for span in spans]) if spans else None
    expected, delta = reference.model.get_rope_index(
        torch.zeros(1, len(types), dtype=torch.int64), torch.tensor([types]), image_grid_thw=grids
    )
    positions, ours = mrope_positions(len(types), spans, MERGE)
    assert positions.dtype == np.int64
    assert np.array_equal(positions, expected[:, 0].numpy())
    assert ours == delta.item()


def test_text_counts_from_zero():
    positions, delta = mrope_positions(5, [], MERGE)
    assert positions.tolist() == [[0, 1, 2, 3, 4]] * 3
    assert delta == 0


def test_an_image_written_out():
    types, spans = spans_of([2, (2, 3), 2])
    positions, delta = mrope_positions(len(types), spans, MERGE)
    assert positions.tolist() == [
        [0, 1, 2, 3, 3, 3, 3, 3, 3, 6, 7],
        [0, 1, 2, 3, 3, 3, 4, 4, 4, 6, 7],
        [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7],
    ]
    assert delta == 8 - len(types)


videos = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), st.floats(0.01, 20))


@settings(max_examples=200, deadline=None)
@given(parts=st.lists(st.one_of(st.integers(1, 20), videos), min_size=1, max_size=6))
def test_videos_by_the_rule_of_training(parts):
    """The oracle is the rule written out token by token; transformers since 5.3 differs where time is longest."""
    layout = [
        part
        if isinstance(part, int)
        else Clip(np.zeros((2 * part[2] - 1, part[0] * STEP, part[1] * STEP, 3), np.uint8), part[3])
        for part in parts
    ]
    ids, spans = prompt(layout)
    seen = [part for part in layout if isinstance(part, Clip)]
    positions, delta = mrope_positions(len(ids), spans, MERGE)
    expected = published_positions(ids, seen)[:, 0].numpy()
    assert np.array_equal(positions, expected)
    assert delta == expected.max() + 1 - len(ids)


@pytest.fixture(scope="module", params=FAMILIES)
def family_reference(request, tmp_path_factory):
    return reference_model(
        build_checkpoint(tmp_path_factory.mktemp(request.param), family=request.param)
    )


@dataclass(frozen=True)
class Film:
    """A video: its size in tokens, its temporal patches, the seconds between two of them."""

    rows: int
    columns: int
    times: int
    seconds: float

    @property
    def grid(self) -> tuple[int, int, int]:
        return self.times, self.rows * MERGE, self.columns * MERGE

    def parts(self, family: str, per_second: float | None) -> list[Clip]:
        """What stands in a prompt: Qwen3-VL has every temporal patch by itself."""
        frame = np.zeros((1, self.rows * STEP, self.columns * STEP, 3), np.uint8)
        if family == "qwen3_vl":
            return [Clip(frame)] * self.times
        step = self.seconds * per_second if per_second else 1.0
        assume((self.times - 1) * step < max(self.rows, self.columns))
        return [Clip(frame.repeat(2 * self.times - 1, axis=0), step)]


films = st.builds(Film, st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.floats(0.01, 2))
sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=100, deadline=None)
@given(parts=st.lists(st.one_of(st.integers(1, 20), sizes, films), min_size=1, max_size=6))
def test_images_and_videos_equal_transformers(parts, family_reference):
    """Wherever no video is longer than it is wide or high: Qwen2-VL counts times, Qwen2.5-VL seconds."""
    config = family_reference.config
    per_second = getattr(config.vision_config, "tokens_per_second", None)
    shown = [part for part in parts if isinstance(part, tuple)]
    seen = [part for part in parts if isinstance(part, Film)]
    layout: list[int | np.ndarray | Clip] = []
    for part in parts:
        if isinstance(part, Film):
            layout += part.parts(config.model_type, per_second)
        elif isinstance(part, tuple):
            layout.append(np.zeros((part[0] * STEP, part[1] * STEP, 3), np.uint8))
        else:
            layout.append(part)
    ids, spans = prompt(layout)
    types = torch.tensor([[(i == IMAGE_TOKEN) + 2 * (i == VIDEO_TOKEN) for i in ids]])
    told = {"second_per_grid_ts": torch.tensor([film.seconds for film in seen])}
    expected, delta = family_reference.model.get_rope_index(
        torch.tensor([ids]),
        types,
        image_grid_thw=torch.tensor([(1, r * MERGE, c * MERGE) for r, c in shown] or [[0] * 3]),
        video_grid_thw=torch.tensor([film.grid for film in seen] or [[0] * 3]),
        **(told if per_second and seen else {}),
    )
    positions, ours = mrope_positions(len(ids), spans, MERGE)
    assert np.array_equal(positions, expected[:, 0].numpy())
    assert ours == delta.item()
