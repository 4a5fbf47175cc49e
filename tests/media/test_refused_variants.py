"""Variants of readable formats that are not read are named as what they are, not as damaged, cut off or costly."""

from __future__ import annotations

import struct

from PIL import Image
import pytest

from inference_service.errors import InvalidImageError
from inference_service.model_spec import ImagePolicy
from tests.media.files import decoded, encoded, noise, segment


PNG, JPEG = encoded(noise("RGB")), encoded(noise("RGB"), "JPEG")


def bitmap(pixels: bytes, *, compression: int, bits: int = 0, masks: bytes = b"") -> bytes:
    information = struct.pack(
        "<IiiHHIIiiII", 40, 61, 45, 1, bits, compression, len(pixels), 0, 0, 0, 0
    )
    start = 14 + len(information) + len(masks)
    head = b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start)
    return head + information + masks + pixels


def without_tables(data: bytes) -> bytes:
    """As abbreviated streams have it: each image behind the first uses its tables."""
    position = 2
    while data[position + 1] != 0xDA:
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if data[position + 1] in {0xDB, 0xC4}:
            data = data[:position] + data[end:]
        else:
            position = end
    return data


MASKS = struct.pack("<4I", 0xF00, 0xF0, 0xF, 0xF000)
VARIANTS = {
    "a JPEG file in a bitmap": (bitmap(JPEG, compression=4), "pixels are stored as a JPEG file"),
    "a PNG file in a bitmap": (bitmap(PNG, compression=5), "pixels are stored as a PNG file"),
    "alpha bit fields": (
        bitmap(bytes(61 * 45 * 4), compression=6, bits=32, masks=MASKS),
        "stored as bit fields of Windows CE",
    ),
    "odd bit fields": (
        bitmap(bytes(62 * 45 * 2), compression=3, bits=16, masks=MASKS),
        r"variant that is not read \(16 bits per pixel, compression 3, a header of 40 bytes\)",
    ),
    "JPEG-LS behind another header": (
        JPEG[:2] + segment(0xE8, b"SPIFF\0") + segment(0xF7, bytes(15)) + JPEG[2:],
        "it is JPEG-LS",
    ),
    "JPEG without tables": (without_tables(JPEG), "it has no tables"),
    "JPEG of 12 bits": (
        JPEG.replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c"),
        "12 bits per sample, but only 8",
    ),
    "PNG with changed line ends": (PNG.replace(b"\r\n", b"\n"), "its line ends were changed"),
    "PNG of Apple's": (PNG[:8] + b"\0\0\0\4CgBI" + PNG[8:], "Apple's CgBI variant"),
    "TIFF of wide colours": (
        encoded(Image.new("F", (9, 9)), "TIFF").replace(
            struct.pack("<HHIHH", 258, 3, 1, 32, 0), struct.pack("<HHIHH", 258, 3, 1, 64, 0)
        ),
        r"not read \(1 floating-point samples of 64 bits",
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_refusal_names_the_variant(policy: ImagePolicy, name: str) -> None:
    data, words = VARIANTS[name]
    with pytest.raises(InvalidImageError, match=words) as caught:
        decoded(data, policy)
    assert caught.value.field == "f"
    assert "cut off" not in caught.value.message


def test_a_jpeg_without_huffman_tables_has_the_usual_ones(policy: ImagePolicy) -> None:
    """Frames of cameras (Motion JPEG) leave them out."""
    tables = JPEG[JPEG.index(b"\xff\xdb") :]
    quantization = b""
    while tables.startswith(b"\xff\xdb"):
        end = 2 + int.from_bytes(tables[2:4], "big")
        quantization, tables = quantization + tables[:end], tables[end:]
    bare = without_tables(JPEG)
    assert decoded(bare[:2] + quantization + bare[2:], policy) == decoded(JPEG, policy)
