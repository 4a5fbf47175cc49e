"""Draws the bounding boxes of an answer on its image, in the style of Qwen-VL's tools.

Runs Pillow in the process of the command: the images are the user's own files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
import math
from pathlib import Path
import shutil
import string
import subprocess

from PIL import Image, ImageDraw, ImageFont

from inference_service.errors import ServiceError
from inference_service.media.decode import decode_rgb
from inference_service.media.images import DecodeLimits
from inference_service.model_spec import ImagePolicy
from qwenvl.inference.v1 import usage_pb2 as usage_pb


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")
_MIN_FONT_SIZE = 15
_NO_CHARACTER = "\U0010fffe"
_TIMEOUT_S = 20.0
_LIMITS = DecodeLimits(max_bytes=2**30, max_pixels=Image.MAX_IMAGE_PIXELS or 2**26)
_POLICY = ImagePolicy(
    patch_size=1,
    merge_size=1,
    temporal_patch_size=1,
    min_pixels=1,
    max_pixels=1,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
)
"""The model's rules for sizes do not matter here."""


class DrawError(Exception):
    """The boxes cannot be drawn; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A box to draw: edges in pixels (left, top, right, bottom), label, font size and line width in pixels."""

    edges: tuple[int, int, int, int]
    label: str
    font_size: int
    line_width: float


