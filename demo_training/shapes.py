"""The shapes of a scene, each with its corners."""

from __future__ import annotations

from dataclasses import dataclass
import math
from random import Random

from demo_training.palette import Rgb


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
