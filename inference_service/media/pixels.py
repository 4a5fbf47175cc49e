"""Brings decoded images of every mode to RGB: values are scaled, never clipped or guessed."""

from __future__ import annotations

import math
import re
import struct
from typing import Final

from PIL import Image, ImageChops, ImageCms

from inference_service.media.containers.base import DamagedError, Stripped
from inference_service.model_spec import ImagePolicy


_BAND_ROWS: Final = 256
_ORIENTATION: Final = 0x0112  # EXIF 2.32; 1 and unknown values mean upright
_XMP_ORIENTATION: Final = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_NUMBERS: Final = {1: "B", 3: "H", 4: "I"}  # types of EXIF values
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_rgb(image: Image.Image, stripped: Stripped, policy: ImagePolicy) -> Image.Image:
    """The RGB pixels of a decoded image, by the family's rules.

    As transformers' `exif_transpose` and `convert_to_rgb` wherever Pillow converts without loss of range; colour
    profiles are not applied, as there.

    Raises:
        DamagedError: Its samples have no defined range.
    """
    image = _with_eight_bits(image, stripped)
    if stripped.inverted:
        image = _with_inverted_grey(image)
    if image.mode == "LAB":
        image = _of_lab(image)
    elif image.mode in {"La", "RGBa"}:
        image = image.convert(image.mode.upper())
    transparent = "A" in image.getbands() or image.info.get("transparency") is not None
    if policy.white_background and transparent:
        rgb = _on_white(image)
    else:
        rgb = image if image.mode == "RGB" else image.convert("RGB")
    return _upright(rgb, stripped) if policy.exif_transpose else rgb


def _with_eight_bits(image: Image.Image, stripped: Stripped) -> Image.Image:
    """An image of one wide channel as grey of 8 bits, as Pillow itself reads colours of 16 bits: their high bytes."""
    if image.mode == "F":
        return _of_floats(image, swapped=stripped.swapped)
    if image.mode == "I":
        raise DamagedError(
            "its samples have 32 bits or signs, whose range is not defined; send 8 or 16 bits"
        )
    if not image.mode.startswith("I;16"):
        return image
    samples = image.tobytes()
    big = image.mode == "I;16B"
    high = Image.frombytes("L", image.size, samples[not big :: 2])
    low = Image.frombytes("L", image.size, samples[big::2])
    if stripped.bits == 12:
        return ImageChops.add(
            high.point([value << 4 & 0xFF for value in range(256)]),
            low.point([value >> 4 for value in range(256)]),
        )
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        alpha = ImageChops.lighter(
            _differs(high, transparent >> 8), _differs(low, transparent & 0xFF)
        )
        return Image.merge("LA", (high, alpha))
    return high


def _with_inverted_grey(image: Image.Image) -> Image.Image:
    grey, *alpha = image.split()
    return Image.merge(image.mode, (ImageChops.invert(grey), *alpha))


def _differs(channel: Image.Image, value: int) -> Image.Image:
    """255 wherever a channel has another value, else 0."""
    return channel.point([0 if other == value else 255 for other in range(256)])


def _of_floats(image: Image.Image, *, swapped: bool) -> Image.Image:
    if swapped:  # libtiff has done it already, and Pillow undid it
        image = Image.frombytes("F", image.size, image.tobytes(), "raw", "F;32BF")
    extrema = [float(value) for value in image.getextrema()]  # type: ignore[arg-type]  # one channel
    if not all(math.isfinite(value) and 0 <= value <= 1 for value in extrema):
        raise DamagedError("its floating-point samples are not from 0 to 1; send 8 or 16 bits")
    return image.point(lambda value: value * 255 + 0.5).convert("L")


def _of_lab(image: Image.Image) -> Image.Image:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, srgb, "LAB", "RGB").apply(image)


def _on_white(image: Image.Image) -> Image.Image:
    """As transformers' `convert_to_rgb`: puts transparent images on white; in bands, to save memory."""
    if image.format == "BMP" and image.getextrema()[-1] == (0, 0):
        return image.convert(
            "RGB"
        )  # an alpha channel that was never filled in, as browsers take it
    rgb = Image.new("RGB", image.size)
    for top in range(0, image.height, _BAND_ROWS):
        box = (0, top, image.width, min(top + _BAND_ROWS, image.height))
        layered = image.crop(box).convert("RGBA")
        white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        rgb.paste(Image.alpha_composite(white, layered).convert("RGB"), box)
    return rgb


def _upright(image: Image.Image, stripped: Stripped) -> Image.Image:
    turn = _TURNS.get(_orientation(stripped.exif, stripped.xmp))
    return image if turn is None else image.transpose(turn)


def _orientation(exif: bytes, xmp: bytes) -> int:
    """The orientation in EXIF data or, as in Pillow, else in XMP; 1 if there is none that can be read."""
    try:
        value = _exif_orientation(exif.removeprefix(b"Exif\0\0"))
    except struct.error:  # the data ends early
        value = None
    if value is None:
        match = _XMP_ORIENTATION.search(xmp)
        return int(match[1]) if match else 1
    return value


def _exif_orientation(block: bytes) -> int | None:
    """The orientation in the first directory of EXIF data, which begins as a TIFF file does."""
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return None
    (start,) = struct.unpack_from(order + "I", block, 4)
    (count,) = struct.unpack_from(order + "H", block, start)
    for position in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(order + "HH", block, position)
        if tag == _ORIENTATION and kind in _NUMBERS:
            return int(struct.unpack_from(order + _NUMBERS[kind], block, position + 8)[0])
    return None