def plan(found: Sequence[usage_pb.Grounding], width: int, height: int) -> list[Mark]:
    """The marks for these boxes on an image of this size in pixels; what is outside of it is drawn at its edge.

    Raises:
        DrawError: A coordinate is not a number.
    """
    font_size = max(math.isqrt(width * height) // 30, _MIN_FONT_SIZE)
    return [
        Mark(
            edges=_edges(g.box, width, height),
            label=_printed(g.label),
            font_size=font_size,
            line_width=max(font_size / 4, 1.0),
        )
        for g in found
    ]


def check_drawing(draw: Path | None = None, font: Path | None = None) -> None:
    """Checks the files of a drawing before there is an answer to draw.

    Args:
        draw: The file to write.
        font: The font of the labels.

    Raises:
        DrawError: One cannot be used; the message says why.
    """
    if font is not None:
        Fonts.load("", _MIN_FONT_SIZE, font)
    if draw is None:
        return
    if Image.registered_extensions().get(draw.suffix.lower()) not in Image.SAVE:
        raise DrawError(f"{draw}: name a file that ends with .png, .jpg or .webp")
    if draw.is_dir() or not draw.parent.is_dir():
        what = "is a directory" if draw.is_dir() else f"there is no directory {draw.parent}"
        raise DrawError(f"{draw}: {what}")


def require_local_image(images: Sequence[object]) -> Path:
    """The image to draw on, the last one.

    Raises:
        DrawError: There is none, or it is a URL.
    """
    last = images[-1] if images else None
    if not isinstance(last, Path):
        raise DrawError("--draw needs a local image file as the last image")
    return last


def _edges(box: usage_pb.BoundingBox, width: int, height: int) -> tuple[int, int, int, int]:
    corners = (box.x_min, box.y_min, box.x_max, box.y_max)
    if not all(map(math.isfinite, corners)):
        raise DrawError(f"the service sent a box without coordinates: {corners}")
    left, top, right, bottom = (
        int(min(max(value, 0), limit))
        for value, limit in zip(corners, (width, height, width, height), strict=True)
    )
    return min(left, right), min(top, bottom), max(left, right), max(top, bottom)


def _printed(label: str) -> str:
    """A label in one line, without control characters."""
    return "".join(c for c in " ".join(label.split()) if c.isprintable())


def open_image(path: Path, *, exif_transposed: bool) -> Image.Image:
    """Opens an image as the service does: RGB, with its orientation, and with all values scaled.

    Args:
        path: The file.
        exif_transposed: The family applies the orientation in EXIF data; those that do put transparent images on white.

    Raises:
        DrawError: It cannot be read.
    """
    policy = replace(_POLICY, exif_transpose=exif_transposed, white_background=exif_transposed)
    try:
        return decode_rgb(path.read_bytes(), policy=policy, limits=_LIMITS, field="")
    except OSError as error:
        raise DrawError(f"{path}: {error.strerror}") from error
    except ServiceError as error:
        raise DrawError(f"{path}: {error.message}") from error


def image_size(path: Path) -> tuple[int, int] | None:
    """Width and height of an image file in pixels, from its header; None = Pillow cannot read it."""
    try:
        with Image.open(path) as image:
            return image.size
    except Exception:  # noqa: BLE001 - parsers may raise anything; what the file is, the service tells
        return None


def draw_boxes(
    image: Image.Image, found: Sequence[usage_pb.Grounding], font_file: Path | None
) -> tuple[Image.Image, dict[str, str]]:
    """A copy of the image with boxes and labels; a label that the font lacks is drawn as a number.

    Args:
        image: RGB image.
        found: Boxes in pixels of `image`.
        font_file: Font for the labels; None = one that fontconfig finds, else Pillow's built-in font.

    Returns:
        The image, and the label of each number.

    Raises:
        DrawError: The file is not a font.
    """
    canvas = image.copy()
    marks = plan(found, *image.size)
    if not marks:
        return canvas, {}
    brush = ImageDraw.Draw(canvas)
    labels = list(dict.fromkeys(mark.label for mark in marks if mark.label))
    fonts = Fonts.load("".join(labels), marks[0].font_size, font_file)
    numbers = {label: str(n) for n, label in enumerate(filter(fonts.lacks, labels), 1)}
    colours: dict[str, str] = {}
    for index, mark in enumerate(marks):
        colour = colours.setdefault(mark.label, _COLOURS[index % len(_COLOURS)])
        brush.rectangle(mark.edges, outline=colour, width=round(mark.line_width))
    for mark in marks:
        if mark.label:
            number = numbers.get(mark.label)
            text, font = (mark.label, fonts.letters) if number is None else (number, fonts.digits)
            _write(brush, mark.edges[:2], text, colours[mark.label], font)
    return canvas, {number: label for label, number in numbers.items()}


@dataclass(frozen=True, slots=True)
class Fonts:
    """The font of the labels, and one that has digits for those that it lacks."""

    letters: Font
    digits: Font

    @classmethod
    def load(cls, text: str, size: int, file: Path | None) -> Fonts:
        """The font of a file, or one that fontconfig finds for a text, or else Pillow's own."""
        builtin = ImageFont.load_default(size)
        found = _fontconfig_file(text) if file is None and text else file
        try:
            letters: Font = builtin if found is None else ImageFont.truetype(found, size)
        except OSError as error:
            if file is not None:
                raise DrawError(f"{file}: not a usable font at size {size}") from error
            letters = builtin
        return cls(letters, builtin if _missing_characters(letters, string.digits) else letters)

    def lacks(self, label: str) -> bool:
        """Whether the font of the labels cannot write one."""
        return bool(_missing_characters(self.letters, label))


def _fontconfig_file(text: str) -> Path | None:
    """The font file that fontconfig prefers for a text; it may still lack characters."""
    command = shutil.which("fc-match")
    if command is None:
        return None
    characters = " ".join(sorted({f"{ord(c):x}" for c in text}))
    try:
        result = subprocess.run(
            [command, "--format=%{file}", f":charset={characters}"],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return Path(result.stdout) if result.stdout else None


def _missing_characters(font: Font, text: str) -> str:
    """The characters of a text that the font renders like a missing character."""
    nothing = _shape(font, _NO_CHARACTER)
    missing = {
        c for c in text if c.isprintable() and not c.isspace() and _shape(font, c) == nothing
    }
    return "".join(sorted(missing))


def _shape(font: Font, character: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(character)
    return mask.size, bytes(mask)


def _write(
    brush: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, colour: str, font: Font
) -> None:
    """Writes a text at the upper left corner of a box, shifted to stay inside the image."""
    left, top, right, bottom = brush.textbbox((0, 0), text, font=font)
    width, height = brush.im.size
    x = max(0, min(corner[0], width - math.ceil(right)))
    y = max(0, min(corner[1], height - math.ceil(bottom)))
    brush.rectangle((x + left, y + top, x + right, y + bottom), fill=colour)
    brush.text((x, y), text, fill="white", font=font)
