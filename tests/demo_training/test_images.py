"""The invented world: scenes, drawing, and preparation of images."""

from __future__ import annotations

from random import Random

import numpy as np
from PIL import Image
import pytest

from demo_training.images import (
    MAX_PIXELS,
    MIN_PIXELS,
    STEP,
    as_seen,
    draw_size,
    patches,
    render,
    smart_resize,
)
from demo_training.scenes import Scene, invent
from demo_training.shapes import Shape, make_shape
from inference_service.media import geometry


RED = (255, 0, 0)
WHITE = (255, 255, 255)


def scene_with(*shapes: Shape) -> Scene:
    return Scene(128, 128, (WHITE, WHITE), False, 0.0, False, None, None, shapes)


@pytest.mark.parametrize("seed", range(20))
def test_the_same_seed_gives_the_same_scene_and_pixels(seed):
    first, second = (invent(Random(seed), 150, 130) for _ in range(2))

    assert first == second
    assert np.array_equal(as_seen(render(first, 5)), as_seen(render(second, 5)))


def test_different_seeds_give_different_scenes():
    assert len({repr(invent(Random(seed), 128, 128)) for seed in range(50)}) > 45


@pytest.mark.parametrize("count", range(5))
def test_a_scene_has_the_shapes_that_were_asked_for(count):
    for seed in range(20):
        scene = invent(Random(seed), 128, 128, count)

        assert len(scene.shapes) == count
        assert list(scene.shapes) == sorted(scene.shapes, key=lambda s: (s.cx, s.cy))


def test_shapes_do_not_overlap():
    for seed in range(100):
        boxes = [shape.box for shape in invent(Random(seed), 160, 128).shapes]
        for index, (left, top, right, bottom) in enumerate(boxes):
            for other in boxes[:index]:
                apart = right < other[0] or other[2] < left or bottom < other[1] or other[3] < top
                assert apart, seed


@pytest.mark.parametrize("kind", ["circle", "square", "triangle", "star"])
def test_a_shape_is_drawn_in_its_colour_within_its_box(kind):
    shape = make_shape(Random(1), kind, "red", RED, (32.0, 40.0, 96.0, 104.0))

    pixels = np.asarray(render(scene_with(shape)))

    rows, columns = np.nonzero((pixels == RED).all(-1))
    assert len(rows) > 500
    assert tuple(pixels[72, 64]) == RED
    assert columns.min() >= 31
    assert columns.max() <= 97
    assert rows.min() >= 39
    assert rows.max() <= 105


def test_the_resize_is_that_of_the_serving_path():
    random = Random(0)
    for _ in range(2000):
        width, height = random.randint(20, 1500), random.randint(20, 1500)
        served = geometry.smart_resize(
            height, width, step=STEP, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS
        )

        assert smart_resize(width, height) == (served[1], served[0]), (width, height)


@pytest.mark.parametrize("target", [(128, 128), (160, 128), (96, 192)])
def test_drawn_sizes_are_seen_at_the_target(target):
    random = Random(3)

    sizes = [draw_size(random, target) for _ in range(300)]

    assert all(smart_resize(*size) == target for size in sizes)
    sides = [side for size in sizes for side in size]
    assert 64 <= min(sides) < 80
    assert 800 < max(sides) <= 1024


def test_patches_come_in_blocks_of_two_by_two():
    pixels = np.zeros((64, 96, 3), np.uint8)
    for row in range(4):
        for column in range(6):
            pixels[16 * row : 16 * row + 16, 16 * column : 16 * column + 16] = 10 * row + column

    rows = patches(pixels)

    assert rows.shape == (24, 768)
    assert rows[:8, 0].tolist() == [0, 1, 10, 11, 2, 3, 12, 13]
    assert (rows == rows[:, :1]).all()


def test_patches_are_channel_first():
    pixels = np.asarray(Image.new("RGB", (32, 32), (1, 2, 3)))

    row = patches(pixels)[0]

    assert [set(row[start : start + 256].tolist()) for start in (0, 256, 512)] == [{1}, {2}, {3}]
