"""Invents scenes of coloured shapes and draws them: the demo model's whole visible world.

Owns what a scene holds (the ground truth), how it is drawn, and the resize that the serving path
also does. Knows nothing of questions, tokens or torch. Everything follows from the `Random` that is
passed in: the same seed gives the same scene and the same pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
import io
import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont


if TYPE_CHECKING:
    from random import Random

    import numpy.typing as npt


PATCH = 16
MERGE = 2
STEP = PATCH * MERGE
MIN_PIXELS = 15_360  # just under 128 x 128, so that rounding noise never lifts a square to 160
MAX_PIXELS = 24_576  # 128 x 192: a square becomes 128 x 128, 4:3 becomes 160 x 128

KINDS = ("circle", "square", "triangle", "star")

Rgb = tuple[int, int, int]

# Anchors are what other people's code writes: CSS names, Pillow names, and the usual UI palettes.
COLOURS: dict[str, tuple[Rgb, ...]] = {
    "red": (
        (255, 0, 0),
        (255, 0, 0),
        (220, 20, 60),
        (200, 0, 0),
        (230, 30, 30),
        (244, 67, 54),
        (220, 38, 38),
        (178, 34, 34),
        (231, 76, 60),
        (139, 0, 0),
        (255, 50, 50),
    ),
    "green": (
        (0, 128, 0),
        (0, 128, 0),
        (0, 255, 0),
        (0, 255, 0),
        (34, 139, 34),
        (0, 200, 0),
        (76, 175, 80),
        (46, 204, 113),
        (0, 160, 60),
        (50, 205, 50),
        (0, 100, 0),
        (22, 163, 74),
        (40, 180, 40),
    ),
    "blue": (
        (0, 0, 255),
        (0, 0, 255),
        (30, 60, 220),
        (33, 150, 243),
        (0, 0, 200),
        (65, 105, 225),
        (52, 152, 219),
        (37, 99, 235),
        (30, 144, 255),
        (0, 0, 139),
        (50, 50, 255),
        (0, 100, 255),
    ),
    "yellow": (
        (255, 255, 0),
        (255, 255, 0),
        (255, 215, 0),
        (255, 235, 59),
        (240, 220, 30),
        (250, 204, 21),
        (241, 196, 15),
        (255, 230, 0),
        (255, 220, 50),
    ),
    "black": ((0, 0, 0), (0, 0, 0), (20, 20, 20), (30, 30, 30), (10, 10, 10), (34, 34, 34)),
    "purple": (
        (128, 0, 128),
        (128, 0, 128),
        (155, 89, 182),
        (147, 51, 234),
        (102, 51, 153),
        (156, 39, 176),
        (138, 43, 226),
        (160, 32, 240),
        (150, 0, 200),
        (75, 0, 130),
    ),
    "orange": (
        (255, 165, 0),
        (255, 165, 0),
        (255, 140, 0),
        (255, 152, 0),
        (243, 156, 18),
        (249, 115, 22),
        (255, 127, 0),
        (230, 126, 34),
        (255, 120, 0),
    ),
    "gray": (
        (128, 128, 128),
        (128, 128, 128),
        (105, 105, 105),
        (158, 158, 158),
        (100, 100, 100),
        (149, 165, 166),
        (169, 169, 169),
        (120, 120, 120),
        (140, 140, 140),
    ),
}

WORDS = (
    "HELLO",
    "STOP",
    "OPEN",
    "CAT",
    "DOG",
    "SUN",
    "MOON",
    "TREE",
    "FISH",
    "BOOK",
    "CAR",
    "EXIT",
    "YES",
    "NO",
    "GO",
    "HOME",
    "TEA",
    "MILK",
    "STAR",
    "LOVE",
    "GAME",
    "BLUE",
    "RED",
    "SALE",
)


@dataclass(frozen=True, slots=True)
class Shape:
    """One shape; lengths in pixels of the scene, `outline` is its outlined corners (or none)."""

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
class Word:
    """A printed word and where its top left corner stands."""

    text: str
    rgb: Rgb
    left: float
    top: float
    height: float


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows, before it is drawn. Shapes stand from left to right."""

    width: int
    height: int
    background: tuple[Rgb, Rgb]
    upright_gradient: bool
    noise: float
    smooth: bool
    outline: Rgb | None
    jpeg_quality: int | None
    shapes: tuple[Shape, ...]
    word: Word | None = None


