"""Labels for the vision tower: the content of a scene at each patch of its image.

A shape is labelled at the patch of its centre, a printed character at its half of a patch: kind, colour, position in
reading order, and for a shape its box.
"""

from __future__ import annotations

from dataclasses import dataclass
import string

import numpy as np
import numpy.typing as npt

from demo_training.images import MERGE, PATCH, STEP
from demo_training.lettering import LONGEST, Box
from demo_training.palette import COLOURS, KINDS
from demo_training.scenes import Scene


UNLABELLED = -100  # ignored by torch's cross_entropy
NOTHING = 0
CHARACTERS = string.digits + string.ascii_letters
MAX_SHAPES = 4
HALVES = 2  # of a patch, left and right
NEAR = 2  # pixels from a border
GRID = 100  # boxes are in hundredths of the image's sides
TENS = GRID // 10 + 1

Labels = npt.NDArray[np.int64]

# The values of a patch, and how many classes each has.
SHAPE_CLASSES = (len(KINDS) + 1, len(COLOURS), MAX_SHAPES, *(TENS,) * 4)
CHARACTER_CLASSES = (len(CHARACTERS) + 1, len(COLOURS), LONGEST)


@dataclass(frozen=True, slots=True)
class SceneLabels:
    """Labels of one image.

    Attributes:
        shapes: [N, 7]: kind + 1 or NOTHING, colour, order, and tens of left, top, right, bottom in hundredths.
        boxes: [N, 4]: left, top, right, bottom as fractions of the image's sides; 0 without a shape.
        characters: [N, 2, 3]: character + 1 or NOTHING, colour, order.
    """

    shapes: Labels
    boxes: npt.NDArray[np.float32]
    characters: Labels


def hundredths(box: Box, scene: Scene) -> tuple[int, int, int, int]:
    """A box in hundredths of the image's sides, inside the image."""
    sides = (scene.width, scene.height, scene.width, scene.height)
    left, top, right, bottom = (
        max(0, min(GRID, round(GRID * at / side))) for at, side in zip(box, sides, strict=True)
    )
    return left, top, right, bottom


def _patch(x: float, y: float, size: tuple[int, int]) -> tuple[int, int]:
    """Index of the patch at a point (pixels of an image of that width and height), and its half."""
    width, height = size
    column = max(0, min(width // PATCH - 1, int(x // PATCH)))
    row = max(0, min(height // PATCH - 1, int(y // PATCH)))
    block = (row // MERGE) * (width // STEP) + column // MERGE
    index = block * MERGE**2 + (row % MERGE) * MERGE + column % MERGE
    return index, int(x - column * PATCH >= PATCH / HALVES)


def _places(x: float, y: float, size: tuple[int, int]) -> list[tuple[int, int]]:
    """The place of a point, followed by the places within NEAR pixels of it."""
    near = [(x + dx, y + dy) for dx in (-NEAR, NEAR) for dy in (-NEAR, NEAR)]
    return list(dict.fromkeys(_patch(*at, size) for at in [(x, y), *near]))


def label(scene: Scene, size: tuple[int, int]) -> SceneLabels:
    """Labels of the scene in an image of `size` (width, height) for the model.

    If two centres are in one place, the first one is kept. With more than MAX_SHAPES shapes, their order is UNLABELLED.
    A place next to a centre near its border is UNLABELLED, because the side of the border is ambiguous.
    """
    number = (size[0] // PATCH) * (size[1] // PATCH)
    shapes = np.full((number, len(SHAPE_CLASSES)), UNLABELLED)
    boxes = np.zeros((number, 4), np.float32)
    characters = np.full((number, HALVES, len(CHARACTER_CLASSES)), UNLABELLED)
    shapes[:, 0], characters[..., 0] = NOTHING, NOTHING
    x_scale, y_scale = size[0] / scene.width, size[1] / scene.height
    colours = list(COLOURS)
    ordered = len(scene.shapes) <= MAX_SHAPES
    for order, shape in enumerate(scene.shapes):
        places = _places(shape.cx * x_scale, shape.cy * y_scale, size)
        index = places[0][0]
        if shapes[index, 0] <= NOTHING:
            hundreds = hundredths(shape.box, scene)
            boxes[index] = np.array(hundreds) / GRID
            numbered = order if ordered else UNLABELLED
            kind, colour = KINDS.index(shape.kind) + 1, colours.index(shape.colour)
            shapes[index] = (kind, colour, numbered, *(at // 10 for at in hundreds))
            beside = [near for near, _ in places[1:] if shapes[near, 0] == NOTHING]
            shapes[beside, 0] = UNLABELLED
    for word in scene.words:
        colour = colours.index(word.colour)
        for order, (character, (x, y)) in enumerate(zip(word.text, word.centres, strict=True)):
            [place, *others] = _places(x * x_scale, y * y_scale, size)
            if characters[place][0] <= NOTHING:
                characters[place] = (CHARACTERS.index(character) + 1, colour, order)
                for near in others:
                    if characters[near][0] == NOTHING:
                        characters[near][0] = UNLABELLED
    return SceneLabels(shapes, boxes, characters)
