"""Generates random scenes of coloured shapes and printed words for the demo model, with their ground truth.

The same seed gives the same scene.
"""

from __future__ import annotations

from dataclasses import dataclass
import math
from random import Random

from demo_training.lettering import PILLOW_ONLY, Fonts, Word, fit, invent_text
from demo_training.palette import COLOURS, KINDS, Rgb


Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape; lengths in pixels of its scene.

    Attributes:
        kind: One of `palette.KINDS`.
        colour: Name of its colour, one of `palette.COLOURS`.
        rgb: The colour.
        cx: Centre of its box, from the left.
        cy: Centre of its box, from the top.
        width: Width of its box.
        height: Height of its box.
        corners: Its corners as (x, y); empty for a circle.
    """

    kind: str
    colour: str
    rgb: Rgb
    cx: float
    cy: float
    width: float
    height: float
    corners: tuple[tuple[float, float], ...]

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom in pixels of the scene."""
        return (
            self.cx - self.width / 2,
            self.cy - self.height / 2,
            self.cx + self.width / 2,
            self.cy + self.height / 2,
        )


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


def _clip(value: float) -> int:
    return max(0, min(255, round(value)))


def shade(random: Random, colour: str) -> Rgb:
    """A value of `colour`: one of `COLOURS` in a third of the cases, else near one."""
    r, g, b = random.choice(COLOURS[colour])
    if random.random() < 0.33:
        return r, g, b
    if colour in ("gray", "black"):
        delta, jitter = random.uniform(-10, 12), 3.0
    else:
        delta, jitter = random.uniform(-8, 8), 9.0
    return (
        _clip(r + delta + random.gauss(0, jitter)),
        _clip(g + delta + random.gauss(0, jitter)),
        _clip(b + delta + random.gauss(0, jitter)),
    )


def _background(random: Random) -> tuple[Rgb, Rgb]:
    """The two ends of a gradient; usually the same colour."""
    draw = random.random()
    if draw >= 0.90:
        low = 150 if random.random() < 0.75 else 30
        return _any_colour(random, low), _any_colour(random, low)
    plain = _plain_background(random, draw)
    return plain, plain


def _any_colour(random: Random, low: int) -> Rgb:
    return random.randint(low, 255), random.randint(low, 255), random.randint(low, 255)


def _plain_background(random: Random, draw: float) -> Rgb:
    """White, light, pastel, dark, any colour, or gray, depending on `draw` (0 to 0.9)."""
    if draw < 0.48:
        return 255, 255, 255
    if draw < 0.66:
        base = random.randint(215, 255)
        return _clip(base + random.randint(-12, 12)), base, _clip(base + random.randint(-12, 12))
    if draw < 0.74:
        return _any_colour(random, 180)
    if draw < 0.80:
        base = random.choice((0, 0, random.randint(10, 60)))
        return base, _clip(base + random.randint(-8, 8)), _clip(base + random.randint(-8, 20))
    if draw < 0.86:
        return _any_colour(random, 0)
    return (random.randint(170, 225),) * 3


def _stands_out(rgb: Rgb, background: tuple[Rgb, Rgb]) -> bool:
    """Whether a colour is clearly visible on a background."""
    for end in background:
        difference = sum(abs(a - b) for a, b in zip(rgb, end, strict=True))
        if difference < 110:
            return False
    return True


def _star(points: int, inner: float) -> list[tuple[float, float]]:
    corners = []
    for i in range(2 * points):
        radius = 1.0 if i % 2 == 0 else inner
        angle = math.pi * i / points
        corners.append((radius * math.sin(angle), -radius * math.cos(angle)))
    return corners


