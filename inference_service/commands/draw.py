"""Draws the bounding boxes of an answer on its image, in the style of Qwen-VL's tools.

Runs Pillow in the process of the command: the images are the user's own files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import math
from pathlib import Path
import shutil
import subprocess

from PIL import Image, ImageDraw, ImageFont, ImageOps

from qwenvl.inference.v1 import usage_pb2 as usage_pb


Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")
_MIN_FONT_SIZE = 15
_NO_CHARACTER = "\U0010fffe"
_TIMEOUT_S = 20.0


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
    """The marks for these boxes on an image of this size in pixels."""
    font_size = max(math.isqrt(width * height) // 30, _MIN_FONT_SIZE)
    return [
        Mark(
            edges=(int(g.box.x_min), int(g.box.y_min), int(g.box.x_max), int(g.box.y_max)),
            label=g.label,
            font_size=font_size,
            line_width=max(font_size / 4, 1.0),
        )
        for g in found
    ]


def open_image(path: Path, *, exif_transposed: bool) -> Image.Image:
    """Opens an image as RGB with the orientation that the service uses.

    Raises:
        DrawError: It cannot be read.
    """
    try:
        with Image.open(path) as image:
            turned = ImageOps.exif_transpose(image) if exif_transposed else image
            return turned.convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise DrawError(f"{path}: cannot be read as an image") from error


def draw_boxes(
    image: Image.Image, found: Sequence[usage_pb.Grounding], font_file: Path | None
) -> Image.Image:
    """A copy of the image with boxes and labels.

    Args:
        image: RGB image.
        found: Boxes in pixels of `image`.
        font_file: Font for the labels; None = one that fontconfig finds, else Pillow's built-in font.

    Raises:
        DrawError: No font has all characters of the labels.
    """
    canvas = image.copy()
    marks = plan(found, *image.size)
    brush = ImageDraw.Draw(canvas)
    text = "".join(mark.label for mark in marks)
    font = find_font(text, marks[0].font_size, font_file) if text else None
    colours: dict[str, str] = {}
    for index, mark in enumerate(marks):
        colour = colours.setdefault(mark.label, _COLOURS[index % len(_COLOURS)])
        brush.rectangle(mark.edges, outline=colour, width=round(mark.line_width))
    for mark in marks:
        if font is not None and mark.label:
            _write(brush, mark, colours[mark.label], font, image.size)
    return canvas


def find_font(text: str, size: int, file: Path | None) -> Font:
    """Finds a font that has all characters of a text.

    Raises:
        DrawError: There is no such font, or the file is not a font.
    """
    if file is None:
        file = _fontconfig_file(text)
    try:
        font = ImageFont.load_default(size) if file is None else ImageFont.truetype(file, size)
    except OSError as error:
        raise DrawError(f"{file}: not a usable font at size {size}") from error
    missing = _missing_characters(font, text)
    if missing:
        name = "Pillow's built-in font" if file is None else str(file)
        raise DrawError(
            f"{name}: missing the characters {missing}; choose another font with --font FILE"
        )
    return font


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
    brush: ImageDraw.ImageDraw, mark: Mark, colour: str, font: Font, size: tuple[int, int]
) -> None:
    """Writes a label into the upper left corner of its box, shifted to stay inside the image."""
    left, top, right, bottom = brush.textbbox((0, 0), mark.label, font=font)
    x = max(0, min(mark.edges[0], size[0] - math.ceil(right)))
    y = max(0, min(mark.edges[1], size[1] - math.ceil(bottom)))
    brush.rectangle((x + left, y + top, x + right, y + bottom), fill=colour)
    brush.text((x, y), mark.label, fill="white", font=font)
