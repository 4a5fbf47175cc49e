"""Every sample format of every container has the right values, computed here without Pillow."""

from __future__ import annotations

from dataclasses import replace
import struct
from typing import Literal

import numpy as np
from PIL import Image
import pytest

from inference_service.errors import InvalidImageError
from inference_service.model_spec import ImagePolicy
from tests.media.files import chunk, decoded, encoded, pixels_of, png_of, tiff_of


HEIGHT, WIDTH = 64, 96
RNG = np.random.default_rng(7)
WIDE = RNG.integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16)
WIDE_RGB = RNG.integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16)
WIDE_RGBA = RNG.integers(0, 65536, (HEIGHT, WIDTH, 4), dtype=np.uint16)
GREY = RNG.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
RGBA = RNG.integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
UNIT = RNG.random((HEIGHT, WIDTH), dtype=np.float32)


@pytest.fixture
def policy(policy: ImagePolicy) -> ImagePolicy:
    """One that leaves the size of the images here as it is, so that their pixels can be compared."""
    return replace(policy, min_pixels=1)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2).astype(np.uint8)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    part = alpha[..., None] / 255.0
    return np.rint(colour * part + 255 * (1 - part))


def packed(values: np.ndarray, depth: int) -> np.ndarray:
    return values.astype(np.uint8) >> (8 - depth)


def transparent(*values: int) -> bytes:
    return chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


def where(values: np.ndarray, key: int, colours: np.ndarray) -> np.ndarray:
    return np.where((values == key)[..., None], 255, colours)


def saved(samples: np.ndarray, mode: str, kind: str, **options: object) -> bytes:
    size = samples.shape[1], samples.shape[0]
    return encoded(Image.frombytes(mode, size, samples.tobytes()), kind, **options)


FOUR, TWO = packed(GREY, 4), packed(GREY, 2)
PALETTE = RNG.integers(0, 256, (16, 3), dtype=np.uint8)

FILES = {
    "png, 16-bit grey": (png_of(WIDE, 16, 0), grey(WIDE >> 8)),
    "png, 16-bit grey with a transparent value": (
        png_of(WIDE, 16, 0, transparent(int(WIDE[3, 4]))),
        where(WIDE, int(WIDE[3, 4]), grey(WIDE >> 8)),
    ),
    "png, 16-bit grey and alpha": (
        png_of(WIDE_RGBA[..., :2], 16, 4),
        on_white(grey(WIDE_RGBA[..., 0] >> 8), WIDE_RGBA[..., 1] >> 8),
    ),
    "png, 16-bit RGB": (png_of(WIDE_RGB, 16, 2), WIDE_RGB >> 8),
    "png, 16-bit RGB with a transparent colour": (
        png_of(WIDE_RGB, 16, 2, transparent(*map(int, WIDE_RGB[5, 6]))),
        np.where((WIDE_RGB[5, 6] == WIDE_RGB).all(2)[..., None], 255, WIDE_RGB >> 8),
    ),
    "png, 16-bit RGBA": (
        png_of(WIDE_RGBA, 16, 6),
        on_white(WIDE_RGBA[..., :3] >> 8, WIDE_RGBA[..., 3] >> 8),
    ),
    "png, 4-bit grey": (png_of(FOUR, 4, 0), grey(FOUR * 17)),
    "png, 4-bit grey with a transparent value": (
        png_of(FOUR, 4, 0, transparent(11)),
        where(FOUR, 11, grey(FOUR * 17)),
    ),
    "png, 2-bit grey with a transparent value": (
        png_of(TWO, 2, 0, transparent(1)),
        where(TWO, 1, grey(TWO * 85)),
    ),
    "png, 1-bit": (png_of(packed(GREY, 1), 1, 0), grey(packed(GREY, 1) * 255)),
    "png, 1-bit with transparent black": (
        png_of(packed(GREY, 1), 1, 0, transparent(0)),
        np.full((HEIGHT, WIDTH, 3), 255),
    ),
    "png, palette": (
        png_of(FOUR, 4, 3, chunk(b"PLTE", PALETTE.tobytes())),
        PALETTE[FOUR],
    ),
    "png, palette with alpha": (
        png_of(
            FOUR, 4, 3, chunk(b"PLTE", PALETTE.tobytes()), chunk(b"tRNS", bytes(range(0, 240, 20)))
        ),
        on_white(PALETTE[FOUR], np.array([*range(0, 240, 20), 255, 255, 255, 255])[FOUR]),
    ),
    "tiff, 16-bit grey": (tiff_of(WIDE), grey(WIDE >> 8)),
    "tiff, 16-bit grey, big-endian": (tiff_of(WIDE, ">"), grey(WIDE >> 8)),
    "tiff, 16-bit grey, white is zero": (tiff_of(WIDE, t262=0), grey(255 - (WIDE >> 8))),
    "tiff, 16-bit RGB": (tiff_of(WIDE_RGB, t262=2), WIDE_RGB >> 8),
    "tiff, 8-bit grey, white is zero": (tiff_of(GREY, t262=0), grey(255 - GREY)),
    "tiff, grey and alpha": (
        tiff_of(RGBA[..., :2], t338=2),
        on_white(grey(RGBA[..., 0]), RGBA[..., 1]),
    ),
    "tiff, grey and premultiplied alpha": (
        tiff_of(np.minimum(RGBA[..., :2], RGBA[..., 1:2]), t338=1),
        np.minimum(255, grey(np.minimum(RGBA[..., 0], RGBA[..., 1])) + 255.0 - RGBA[..., 1:2]),
    ),
    "tiff, RGBA": (tiff_of(RGBA, t262=2, t338=2), on_white(RGBA[..., :3], RGBA[..., 3])),
    "tiff, RGB and something else": (tiff_of(RGBA, t262=2, t338=0), RGBA[..., :3]),
    "tiff, float": (tiff_of(UNIT), grey(np.floor(UNIT * 255 + 0.5))),
    "tiff, CMYK": (
        tiff_of(RGBA, t262=5),
        np.rint((255.0 - RGBA[..., :3]) * (255.0 - RGBA[..., 3:]) / 255),
    ),
    "bmp, grey": (saved(GREY, "L", "BMP"), grey(GREY)),
    "bmp, RGB": (saved(np.ascontiguousarray(RGBA[..., :3]), "RGB", "BMP"), RGBA[..., :3]),
}