def _unit_corners(random: Random, kind: str) -> list[tuple[float, float]]:
    """Corners around the origin, before scaling; empty for a circle."""
    turn = 0.0
    if kind == "square":
        corners = [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]
        draw = random.random()
        turn = 0.0 if draw < 0.78 else random.uniform(-20, 20) if draw < 0.94 else 45.0
    elif kind == "triangle":
        draw = random.random()
        corners = [(0.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]
        if draw < 0.13:  # upside down
            corners = [(0.0, 1.0), (1.0, -1.0), (-1.0, -1.0)]
        elif draw < 0.25:  # a right angle
            corners = random.choice(
                (
                    [(-1.0, -1.0), (-1.0, 1.0), (1.0, 1.0)],
                    [(1.0, -1.0), (-1.0, 1.0), (1.0, 1.0)],
                    [(-1.0, -1.0), (1.0, -1.0), (-1.0, 1.0)],
                    [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0)],
                )
            )
        elif draw < 0.45:
            turn = random.uniform(-180, 180)
    elif kind == "star":
        corners = _star(6 if random.random() < 0.05 else 5, random.uniform(0.36, 0.52))
        turn = random.uniform(-36, 36) if random.random() < 0.3 else 0.0
    else:
        return []
    sin, cos = math.sin(math.radians(turn)), math.cos(math.radians(turn))
    return [(x * cos - y * sin, x * sin + y * cos) for x, y in corners]


def make_shape(
    random: Random,
    kind: str,
    colour: str,
    rgb: Rgb,
    box: tuple[float, float, float, float],
) -> Shape:
    """A shape that fills `box` exactly (left, top, right, bottom)."""
    left, top, right, bottom = box
    corners = _unit_corners(random, kind)
    if corners:
        xs, ys = [x for x, _ in corners], [y for _, y in corners]
        sx, sy = (right - left) / (max(xs) - min(xs)), (bottom - top) / (max(ys) - min(ys))
        corners = [(left + (x - min(xs)) * sx, top + (y - min(ys)) * sy) for x, y in corners]
    return Shape(
        kind,
        colour,
        rgb,
        (left + right) / 2,
        (top + bottom) / 2,
        right - left,
        bottom - top,
        tuple(corners),
    )


def _place(random: Random, count: int, width: float, height: float) -> list[Box]:
    """Boxes that do not touch: in a row, a column, quarters, or anywhere."""
    draw = random.random()
    side = min(width, height)
    if count == 1:
        size = side * (random.uniform(0.35, 0.92) if draw < 0.75 else random.uniform(0.15, 0.4))
        if random.random() < 0.5:  # single shapes are often centred
            cx, cy = width / 2, height / 2
        else:
            cx = random.uniform(size / 2, width - size / 2)
            cy = random.uniform(size / 2, height - size / 2)
        return [_jittered(random, cx, cy, size)]
    if draw < 0.28 or (draw < 0.38 and width > 1.4 * height):
        return _in_line(random, count, width, height)
    if draw < 0.44:
        boxes = _in_line(random, count, height, width)
        return [(t, left, b, right) for left, t, right, b in boxes]
    if draw < 0.52:
        return _in_quarters(random, count, width, height)
    return _anywhere(random, count, width, height)


def _jittered(random: Random, cx: float, cy: float, size: float) -> Box:
    """A square box of `size`; in a quarter of the cases its sides are up to 12 % shorter."""
    w = h = size
    if random.random() < 0.25:
        w, h = size * random.uniform(0.88, 1.0), size * random.uniform(0.88, 1.0)
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2


def _in_line(random: Random, count: int, width: float, height: float) -> list[Box]:
    cell = width / count
    size = min(cell, height) * random.uniform(0.45, 0.92)
    same = random.random() < 0.6
    level = height / 2 if random.random() < 0.7 else random.uniform(size / 2, height - size / 2)
    return [
        _jittered(random, cell * (i + 0.5), level, size * (1 if same else random.uniform(0.6, 1)))
        for i in range(count)
    ]


def _in_quarters(random: Random, count: int, width: float, height: float) -> list[Box]:
    cells = random.sample([(x, y) for x in (0.25, 0.75) for y in (0.25, 0.75)], count)
    size = min(width, height) / 2 * random.uniform(0.5, 0.92)
    return [_jittered(random, x * width, y * height, size) for x, y in cells]


def _anywhere(random: Random, count: int, width: float, height: float) -> list[Box]:
    """Boxes by rejection sampling; sizes shrink until all fit."""
    side = min(width, height)
    apart = 0.06 * width if random.random() < 0.8 else 0.0
    top_size = {2: 0.62, 3: 0.5, 4: 0.42}[count]
    shrink = 1.0
    while True:
        boxes: list[Box] = []
        for _ in range(count):
            for _ in range(12):
                size = max(0.15, random.uniform(0.15, top_size) * shrink) * side
                cx = random.uniform(size / 2, width - size / 2)
                cy = random.uniform(size / 2, height - size / 2)
                box = _jittered(random, cx, cy, size)
                if all(_free(box, other, 0.02 * side, apart) for other in boxes):
                    boxes.append(box)
                    break
            else:
                break
        if len(boxes) == count:
            return boxes
        shrink *= 0.9
        apart *= 0.8


