"""Reads boxes that a model wrote between tags."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
import re

from inference_service.model_spec import BoxNotation
from inference_service.text.output.written_box import WrittenBox


_INTEGER_PAIR = r"\(\s*(-?\d{1,9})\s*,\s*(-?\d{1,9})\s*\)"
_TWO_CORNERS = re.compile(rf"\s*{_INTEGER_PAIR}\s*,\s*{_INTEGER_PAIR}\s*")
_BETWEEN = " \t\r\n,;"
_NUMBER = r"-?\d{1,9}(?:\.\d{1,20})?"
_POINT = re.compile(rf"[\s,;]*+[\[(]\s*+({_NUMBER})\s*+,\s*+({_NUMBER})\s*+[\])]")


@dataclass(frozen=True, slots=True)
class Tags:
    """A notation that puts labels and boxes between tags.

    Attributes:
        label: The tags around a label.
        box: The tags around the corners.
        label_is_kept: A label belongs to all boxes that follow it, with no more than commas between; else to the one
            box after it.
        several: Tags may contain several boxes, numbers a fraction, and the last tag may be missing.
    """

    label: tuple[str, str]
    box: tuple[str, str]
    label_is_kept: bool
    several: bool

    def pattern(self) -> re.Pattern[str]:
        """A label, if there is one, and the content of the box behind it."""
        (label_open, label_close), (box_open, box_close) = (
            map(re.escape, self.label),
            map(re.escape, self.box),
        )
        inside = rf"((?:(?!{label_open}|{label_close}).)*)"
        end = rf"(?:{box_close}|\Z)" if self.several else box_close
        gap = r"\s*+" if self.several else ""
        return re.compile(
            rf"(?:{label_open}{inside}{label_close}{gap})?{box_open}([^<]*){end}", re.DOTALL
        )


TAGS = {
    # Qwen-VL (2023), as its original code reads them.
    BoxNotation.REF_BOX: Tags(
        ("<ref>", "</ref>"), ("<box>", "</box>"), label_is_kept=False, several=False
    ),
    # Qwen2-VL.
    BoxNotation.OBJECT_REF: Tags(
        ("<|object_ref_start|>", "<|object_ref_end|>"),
        ("<|box_start|>", "<|box_end|>"),
        label_is_kept=True,
        several=True,
    ),
}
_PATTERNS = {notation: tags.pattern() for notation, tags in TAGS.items()}


def read_tag_boxes(text: str, notation: BoxNotation, start: int = 0) -> Iterator[WrittenBox]:
    """The boxes of a text in order, without tags that end before `start`."""
    tags, label, end = TAGS[notation], "", -1
    for match in _PATTERNS[notation].finditer(text):
        if match[1] is not None:
            label = match[1].strip()
        elif not tags.label_is_kept or text[max(0, end) : match.start()].strip(_BETWEEN):
            label = ""
        end = match.end()
        if end > start:
            for corners in _all_corners(match[2]) if tags.several else _two_corners(match[2]):
                yield WrittenBox(label, corners)


def _two_corners(content: str) -> Iterator[tuple[float, float, float, float]]:
    if match := _TWO_CORNERS.fullmatch(content):
        x1, y1, x2, y2 = map(float, match.groups())
        yield x1, y1, x2, y2


def _all_corners(content: str) -> Iterator[tuple[float, float, float, float]]:
    """The boxes of pairs of corners, up to what is no corner."""
    corners, position = [], 0
    while match := _POINT.match(content, position):
        corners.append((float(match[1]), float(match[2])))
        position = match.end()
    for (x1, y1), (x2, y2) in zip(corners[::2], corners[1::2], strict=False):
        yield x1, y1, x2, y2
