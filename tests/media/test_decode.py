"""Decoding against transformers' processor, and against files that mean harm."""

from __future__ import annotations

import contextlib
from dataclasses import replace
import io
import struct
import tracemalloc
import zlib

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
import numpy as np
from PIL import Image, ImageFile, ImageOps
import pytest
from transformers import Qwen2VLImageProcessorPil

from inference_service.errors import ImageTooLargeError, InvalidImageError
from inference_service.media.decode import decode_image
from inference_service.media.images import DecodeLimits, ProcessedImage
from tests.media.files import LIMITS, decoded, encoded, noise, pixels_of, png


FILES = {
    "rgb png": encoded(noise("RGB")),
    "rgba png": encoded(noise("RGBA")),
    "grey png": encoded(noise("L")),
    "grey alpha png": encoded(noise("LA")),
    "black and white png": encoded(noise("1")),
    "palette png": encoded(noise("P")),
    "palette with a transparent colour": encoded(noise("P"), transparency=3),
    "rgb with a transparent colour": encoded(noise("RGB"), transparency=(1, 2, 3)),
    "jpeg": encoded(noise("RGB"), "JPEG"),
    "grey jpeg": encoded(noise("L"), "JPEG"),
    "cmyk jpeg": encoded(noise("CMYK"), "JPEG"),
    "progressive jpeg": encoded(noise("RGB"), "JPEG", progressive=True),
    "webp": encoded(noise("RGB"), "WEBP"),
    "lossless webp": encoded(noise("RGBA"), "WEBP", lossless=True),
    "gif": encoded(noise("P"), "GIF"),
    "animated gif": encoded(
        noise("RGB"), "GIF", save_all=True, append_images=[noise("RGB", seed=9)]
    ),
    "animated webp": encoded(
        noise("RGB"), "WEBP", save_all=True, append_images=[noise("RGB", seed=9)]
    ),
    "animated png": encoded(
        noise("RGB"), "PNG", save_all=True, append_images=[noise("RGB", seed=9)]
    ),
    "one pixel": encoded(noise("RGB", (1, 1))),
    "three by three": encoded(noise("RGB", (3, 3))),
    "one by two hundred": encoded(noise("RGB", (1, 200))),
    "wide": encoded(noise("RGB", (1000, 200)), "JPEG"),
}


@pytest.mark.parametrize("name", FILES)
def test_same_pixels_as_the_reference(policy, name):
    got = decoded(FILES[name], policy)
    # transformers of the file as opened: composition, resizing and the order of axes are its own.
    image = Image.open(io.BytesIO(FILES[name]))
    processor = Qwen2VLImageProcessorPil(
        patch_size=16, size={"shortest_edge": 65536, "longest_edge": 16777216}
    )
    wanted = processor(images=image, do_rescale=False, do_normalize=False)
    assert (got.original_width, got.original_height) == image.size
    assert got.grid == tuple(np.asarray(wanted["image_grid_thw"])[0])
    assert np.array_equal(unpatched(np.asarray(wanted["pixel_values"]), got.grid), pixels_of(got))
    assert got.num_tokens == got.grid[1] * got.grid[2] // 4


def test_a_family_may_drop_the_alpha_channel(policy):
    data = FILES["rgba png"]
    plain = encoded(Image.open(io.BytesIO(data)).convert("RGB"))
    dropped = decoded(data, replace(policy, white_background=False))
    assert dropped.pixels == decoded(plain, policy).pixels != decoded(data, policy).pixels