def smart_resize(width: int, height: int) -> tuple[int, int]:
    """The size at which the model sees a picture: Qwen2-VL's rule, sides multiples of 32."""
    w, h = round(width / STEP) * STEP, round(height / STEP) * STEP
    if w * h > MAX_PIXELS:
        beta = math.sqrt(width * height / MAX_PIXELS)
        h = max(STEP, math.floor(height / beta / STEP) * STEP)
        w = max(STEP, math.floor(width / beta / STEP) * STEP)
    elif w * h < MIN_PIXELS:
        beta = math.sqrt(MIN_PIXELS / (width * height))
        h = math.ceil(height * beta / STEP) * STEP
        w = math.ceil(width * beta / STEP) * STEP
    return w, h


# ---------------------------------------------------------------- inventing


def _clip(value: float) -> int:
    return max(0, min(255, round(value)))


def shade(random: Random, colour: str) -> Rgb:
    """A tone that people call `colour`: an anchor, exact one time in three, else near it."""
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
    """Two ends of a gradient; mostly the same colour twice."""
    draw = random.random()
    if draw < 0.48:
        return (255, 255, 255), (255, 255, 255)
    if draw < 0.66:  # light
        base = random.randint(215, 255)
        one = (_clip(base + random.randint(-12, 12)), base, _clip(base + random.randint(-12, 12)))
        return one, one
    if draw < 0.74:  # pastel
        one = (random.randint(180, 255), random.randint(180, 255), random.randint(180, 255))
        return one, one
    if draw < 0.80:  # dark
        base = random.choice((0, 0, random.randint(10, 60)))
        one = (base, _clip(base + random.randint(-8, 8)), _clip(base + random.randint(-8, 20)))
        return one, one
    if draw < 0.86:  # anything, also saturated
        one = (random.randint(0, 255), random.randint(0, 255), random.randint(0, 255))
        return one, one
    if draw < 0.90:
        one = (random.randint(170, 225),) * 3
        return one, one
    low = 150 if random.random() < 0.75 else 30
    ends = [tuple(random.randint(low, 255) for _ in range(3)) for _ in range(2)]
    return ends[0], ends[1]  # type: ignore[return-value]


def _stands_out(rgb: Rgb, background: tuple[Rgb, Rgb]) -> bool:
    """Whether a person would see this colour on that ground."""
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
    """Corners around the origin, before scaling; a circle has none."""
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


Box = tuple[float, float, float, float]


def _place(random: Random, count: int, width: int, height: int) -> list[Box]:
    """Boxes that do not touch: a row, a column, quarters, or anywhere."""
    draw = random.random()
    side = min(width, height)
    if count == 1:
        size = side * (random.uniform(0.35, 0.92) if draw < 0.75 else random.uniform(0.15, 0.4))
        if random.random() < 0.5:  # people centre a single shape
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
    """A box near a square of `size`: sides differ by up to a tenth, one time in four."""
    w = h = size
    if random.random() < 0.25:
        w, h = size * random.uniform(0.88, 1.0), size * random.uniform(0.88, 1.0)
    return cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2


def _in_line(random: Random, count: int, width: int, height: int) -> list[Box]:
    cell = width / count
    size = min(cell, height) * random.uniform(0.45, 0.92)
    same = random.random() < 0.6
    level = height / 2 if random.random() < 0.7 else random.uniform(size / 2, height - size / 2)
    return [
        _jittered(random, cell * (i + 0.5), level, size * (1 if same else random.uniform(0.6, 1)))
        for i in range(count)
    ]


def _in_quarters(random: Random, count: int, width: int, height: int) -> list[Box]:
    cells = random.sample([(x, y) for x in (0.25, 0.75) for y in (0.25, 0.75)], count)
    size = min(width, height) / 2 * random.uniform(0.5, 0.92)
    return [_jittered(random, x * width, y * height, size) for x, y in cells]


def _anywhere(random: Random, count: int, width: int, height: int) -> list[Box]:
    """Rejection sampling; the sizes shrink until everything fits."""
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
    """Colours that stand out from this ground; mostly all different."""
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
) -> Scene:
    """A scene of that size with `count` shapes (0 to 4, drawn if not given)."""
    if count is None:
        count = random.choices((0, 1, 2, 3, 4), (0.015, 0.385, 0.30, 0.17, 0.13))[0]
    background = _background(random)
    colours = _colours_on(random, background, max(count, 1))
    if len(colours) < max(count, 1):  # a ground on which too little stands out
        background = ((255, 255, 255), (255, 255, 255))
        colours = _colours_on(random, background, max(count, 1))
        colours += [("red", (255, 0, 0))] * (max(count, 1) - len(colours))
    boxes = _place(random, count, width, height) if count else []
    shapes = [
        make_shape(random, random.choice(KINDS), name, rgb, box)
        for (name, rgb), box in zip(colours, boxes, strict=False)
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
        _word(random, width, height, colours[0][1]) if word else None,
    )


