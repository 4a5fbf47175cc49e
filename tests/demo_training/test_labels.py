"""What the vision tower is taught about an image."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from demo_training.labels import CHARACTERS, NOTHING, UNLABELLED, hundredths, label
from demo_training.lettering import fit
from demo_training.palette import COLOURS, KINDS
from demo_training.scenes import Scene
from demo_training.shapes import make_shape


WHITE = (255, 255, 255)


def scene(*, shapes=(), words=()):
    ground = (WHITE, WHITE)
    return Scene(256, 256, ground, False, 0.0, False, None, None, tuple(shapes), tuple(words))


def star(left, top):
    return make_shape(Random(0), "star", "blue", (0, 0, 255), (left, top, left + 64, top + 64))


def test_a_shape_is_known_where_its_middle_is():
    # In an image seen at half the size the middle is at (48, 16): second block, lower left patch.
    labels = label(scene(shapes=[star(64, 0)]), (128, 128))

    [index] = np.flatnonzero(labels.shapes[:, 0] > NOTHING)
    assert index == 7
    assert labels.shapes[index].tolist() == [KINDS.index("star") + 1, 2, 0, 2, 0, 5, 2]
    assert labels.boxes[index].tolist() == pytest.approx([0.25, 0.0, 0.5, 0.25])
    assert list(COLOURS)[2] == "blue"
    assert (labels.shapes[:7, 1:] == UNLABELLED).all()


def test_characters_are_known_from_left_to_right():
    word = fit(Random(1), "AB7", "red", (255, 0, 0), (0, 64, 256, 192))

    labels = label(scene(words=[word]), (128, 128))

    found = labels.characters[labels.characters[..., 0] > NOTHING]
    by_order = sorted(found.tolist(), key=lambda values: values[2])
    assert [CHARACTERS[values[0] - 1] for values in by_order] == ["A", "B", "7"]
    assert [values[2] for values in by_order] == [0, 1, 2]


def test_among_many_shapes_none_has_a_number():
    many = [star(left, top) for top in (0, 128) for left in (0, 64, 128)]

    labels = label(scene(shapes=many), (128, 128))

    assert (labels.shapes[:, 0] > NOTHING).sum() == len(many)
    assert (labels.shapes[:, 2] == UNLABELLED).all()


def test_boxes_stay_inside_the_image():
    assert hundredths((-5.0, 0.0, 260.0, 128.0), scene()) == (0, 0, 100, 50)