def unpatched(patches: np.ndarray, grid: tuple[int, int, int]) -> np.ndarray:
    """Undoes the processor's cutting into patches: [height, width, 3]."""
    _, rows, columns = grid
    cut = patches.reshape(rows // 2, columns // 2, 2, 2, 3, 2, 16, 16)[:, :, :, :, :, 0]
    return cut.transpose(0, 2, 5, 1, 3, 6, 4).reshape(rows * 16, columns * 16, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(policy, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(noise("RGB", (40, 90)), "JPEG", exif=exif)
    got = decoded(data, policy)
    turned = orientation >= 5
    assert (got.original_width, got.original_height) == ((90, 40) if turned else (40, 90))
    plain = decoded(data, replace(policy, exif_transpose=False))
    assert (plain.original_width, plain.original_height) == (40, 90)
    assert (plain.pixels == got.pixels) == (orientation == 1)


def exif_with(entry: bytes) -> bytes:
    """An EXIF block that turns by a quarter and has one more entry."""
    turned = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + turned + entry + b"\0\0\0\0"


@pytest.mark.parametrize(
    "entry",
    [
        struct.pack("<HHII", 0x010E, 2, 4, 0x00434241),
        struct.pack("<HH", 0x0100, 2) + struct.pack("<I", 4) + b"abc\0",  # a width that is text
        struct.pack("<HH", 0x011A, 2) + struct.pack("<I", 4) + b"abc\0",  # so is a resolution
    ],
)
def test_odd_exif_beside_the_orientation(policy, entry):
    got = decoded(encoded(noise("RGB", (40, 90)), "JPEG", exif=exif_with(entry)), policy)
    assert (got.original_width, got.original_height) == (90, 40)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_as_pillow_does(policy, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(noise("RGB", (40, 90)), "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert decoded(data, policy).pixels == decoded(encoded(upright), policy).pixels


TRUNCATED = {
    "png": encoded(noise("RGB", (9, 7))),
    "jpeg": encoded(noise("RGB", (9, 7)), "JPEG"),
    "fine jpeg": encoded(noise("RGB", (19, 17)), "JPEG", quality=95, subsampling=0),
    "progressive jpeg": encoded(noise("RGB", (19, 17)), "JPEG", progressive=True),
    "jpeg with restarts": encoded(noise("RGB", (25, 17)), "JPEG", restart_marker_blocks=1),
    "grey jpeg": encoded(noise("L", (19, 17)), "JPEG", optimize=True),
    "webp": encoded(noise("RGB", (9, 7)), "WEBP"),
    "lossless webp": encoded(noise("RGBA", (9, 7)), "WEBP", lossless=True),
    "gif": encoded(noise("RGB", (9, 7)), "GIF"),
    "bmp": encoded(noise("RGB", (9, 7)), "BMP"),
    "tiff": encoded(noise("RGB", (9, 7)), "TIFF"),
    "lzw tiff": encoded(noise("RGB", (9, 7)), "TIFF", compression="tiff_lzw"),
}


@pytest.mark.parametrize("name", TRUNCATED)
def test_truncated_at_each_byte(policy, name):
    """What is cut off is refused as such, and what lacks only its end mark is whole."""
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    data = TRUNCATED[name]
    whole = decoded(data, policy)
    for length in range(12, len(data)):
        lacking = len(data) - length
        got = decoded_or_refused(data[:length], policy)
        if isinstance(got, ProcessedImage):
            assert got == whole
            assert lacking <= 20
        else:
            assert "is cut off" in got.message
            assert got.field == "f"
            assert "jpeg" not in name or lacking > 2


def decoded_or_refused(data, policy) -> ProcessedImage | InvalidImageError:
    try:
        return decoded(data, policy)
    except InvalidImageError as error:
        return error


def webp(kind: bytes, body: bytes) -> bytes:
    chunk = kind + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", len(chunk) + 4) + b"WEBP" + chunk


def side(number: int) -> bytes:
    return (number - 1).to_bytes(3, "little")


BOMBS = {
    "png": png(60_000, 60_000, body=zlib.compress(b"\0" * 1000)),
    "png, just too large": png(10_000, 5_001),
    "gif": b"GIF89a"
    + struct.pack("<HHBBB", 60_000, 60_000, 0, 0, 0)
    + b","
    + struct.pack("<HHHHB", 0, 0, 1, 1, 0)
    + b"\x02\x02\x44\x01\x00;",
    "jpeg": encoded(noise("RGB", (9, 7)), "JPEG").replace(
        struct.pack(">HH", 7, 9), struct.pack(">HH", 60_000, 60_000), 1
    ),
    "webp": webp(b"VP8X", b"\0\0\0\0" + side(13_000) + side(13_000)) + b"\0" * 64,
    "lossless webp": webp(
        b"VP8L", b"\x2f" + (16382 | 16382 << 14).to_bytes(4, "little") + b"\0" * 64
    ),
    "lossy webp": webp(
        b"VP8 ", b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", 16383, 16383) + b"\0" * 64
    ),
    "gif with a frame beyond its screen": b"GIF89a"
    + struct.pack("<HHBBB", 10, 10, 0, 0, 0)
    + b","
    + struct.pack("<HHHHB", 0, 0, 60_000, 60_000, 0)
    + b"\x02\x01\x00\x00;",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_by_their_header(policy, name):
    tracemalloc.start()
    with pytest.raises(ImageTooLargeError) as caught:
        decoded(BOMBS[name], policy)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
    assert caught.value.metadata == {"max_pixels": "50000000"}
    assert Image.MAX_IMAGE_PIXELS


def test_too_many_bytes(policy):
    data = FILES["jpeg"]
    assert decoded(data, policy, DecodeLimits(max_bytes=len(data))).num_tokens
    with pytest.raises(ImageTooLargeError):
        decoded(data, policy, DecodeLimits(max_bytes=len(data) - 1))


@pytest.mark.parametrize(
    "data",
    [
        png(10, 10, body=b"nonsense"),
        png(0, 0),
        png(10, 10, body=zlib.compress(b"\0" * 110)).replace(b"IDAT", b"iDAT"),
        encoded(noise("RGB", (1, 201))),
        encoded(noise("RGB"), "TIFF", save_all=True, append_images=[noise("RGB")]),
        b"\xff\xd8\xff\xd9",
    ],
)
def test_damaged_or_of_another_kind(policy, data):
    with pytest.raises(InvalidImageError) as caught:
        decoded(data, policy)
    assert caught.value.field == "f"
    assert "0x" not in caught.value.message
    assert "cut off" not in caught.value.message


@hypothesis_settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["rgb png", "jpeg", "webp", "gif", "palette png", "animated webp"]),
    st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_damaged_files_end_well(policy, name, changes):
    data = bytearray(FILES[name])
    for place, value in changes:
        data[int(place * len(data))] = value
    with contextlib.suppress(InvalidImageError, ImageTooLargeError):
        got = decoded(bytes(data), policy, DecodeLimits(max_pixels=10**6))
        assert len(got.pixels) == got.height * got.width * 3


def test_digest_tells_images_apart(policy):
    images = [decoded(data, policy) for data in FILES.values()]
    for one in images:
        for other in images:
            assert (one.digest == other.digest) == (one == other)
    # Equal pixels of unequal images: one colour, turned by a quarter.
    tall, flat = (
        decoded(encoded(Image.new("RGB", size, "red")), policy) for size in ((256, 512), (512, 256))
    )
    assert tall.pixels == flat.pixels
    assert tall.digest != flat.digest
    assert decoded(FILES["jpeg"], policy) == decoded(FILES["jpeg"], policy)


def test_a_caller_who_asks_for_more_gets_the_models_maximum(policy):
    got = decode_image(
        FILES["one by two hundred"],
        policy=replace(policy, max_pixels=2**20),
        min_pixels=2**20,
        max_pixels=2**20,
        limits=LIMITS,
        field="f",
    )
    assert got.height * got.width <= 2**20