# Each kind of TIFF samples, in both byte orders, interleaved or in planes, compressed or not.
TIFF_KINDS: dict[str, tuple[np.ndarray, dict[str, int], np.ndarray, bool]] = {
    "grey": (WIDE, {}, grey(WIDE >> 8), False),
    "grey, white is zero": (WIDE, {"t262": 0}, grey(255 - (WIDE >> 8)), False),
    "float": (UNIT, {}, grey(np.floor(UNIT * 255 + 0.5)), False),
    "float, white is zero": (UNIT, {"t262": 0}, grey(255 - np.floor(UNIT * 255 + 0.5)), False),
    "RGB of 8 bits": (RGBA[..., :3], {"t262": 2}, RGBA[..., :3], True),
    "RGB": (WIDE_RGB, {"t262": 2}, WIDE_RGB >> 8, True),
    "RGBA": (
        WIDE_RGBA,
        {"t262": 2, "t338": 2},
        on_white(WIDE_RGBA[..., :3] >> 8, WIDE_RGBA[..., 3] >> 8),
        True,
    ),
    "CMYK": (
        WIDE_RGBA,
        {"t262": 5},
        np.rint((255.0 - (WIDE_RGBA[..., :3] >> 8)) * (255.0 - (WIDE_RGBA[..., 3:] >> 8)) / 255),
        True,
    ),
}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("name", TIFF_KINDS)
def test_tiff_samples_however_they_are_stored(
    policy: ImagePolicy, name: str, order: Literal["<", ">"], *, compressed: bool
) -> None:
    samples, tags, wanted, may_have_planes = TIFF_KINDS[name]
    for planes in (False, True)[: 1 + may_have_planes]:
        file = tiff_of(samples, order, planes=planes, compressed=compressed, **tags)
        got = pixels_of(decoded(file, policy)).astype(int)
        assert np.abs(got - wanted).max() <= 1


@pytest.mark.parametrize("name", FILES)
def test_values(policy: ImagePolicy, name: str) -> None:
    data, wanted = FILES[name]
    got = pixels_of(decoded(data, policy)).astype(int)
    # Alpha is 8 bits wide, and products of two bytes are rounded once more in it.
    tolerance = 2 if "premultiplied" in name else 1
    assert np.abs(got - wanted).max() <= tolerance
    assert np.ptp(wanted) > 100 or "transparent black" in name


@pytest.mark.parametrize("white_is_zero", [False, True])
def test_a_12_bit_sample_is_scaled(policy: ImagePolicy, white_is_zero: bool) -> None:
    values = WIDE >> 4
    pairs = values.reshape(HEIGHT, -1, 2).astype(np.uint32)
    joined = (pairs[..., 0] << 12) | pairs[..., 1]
    data = np.stack([joined >> 16, joined >> 8 & 255, joined & 255], axis=-1).astype(np.uint8)
    file = tiff_of(data.reshape(HEIGHT, -1), t256=WIDTH, t258=12, t262=1 - white_is_zero)
    wanted = 255 - (values >> 4) if white_is_zero else values >> 4
    assert np.array_equal(pixels_of(decoded(file, policy)), grey(wanted))


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (UNIT * 3, "floating-point"),
        (np.where(UNIT > 0.5, np.float32("nan"), UNIT), "floating-point"),
        (WIDE.astype(np.uint32), "32 bits"),
        (WIDE.astype(np.int32), "signs"),
        (WIDE.astype(np.int16), "signs"),
        (GREY.astype(np.int8), "signs"),
        (UNIT.astype(np.float64), r"\(1 floating-point samples of 64 bits, .*, compression 1\)"),
    ],
)
def test_samples_without_a_range_are_refused(
    policy: ImagePolicy, samples: np.ndarray, message: str
) -> None:
    with pytest.raises(InvalidImageError, match=message):
        decoded(tiff_of(samples), policy)


