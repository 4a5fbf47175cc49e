"""Draws the colours of a scene: its background, and colours that are visible on it."""

from __future__ import annotations

from random import Random

from demo_training.palette import COLOURS, Rgb


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


def any_background(random: Random) -> tuple[Rgb, Rgb]:
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


def colours_on(random: Random, background: tuple[Rgb, Rgb], count: int) -> list[tuple[str, Rgb]]:
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