def _word(random: Random, width: int, height: int, rgb: Rgb) -> Word:
    text = random.choice(WORDS)
    if random.random() < 0.5:
        text = text.capitalize()
    size = min(height * random.uniform(0.25, 0.6), width * 1.35 / len(text))
    left = random.uniform(0.04 * width, max(0.05 * width, width - size * 0.72 * len(text)))
    return Word(text, rgb, left, random.uniform(0, max(1.0, height - 1.2 * size)), size)


# ---------------------------------------------------------------- drawing


def _ground(scene: Scene) -> Image.Image:
    size = (scene.width, scene.height)
    if scene.background[0] == scene.background[1]:
        return Image.new("RGB", size, scene.background[0])
    ends = Image.new("RGB", (1, 2) if scene.upright_gradient else (2, 1))
    ends.putpixel((0, 0), scene.background[0])
    ends.putpixel((0, 1) if scene.upright_gradient else (1, 0), scene.background[1])
    return ends.resize(size, Image.Resampling.BILINEAR)


def render(scene: Scene, noise_seed: int = 0) -> Image.Image:
    """The picture at the scene's own size, RGB."""
    picture = _ground(scene)
    # Smooth edges come from drawing larger; a big picture is smoothed by the model's own resize.
    scale = 2 if scene.smooth and scene.width * scene.height <= 90_000 else 1
    if scale > 1:
        picture = picture.resize(
            (scene.width * scale, scene.height * scale),
            Image.Resampling.NEAREST,
        )
    draw = ImageDraw.Draw(picture)
    stroke = max(1, round(0.008 * min(picture.size)))
    for shape in scene.shapes:
        if shape.corners:
            corners = [(x * scale, y * scale) for x, y in shape.corners]
            draw.polygon(corners, fill=shape.rgb, outline=scene.outline, width=stroke)
        else:
            box = [v * scale for v in shape.box]
            draw.ellipse(box, fill=shape.rgb, outline=scene.outline, width=stroke)
    if scene.word is not None:
        word = scene.word
        font = ImageFont.load_default(word.height * scale)
        draw.text((word.left * scale, word.top * scale), word.text, fill=word.rgb, font=font)
    if scale > 1:
        picture = picture.reduce(scale)
    if scene.noise:
        rng = np.random.default_rng(noise_seed)
        pixels = np.asarray(picture, np.float32)
        pixels = pixels + rng.standard_normal(pixels.shape, np.float32) * scene.noise
        picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if scene.jpeg_quality is not None:
        held = io.BytesIO()
        picture.save(held, "JPEG", quality=scene.jpeg_quality)
        picture = Image.open(held).convert("RGB")
    return picture


def as_seen(picture: Image.Image) -> npt.NDArray[np.uint8]:
    """The picture as the model sees it: RGB, resized bicubically, height x width x 3."""
    size = smart_resize(*picture.size)
    picture = picture.convert("RGB")
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(picture, np.uint8)


def patches(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Patches in Qwen2-VL's order (blocks of 2 x 2), each channel-first and one frame long."""
    height, width, channels = pixels.shape
    blocks = pixels.reshape(
        height // STEP,
        MERGE,
        PATCH,
        width // STEP,
        MERGE,
        PATCH,
        channels,
    )
    ordered = blocks.transpose(0, 3, 1, 4, 6, 2, 5)
    return ordered.reshape(-1, channels * PATCH * PATCH)


def draw_size(random: Random, target: tuple[int, int]) -> tuple[int, int]:
    """A picture size, 64 to 1024 px a side, that the model would see as `target`."""
    for _ in range(40):
        exact = target[0] / target[1]
        ratio = (
            exact
            if target[0] == target[1] and random.random() < 0.9
            else (exact * random.uniform(0.82, 1.22))
        )
        largest = 320 if random.random() < 0.85 else 1024  # large ones cost time and teach little
        longer = math.exp(random.uniform(math.log(64), math.log(largest)))
        width = round(longer if ratio >= 1 else longer * ratio)
        height = round(longer / ratio if ratio >= 1 else longer)
        if smart_resize(width, height) == target and min(width, height) >= 32:
            return width, height
    return target