def test_planes_of_grey_and_alpha_are_refused(policy: ImagePolicy) -> None:
    """Pillow would take the first half of each plane for both."""
    for compressed in (False, True):
        with pytest.raises(InvalidImageError, match="separate planes"):
            decoded(tiff_of(RGBA[..., :2], planes=True, compressed=compressed, t338=2), policy)


def test_lab_is_converted(policy: ImagePolicy) -> None:
    """Known colours of the sRGB primaries and greys in CIELAB (D50)."""
    colours = {
        (255, 255, 255): (100, 0, 0),
        (0, 0, 0): (0, 0, 0),
        (255, 0, 0): (54.29, 80.81, 69.89),
        (0, 255, 0): (87.82, -79.29, 80.99),
        (119, 119, 119): (50.03, 0, 0),
    }
    for rgb, (lightness, a, b) in colours.items():
        stored = np.array([round(lightness * 2.55), round(a), round(b)]).astype(np.int64) & 255
        samples = np.broadcast_to(stored.astype(np.uint8), (HEIGHT, WIDTH, 3))
        got = pixels_of(decoded(tiff_of(np.ascontiguousarray(samples), t262=8), policy))
        assert np.abs(got[5, 5].astype(int) - rgb).max() <= 16  # the edge of the gamut


@pytest.mark.parametrize("kind", ["adobe", "none"])
def test_cmyk_jpeg_is_inverted_as_photoshop_and_browsers_have_it(
    policy: ImagePolicy, kind: str
) -> None:
    ink = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    ink[..., 1] = 200  # magenta
    ink[:, WIDTH // 2 :, 3] = 100
    data = saved(ink, "CMYK", "JPEG", quality=100, subsampling=0)
    at = data.find(b"\xff\xee")
    assert data[at + 4 : at + 9] == b"Adobe"
    if kind == "none":
        data = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
    wanted = (255.0 - ink[..., :3]) * (255.0 - ink[..., 3:]) / 255
    assert np.abs(pixels_of(decoded(data, policy)) - wanted).max() <= 3


def test_ycck_jpeg(policy: ImagePolicy) -> None:
    """Transform 2 of Adobe's segment: ink is stored as if it were RGB, in YCbCr, and black inverted beside it."""
    cyan, magenta, yellow, black = 30.0, 200.0, 90.0, 40.0
    luma = 0.299 * cyan + 0.587 * magenta + 0.114 * yellow
    blue, red = 128 + 0.564 * (yellow - luma), 128 + 0.713 * (cyan - luma)
    stored = np.rint([luma, blue, red, 255 - black]).astype(np.uint8)
    samples = np.broadcast_to(255 - stored, (HEIGHT, WIDTH, 4))  # Pillow inverts as it writes
    data = saved(np.ascontiguousarray(samples), "CMYK", "JPEG", quality=100, subsampling=0)
    at = data.find(b"Adobe")
    data = data[: at + 11] + b"\2" + data[at + 12 :]
    wanted = [(255 - ink) * (255 - black) / 255 for ink in (cyan, magenta, yellow)]
    assert np.abs(pixels_of(decoded(data, policy))[5, 5] - wanted).max() <= 4


def test_an_alpha_channel_that_was_never_filled_in_hides_nothing(policy: ImagePolicy) -> None:
    """Bitmaps of the Windows clipboard have bytes for alpha, all zero."""
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    information = struct.pack("<IiiHHIIiiII", 108, WIDTH, -HEIGHT, 1, 32, 3, 0, 0, 0, 0, 0)
    head = information + masks + b"\0" * (108 - len(information) - len(masks))
    start = b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + 108) + head
    stored = RGBA[..., [2, 1, 0, 3]].copy()
    wanted = on_white(RGBA[..., :3], RGBA[..., 3])
    assert np.abs(pixels_of(decoded(start + stored.tobytes(), policy)) - wanted).max() <= 1
    stored[..., 3] = 0
    got = pixels_of(decoded(start + stored.tobytes(), policy))
    assert np.array_equal(got, RGBA[..., :3])


def test_a_family_may_drop_alpha_of_any_width(policy: ImagePolicy) -> None:
    dropped = replace(policy, white_background=False)
    data, _ = FILES["png, 16-bit RGBA"]
    assert np.array_equal(pixels_of(decoded(data, dropped)), WIDE_RGBA[..., :3] >> 8)
    data, _ = FILES["png, 16-bit grey with a transparent value"]
    assert np.array_equal(pixels_of(decoded(data, dropped)), grey(WIDE >> 8))
