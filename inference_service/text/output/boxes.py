"""The boxes in an answer, converted to pixels of the decoded image.

Parsing takes time proportional to the length of any text; text that is not a valid box is skipped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from inference_service.domain import Grounding, ImageInfo
from inference_service.model_spec import BoxNotation
from inference_service.text.output.box_json import read_json_boxes
from inference_service.text.output.box_tags import TAGS, read_tag_boxes
from inference_service.text.output.stage import Piece
from inference_service.text.output.written_box import WrittenBox


PER_MILLE = 1000.0


class BoxReader:
    """The stage that reads the boxes of an answer once its text is complete; the text passes unchanged.

    Attributes:
        characters: How many are read at the end, so far.
    """

    may_end = False
    counts_tokens = False

    def __init__(
        self, notation: BoxNotation, images: Sequence[ImageInfo], prefix: str = ""
    ) -> None:
        """Starts an answer; arguments as `groundings`."""
        self._notation = notation
        self._images = images
        self._prefix = prefix
        self._texts: list[str] = []
        self.characters = len(prefix) if images else 0

    def push(self, piece: Piece) -> None:
        """Adds the boxes to the last piece."""
        self._texts.append(piece.text)
        if self._images:
            self.characters += len(piece.text)
        if piece.last:
            text = "".join(self._texts)
            read = partial(groundings, text, self._notation, self._images, self._prefix)
            if piece.reads_boxes:
                piece.groundings = read()
            else:
                piece.unread = read


def tag_tokens(notation: BoxNotation) -> tuple[str, ...]:
    """The special tokens of the notation, which must be kept in the text to parse it."""
    tags = TAGS.get(notation)
    return (*tags.label, *tags.box) if tags else ()


def read_boxes(text: str, notation: BoxNotation, start: int = 0) -> Iterator[WrittenBox]:
    """The boxes of a text in order, without what is complete before `start`."""
    if notation in TAGS:
        yield from read_tag_boxes(text, notation, start)
    elif notation in (BoxNotation.JSON_PIXELS, BoxNotation.JSON_PER_MILLE):
        yield from read_json_boxes(text, start)


def groundings(
    text: str, notation: BoxNotation, images: Sequence[ImageInfo], prefix: str = ""
) -> tuple[Grounding, ...]:
    """The boxes of an answer in pixels of the last image of the prompt, to which models refer.

    Boxes are clipped to the image; boxes without area are left out.

    Args:
        text: The answer, including the special tokens of `tag_tokens`.
        notation: How the model's family writes boxes.
        images: Images of the prompt, in order; without images there are no boxes.
        prefix: The beginning of the answer if the request contains it; boxes that end in it are left out.
    """
    if not images:
        return ()
    image = images[-1]
    width, height = float(image.original_width), float(image.original_height)
    unit_x = unit_y = PER_MILLE
    if notation is BoxNotation.JSON_PIXELS:
        unit_x, unit_y = float(image.processed_width), float(image.processed_height)
    found = []
    for box in read_boxes(prefix + text, notation, len(prefix)):
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
