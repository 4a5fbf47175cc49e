"""Parses the bounding boxes in an answer and converts them to pixels of the decoded image.

Parsing takes time proportional to the length of any text; text that is not a valid box is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
import json
import math
import re

from inference_service.domain import Grounding, ImageInfo
from inference_service.model_spec import BoxNotation
from inference_service.text.output.stage import Piece


PER_MILLE = 1000.0

_FOUR_INTEGERS = re.compile(
    r"\s*\(\s*(-?\d{1,9})\s*,\s*(-?\d{1,9})\s*\)\s*,\s*\(\s*(-?\d{1,9})\s*,\s*(-?\d{1,9})\s*\)\s*"
)
_NUMBER = r"\s*(-?\d{1,9}(?:\.\d{1,20})?)\s*"
_FOUR_NUMBERS = ",".join([_NUMBER] * 4)

# The families write flat objects, so that the text between two braces is one object, even if the answer is truncated,
# uses single quotes or is wrapped in a markdown fence.
_OBJECT = re.compile(r"\{([^{}]*)")
_JSON_BOX = re.compile(rf"[\"']bbox(?:_2d)?[\"']\s*:\s*\[{_FOUR_NUMBERS}\]")
_JSON_LABEL = re.compile(
    r"[\"']label[\"']\s*:\s*(?:(\"(?:[^\"\\]|\\.)*\")|'((?:[^'\\]|\\.)*)')", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class WrittenBox:
    """A box as the model wrote it.

    Attributes:
        label: Its label; may be empty.
        corners: x and y of one corner and of the opposite one, in the unit of the notation.
    """

    label: str
    corners: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class _Tags:
    """A notation that puts labels and boxes between tags."""

    label: tuple[str, str]
    box: tuple[str, str]
    label_is_kept: bool

    def pattern(self) -> re.Pattern[str]:
        (label_open, label_close), (box_open, box_close) = (
            map(re.escape, self.label),
            map(re.escape, self.box),
        )
        inside = rf"((?:(?!{label_open}|{label_close}).)*)"
        return re.compile(
            rf"(?:{label_open}{inside}{label_close})?{box_open}([^<]*){box_close}", re.DOTALL
        )


_TAGS = {
    # Qwen-VL (2023): a label belongs to the one box after it.
    BoxNotation.REF_BOX: _Tags(("<ref>", "</ref>"), ("<box>", "</box>"), label_is_kept=False),
    # Qwen2-VL: a label belongs to all boxes that follow it without a gap.
    BoxNotation.OBJECT_REF: _Tags(
        ("<|object_ref_start|>", "<|object_ref_end|>"),
        ("<|box_start|>", "<|box_end|>"),
        label_is_kept=True,
    ),
}
_PATTERNS = {notation: tags.pattern() for notation, tags in _TAGS.items()}


class BoxReader:
    """The stage that reads the boxes of an answer once its text is complete; the text passes unchanged."""

    may_end = False

    def __init__(self, notation: BoxNotation, images: Sequence[ImageInfo]) -> None:
        """Starts an answer; arguments as `groundings`."""
        self._notation = notation
        self._images = images
        self._texts: list[str] = []

    def push(self, piece: Piece) -> None:
        """Adds the boxes to the last piece."""
        self._texts.append(piece.text)
        if piece.last:
            piece.groundings = groundings("".join(self._texts), self._notation, self._images)


def tag_tokens(notation: BoxNotation) -> tuple[str, ...]:
    """The special tokens of the notation, which must be kept in the text to parse it."""
    tags = _TAGS.get(notation)
    return (*tags.label, *tags.box) if tags else ()


def read_boxes(text: str, notation: BoxNotation) -> Iterator[WrittenBox]:
    """The boxes of an answer, in order."""
    if notation in _TAGS:
        yield from _read_tags(text, _PATTERNS[notation], _TAGS[notation].label_is_kept)
    elif notation in (BoxNotation.JSON_PIXELS, BoxNotation.JSON_PER_MILLE):
        yield from _read_json(text)


def groundings(
    text: str, notation: BoxNotation, images: Sequence[ImageInfo]
) -> tuple[Grounding, ...]:
    """The boxes of an answer in pixels of the last image of the prompt, to which models refer.

    Boxes are clipped to the image; boxes without area are left out.

    Args:
        text: The answer, including the special tokens of `tag_tokens`.
        notation: How the model's family writes boxes.
        images: Images of the prompt, in order; without images there are no boxes.
    """
    if not images:
        return ()
    image = images[-1]
    width, height = float(image.original_width), float(image.original_height)
    unit_x = unit_y = PER_MILLE
    if notation is BoxNotation.JSON_PIXELS:
        unit_x, unit_y = float(image.processed_width), float(image.processed_height)
    found = []
    for box in read_boxes(text, notation):
        x1, y1, x2, y2 = box.corners
        grounding = Grounding(
            label=box.label,
            x_min=_within(x1 / unit_x * width, width),
            y_min=_within(y1 / unit_y * height, height),
            x_max=_within(x2 / unit_x * width, width),
            y_max=_within(y2 / unit_y * height, height),
            image_index=len(images) - 1,
        )
        if grounding.x_min < grounding.x_max and grounding.y_min < grounding.y_max:
            found.append(grounding)
    return tuple(found)


def _within(value: float, maximum: float) -> float:
    return min(max(value, 0.0), maximum)


def _read_tags(text: str, pattern: re.Pattern[str], label_is_kept: bool) -> Iterator[WrittenBox]:
    label, end = "", -1
    for match in pattern.finditer(text):
        if match[1] is not None:
            label = match[1].strip()
        elif not label_is_kept or match.start() != end:
            label = ""
        end = match.end()
        numbers = _FOUR_INTEGERS.fullmatch(match[2])
        if numbers:
            x1, y1, x2, y2 = map(float, numbers.groups())
            yield WrittenBox(label, (x1, y1, x2, y2))


def _read_json(text: str) -> Iterator[WrittenBox]:
    for match in _OBJECT.finditer(text):
        box = _JSON_BOX.search(match[1])
        if box:
            x1, y1, x2, y2 = map(float, box.groups())
            if all(map(math.isfinite, (x1, y1, x2, y2))):
                yield WrittenBox(_json_label(match[1]), (x1, y1, x2, y2))


def _json_label(fields: str) -> str:
    match = _JSON_LABEL.search(fields)
    if match is None:
        return ""
    if match[1] is None:
        return str(match[2])
    try:
        return str(json.loads(match[1], strict=False))
    except ValueError:
        return str(match[1][1:-1])
