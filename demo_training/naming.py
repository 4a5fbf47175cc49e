"""Names of shapes, numbers and lists in English and Chinese, and of one shape among several."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from demo_training.scenes import Scene
from demo_training.shapes import Shape


LANGUAGES = ("en", "zh")

ZH_COLOUR = {
    "red": "红色",
    "green": "绿色",
    "blue": "蓝色",
    "yellow": "黄色",
    "black": "黑色",
    "purple": "紫色",
    "orange": "橙色",
    "gray": "灰色",
}
ZH_KIND = {"circle": "圆形", "square": "正方形", "triangle": "三角形", "star": "星形"}
EN_NUMBER = ("no", "one", "two", "three", "four")
ZH_NUMBER = ("零", "一", "两", "三", "四")


def with_article(noun: str) -> str:
    """`a circle`, `an orange circle`."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def english(shape: Shape) -> str:
    """`red circle`."""
    return f"{shape.colour} {shape.kind}"


def chinese(shape: Shape) -> str:
    """`红色的圆形`."""
    return f"{ZH_COLOUR[shape.colour]}的{ZH_KIND[shape.kind]}"


def joined(parts: Sequence[str], language: str) -> str:
    """`a, b and c` in either language."""
    if len(parts) == 1:
        return parts[0]
    comma, last = (", ", " and ") if language == "en" else ("、", "和")
    return comma.join(parts[:-1]) + last + parts[-1]


def grouped(names: Sequence[str], language: str) -> list[str]:
    """Each name once, with its number, in order of first occurrence."""
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    if language == "en":
        return [with_article(n) if c == 1 else f"{EN_NUMBER[c]} {n}s" for n, c in counts.items()]
    return [f"{ZH_NUMBER[c]}个{n}" for n, c in counts.items()]


def listing(shapes: Sequence[Shape], language: str) -> str:
    """`a red circle and two blue squares`, from left to right."""
    names = [english(s) if language == "en" else chinese(s) for s in shapes]
    return joined(grouped(names, language), language)


def sentence(text: str, language: str) -> str:
    """The text as a sentence: with a capital letter and a full stop."""
    return text[0].upper() + text[1:] + "." if language == "en" else text + "。"


def unique_shape(random: Random, scene: Scene) -> Shape | None:
    """A shape with an unambiguous name."""
    alone = [
        s
        for s in scene.shapes
        if sum(o.kind == s.kind and o.colour == s.colour for o in scene.shapes) == 1
    ]
    return random.choice(alone) if alone else None


def full_name(shape: Shape, language: str) -> str:
    """`the red circle`."""
    return f"the {english(shape)}" if language == "en" else chinese(shape)


def name_by_kind(random: Random, scene: Scene, shape: Shape, language: str) -> str | None:
    """`the circle`, if there is only one; `it`, if there are no other shapes."""
    if len(scene.shapes) == 1 and random.random() < 0.6:
        return random.choice(
            ("it", "the shape", "this shape", "the object", "this", "this object", "the figure")
            if language == "en"
            else ("它", "这个形状", "这个图形", "形状", "图形", "这个", "物体", "这"),
        )
    if sum(o.kind == shape.kind for o in scene.shapes) > 1:
        return None
    if language == "en":
        return f"the {shape.kind}"
    kind = ZH_KIND[shape.kind]
    if shape.kind == "star" and random.random() < 0.3:
        kind = random.choice(("星星", "五角星"))
    elif shape.kind == "circle" and random.random() < 0.2:
        kind = "圆"
    return random.choice((kind, kind, "这个" + kind))


def name_by_colour(random: Random, scene: Scene, shape: Shape, language: str) -> str | None:
    """`the red one`, if there is only one; `it`, if there are no other shapes."""
    if len(scene.shapes) == 1 and random.random() < 0.6:
        return random.choice(
            ("it", "this", "the object", "this object", "the figure", "the thing")
            if language == "en"
            else ("它", "这", "这个", "物体", "这个物体", "这个图形"),
        )
    if sum(o.colour == shape.colour for o in scene.shapes) > 1:
        return None
    if language == "en":
        return f"the {shape.colour} " + random.choice(("shape", "one", "object", "figure"))
    return ZH_COLOUR[shape.colour] + random.choice(("的形状", "的图形", "的", "形状", "的物体"))