def _free(one: Box, two: Box, gap: float, apart: float) -> bool:
    separate = (
        one[2] + gap < two[0]
        or two[2] + gap < one[0]
        or one[3] + gap < two[1]
        or two[3] + gap < one[1]
    )
    return separate and abs(one[0] + one[2] - two[0] - two[2]) / 2 >= apart


def _colours_on(random: Random, background: tuple[Rgb, Rgb], count: int) -> list[tuple[str, Rgb]]:
    """Colours that are visible on a background; usually all different."""
    names = list(COLOURS)
    distinct = random.random() < 0.75
    chosen: list[tuple[str, Rgb]] = []
    for _ in range(60):
        if len(chosen) == count:
            break
        name = random.choice(names)
        rgb = shade(random, name)
        if _stands_out(rgb, background) and not (distinct and any(name == c for c, _ in chosen)):
            chosen.append((name, rgb))
    return chosen


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
    background = _background(random)
    things = max(count + word, 1)
    colours = _colours_on(random, background, things)
    if len(colours) < things:  # too few colours are visible on this background
        background = ((255, 255, 255), (255, 255, 255))
        colours = _colours_on(random, background, things)
        colours += [("red", (255, 0, 0))] * (things - len(colours))
    shapes_room, word_room = _rooms(random, width, height, shared=word and count > 0)
    printed = None
    if word:
        printed = fit(random, invent_text(random), *colours.pop(), word_room, fonts=fonts)
    shapes = [
        make_shape(random, random.choice(KINDS), name, rgb, box)
        for (name, rgb), box in zip(colours, _boxes(random, count, shapes_room), strict=False)
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
    background = _background(random)
    shapes, words = [], []
    for left, top, right, bottom in _cells(random, width, height):
        room = (left + 1, top + 1, right - 1, bottom - 1)
        draw = random.random()
        if draw < 0.08:
            continue
        [(colour, rgb), *_] = [*_colours_on(random, background, 1), ("red", (255, 0, 0))]
        wide = (right - left) / (bottom - top)
        if draw < 0.4 and wide < 2:
            [box] = _boxes(random, 1, room)
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


def _cells(random: Random, width: int, height: int) -> list[Box]:
    """Cells: squares of equal size, or lines."""
    if random.random() < 0.5:
        columns, rows = random.choice(((1, 2), (1, 3), (1, 4), (1, 5), (2, 5)))
    else:
        side = min(width, height) / random.choice((2, 3, 3, 4, 4))
        columns, rows = max(1, int(width / side)), max(1, int(height / side))
    w, h = width / columns, height / rows
    return [(c * w, r * h, (c + 1) * w, (r + 1) * h) for r in range(rows) for c in range(columns)]


def _rooms(random: Random, width: int, height: int, *, shared: bool) -> tuple[Box, Box]:
    """The areas of shapes and of a word: each the whole image, or a band."""
    if not shared:
        return (0, 0, width, height), (0.02 * width, 0.02 * height, 0.98 * width, 0.98 * height)
    border = height * random.uniform(0.3, 0.45)
    upper, lower = (0, 0, width, border), (0, border, width, height)
    upper_is_word = random.random() < 0.5
    if not upper_is_word:
        upper, lower = (0, 0, width, height - border), (0, height - border, width, height)
    shapes, word = (lower, upper) if upper_is_word else (upper, lower)
    inset = 0.02 * width
    return shapes, (inset, word[1] + inset, width - inset, word[3] - inset)


def _boxes(random: Random, count: int, room: Box) -> list[Box]:
    """Boxes of shapes in a part of the image."""
    if not count:
        return []
    left, top, right, bottom = room
    boxes = _place(random, count, right - left, bottom - top)
    return [(left + a, top + b, left + c, top + d) for a, b, c, d in boxes]
