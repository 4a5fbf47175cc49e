"""Reads boxes that a model wrote as JSON, in the forms that the families and their fine-tuned descendants use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import re

from inference_service.text.output.loose_json import JsonObject, find_json, is_whole
from inference_service.text.output.written_box import WrittenBox


BOX_KEYS = frozenset(
    {"bbox_2d", "bbox", "bboxes", "bboxes_2d", "box", "box_2d", "boxes", "bounding_box", "points"}
)
"""Keys of boxes: four numbers, a list of such, two or more points, or an object of four edges."""
LABEL_KEYS = ("label", "text_content", "text", "name", "category", "class", "object", "caption")
"""Keys of labels; the first of these that has a text in an object applies."""

_EDGES = (
    ("x1", "y1", "x2", "y2"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("left", "top", "right", "bottom"),
)
_LIMIT = 1e9  # no coordinate is as large
_MAX_TEXT = 200  # four numbers as a text are shorter
_NUMBERS = re.compile(
    r"\s*+(?:[\[(]\s*+)?+(-?\d{1,9}(?:\.\d{1,20})?(?:\s*+,\s*+-?\d{1,9}(?:\.\d{1,20})?){3})\s*+(?:[\])]\s*+)?+"
)

_Corners = tuple[float, float, float, float]


def read_json_boxes(text: str, start: int = 0) -> Iterator[WrittenBox]:
    """The boxes of a text in order, without objects that end before `start`.

    An object without a label has that of the object around it.
    """
    for root in find_json(text, with_ends=start > 0):
        waiting: list[tuple[object, str]] = [(root, "")]
        while waiting:
            node, label = waiting.pop()
            if isinstance(node, list):
                waiting += [(item, label) for item in reversed(node)]
            elif isinstance(node, JsonObject):
                label = _label(node) or label
                if node.end > start:
                    yield from _boxes(node, label)
                waiting += [(value, label) for _, value in reversed(node.pairs)]


def _boxes(node: JsonObject, label: str) -> Iterator[WrittenBox]:
    """The boxes of one object; a list of as many labels gives each its own."""
    boxes = [box for key, value in node.pairs if _plain(key) in BOX_KEYS for box in _corners(value)]
    labels = [label] * len(boxes)
    for key, value in node.pairs:
        if isinstance(value, list) and _plain(key).removesuffix("s") in LABEL_KEYS:
            texts = [item for item in value if isinstance(item, str)]
            if len(texts) == len(value) == len(boxes):
                labels = texts
    yield from map(WrittenBox, labels, boxes)


def _corners(value: object) -> Iterator[_Corners]:
    """The boxes in the value of a box key: one, several, or points."""
    if not isinstance(value, list) or not any(isinstance(i, list | JsonObject) for i in value):
        yield from _box(value)
        return
    points = [point for item in value if (point := _point(item)) is not None]
    if len(points) == len(value) > 1 and is_whole(value):
        yield from _around(points)
        return
    for item in value:
        if isinstance(item, list | JsonObject):
            yield from _box(item)


def _box(value: object) -> Iterator[_Corners]:
    """A box of four numbers, in a list, in a text or by names; nothing for anything else."""
    numbers: list[object] = []
    if isinstance(value, str):
        match = _NUMBERS.fullmatch(value[:_MAX_TEXT])
        numbers = [float(number) for number in match[1].split(",")] if match else []
    elif isinstance(value, JsonObject):
        edges = {_plain(key): number for key, number in value.pairs}
        names = next((names for names in _EDGES if edges.keys() >= set(names)), ())
        numbers = [edges[name] for name in names]
    elif isinstance(value, list) and is_whole(value):
        numbers = value
    found = [number for number in numbers if isinstance(number, float) and abs(number) < _LIMIT]
    if len(found) == len(numbers) == 4:
        yield found[0], found[1], found[2], found[3]


def _point(value: object) -> tuple[float, float] | None:
    if isinstance(value, list) and is_whole(value) and len(value) == 2:
        x, y = value
        if isinstance(x, float) and isinstance(y, float) and max(abs(x), abs(y)) < _LIMIT:
            return x, y
    return None


def _around(points: Sequence[tuple[float, float]]) -> Iterator[_Corners]:
    """The box around points, of which two are its corners."""
    if len(points) == 2:
        yield *points[0], *points[1]
        return
    x, y = zip(*points, strict=True)
    yield min(x), min(y), max(x), max(y)


def _label(node: JsonObject) -> str:
    """The label in an object: a text, or a number as the model wrote it."""
    values = {_plain(key): value for key, value in reversed(node.pairs)}
    for key in LABEL_KEYS:
        value = values.get(key)
        if isinstance(value, str) and value:
            return value
        if isinstance(value, float):
            return f"{value:g}"
    return ""


def _plain(key: str) -> str:
    return key.strip().lower().replace("-", "_").replace(" ", "_")
