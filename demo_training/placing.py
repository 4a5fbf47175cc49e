"""Draws where the shapes and words of a scene are."""

from __future__ import annotations

from random import Random


Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


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


def cells(random: Random, width: int, height: int) -> list[Box]:
    """Cells: squares of equal size, or lines."""
    if random.random() < 0.5:
        columns, rows = random.choice(((1, 2), (1, 3), (1, 4), (1, 5), (2, 5)))
    else:
        side = min(width, height) / random.choice((2, 3, 3, 4, 4))
        columns, rows = max(1, int(width / side)), max(1, int(height / side))
    w, h = width / columns, height / rows
    return [(c * w, r * h, (c + 1) * w, (r + 1) * h) for r in range(rows) for c in range(columns)]


def rooms(random: Random, width: int, height: int, *, shared: bool) -> tuple[Box, Box]:
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


def boxes_in(random: Random, count: int, room: Box) -> list[Box]:
    """Boxes of shapes in a part of the image."""
    if not count:
        return []
    left, top, right, bottom = room
    boxes = _place(random, count, right - left, bottom - top)
    return [(left + a, top + b, left + c, top + d) for a, b, c, d in boxes]
