"""Generates random scenes of coloured shapes and printed words for the demo model, with their ground truth.

The same seed gives the same scene.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from demo_training.colouring import any_background, colours_on
from demo_training.lettering import PILLOW_ONLY, Fonts, Word, fit, invent_text
from demo_training.palette import KINDS, Rgb
from demo_training.placing import boxes_in, cells, rooms
from demo_training.shapes import Shape, make_shape


@dataclass(frozen=True, slots=True)
class Scene:
    """The content of an image.

    Attributes:
        width: In pixels.
        height: In pixels.
        background: The colours at the ends of a gradient; usually the same.
        upright_gradient: Whether it runs from top to bottom, else from left to right.
        noise: Standard deviation of the noise on each value of each pixel, 0 to 255.
        smooth: Whether edges are smoothed.
        outline: Colour of the line around shapes.
        jpeg_quality: Quality of JPEG compression, 1 to 95; None = no compression.
        shapes: From left to right.
        words: The printed words.
    """

    width: int
    height: int
    background: tuple[Rgb, Rgb]
    upright_gradient: bool
    noise: float
    smooth: bool
    outline: Rgb | None
    jpeg_quality: int | None
    shapes: tuple[Shape, ...]
    words: tuple[Word, ...] = ()

    @property
    def word(self) -> Word | None:
        """The printed word; a scene with questions has at most one."""
        return self.words[0] if self.words else None


def invent(
    random: Random,
    width: int,
    height: int,
    count: int | None = None,
    *,
    word: bool = False,
    fonts: Fonts = PILLOW_ONLY,
) -> Scene:
    """A scene with `count` shapes (0 to 4, random if not given), and a word if `word` is true."""
    if count is None:
        count = random.choices((0, 1, 2, 3, 4), (0.015, 0.205, 0.3, 0.26, 0.22))[0]
    background = any_background(random)
    things = max(count + word, 1)
    colours = colours_on(random, background, things)
    if len(colours) < things:  # too few colours are visible on this background
        background = ((255, 255, 255), (255, 255, 255))
        colours = colours_on(random, background, things)
        colours += [("red", (255, 0, 0))] * (things - len(colours))
    shapes_room, word_room = rooms(random, width, height, shared=word and count > 0)
    printed = None
    if word:
        printed = fit(random, invent_text(random), *colours.pop(), word_room, fonts=fonts)
    shapes = [
        make_shape(random, random.choice(KINDS), name, rgb, box)
        for (name, rgb), box in zip(colours, boxes_in(random, count, shapes_room), strict=False)
    ]
    shapes.sort(key=lambda shape: (shape.cx, shape.cy))
    quality = random.randint(40, 95) if random.random() < 0.15 else None
    outlined = background[0][1] > 150 and random.random() < 0.07
    return Scene(
        width,
        height,
        background,
        random.random() < 0.5,
        random.uniform(2, 14) if random.random() < 0.08 else 0.0,
        random.random() < 0.6,
        (0, 0, 0) if outlined else None,
        quality,
        tuple(shapes),
        (printed,) if printed else (),
    )


def invent_collage(random: Random, width: int, height: int, *, fonts: Fonts = PILLOW_ONLY) -> Scene:
    """A scene full of shapes and words in the cells of a grid, without questions."""
    background = any_background(random)
    shapes, words = [], []
    for left, top, right, bottom in cells(random, width, height):
        room = (left + 1, top + 1, right - 1, bottom - 1)
        draw = random.random()
        if draw < 0.08:
            continue
        [(colour, rgb), *_] = [*colours_on(random, background, 1), ("red", (255, 0, 0))]
        wide = (right - left) / (bottom - top)
        if draw < 0.4 and wide < 2:
            [box] = boxes_in(random, 1, room)
            shapes.append(make_shape(random, random.choice(KINDS), colour, rgb, box))
        else:
            longest = random.choice((1, 1, 2, 3) if wide < 2 else (3, 4, 6, 8))
            text = invent_text(random)[:longest]
            words.append(fit(random, text, colour, rgb, room, fonts=fonts))
    quality = random.randint(40, 95) if random.random() < 0.15 else None
    noise = random.uniform(2, 14) if random.random() < 0.08 else 0.0
    smooth, upright = random.random() < 0.6, random.random() < 0.5
    return Scene(
        width,
        height,
        background,
        upright,
        noise,
        smooth,
        None,
        quality,
        tuple(shapes),
        tuple(words),
    )
