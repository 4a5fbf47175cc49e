"""Faults beside the pixels do no harm, and refusals name the format and the cause."""

from __future__ import annotations

import contextlib
import io
import struct
import time
from typing import Any
import zlib

import numpy as np
from PIL import Image
import pytest

from inference_service.errors import ImageTooLargeError, InvalidImageError
from inference_service.media.checks import inspect
from inference_service.media.formats import READABLE, sniff
from inference_service.media.images import DecodeLimits
from inference_service.model_spec import ImagePolicy
from tests.media.decoding import slow_bitmap
from tests.media.files import (
    LIMITS,
    chunk,
    decoded,
    encoded,
    noise,
    png,
    png_of,
    segment,
    tiff_of,
)


PNG = encoded(noise("RGB"))
GREY_ALPHA = encoded(noise("LA"))
JPEG = encoded(noise("RGB"), "JPEG")
PROGRESSIVE = encoded(noise("RGB"), "JPEG", progressive=True)
WEBP = encoded(noise("RGB"), "WEBP")
ALPHA_WEBP = encoded(noise("RGBA"), "WEBP", quality=80)
GIF = encoded(noise("RGB"), "GIF")
TIFF = encoded(noise("RGB"), "TIFF")
BMP = encoded(noise("RGB"), "BMP")


def after_header(*chunks: bytes, file: bytes = PNG) -> bytes:
    return file[:33] + b"".join(chunks) + file[33:]


def before_end(*chunks: bytes) -> bytes:
    return PNG[:-12] + b"".join(chunks) + PNG[-12:]


def split_data(*between: bytes) -> bytes:
    """The image data in three chunks, with others between them."""
    start = PNG.index(b"IDAT") - 4
    length = int.from_bytes(PNG[start : start + 4], "big")
    data = PNG[start + 8 : start + 8 + length]
    parts = [chunk(b"IDAT", data[i : i + length // 3 + 1]) for i in (0, length // 3 + 1)]
    parts.append(chunk(b"IDAT", data[2 * (length // 3 + 1) :]))
    return PNG[:start] + b"".join(between).join(parts) + PNG[-12:]


def after_start(*segments: bytes, file: bytes = JPEG) -> bytes:
    return file[:2] + b"".join(segments) + file[2:]


def riff(*chunks: bytes, size: int | None = None) -> bytes:
    content = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(content) if size is None else size) + content


def riff_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) & 1)


PICTURE = WEBP[12:]
COMMENT = b"\x21\xfe" + b"".join(bytes((255,)) + b"x" * 255 for _ in range(5000)) + b"\0"
THUMBNAIL = encoded(noise("RGB", (16, 16)), "JPEG")

PNG_FAULTS = {
    "text of 2 MB": after_header(chunk(b"tEXt", b"parameters\0" + b"x" * 2**21)),
    "compressed text of 200 MB": after_header(
        chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * (200 * 2**20), 1))
    ),
    "international text that is a bomb": after_header(
        chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(b"x" * (50 * 2**20), 1))
    ),
    "text of 2 MB behind the data": before_end(chunk(b"tEXt", b"k\0" + b"y" * 2**21)),
    "text of an unknown compression": after_header(chunk(b"zTXt", b"a\0\x07nonsense")),
    "text without a name": after_header(
        chunk(b"tEXt", b""), chunk(b"iTXt", b""), chunk(b"zTXt", b"")
    ),
    "text with a wrong checksum": after_header(chunk(b"tEXt", b"a\0b", crc=1)),
    "colour profile that is junk": after_header(chunk(b"iCCP", b"name\0\0junk")),
    "colour profile that is a bomb": after_header(
        chunk(b"iCCP", b"n\0\0" + zlib.compress(b"\0" * (50 * 2**20), 1))
    ),
    "colour profile of an unknown compression": after_header(chunk(b"iCCP", b"n\0\x09x")),
    "colour profile without an end": after_header(chunk(b"iCCP", b"n")),
    "short gamma": after_header(chunk(b"gAMA", b"\0")),
    "short chromaticities": after_header(chunk(b"cHRM", b"\0" * 8)),
    "short resolution": after_header(chunk(b"pHYs", b"\0")),
    "empty intent": after_header(chunk(b"sRGB", b"")),
    "short transparency": after_header(chunk(b"tRNS", b"\0")),
    "animation control that is short": after_header(chunk(b"acTL", b"\0")),
    "animation control without frames": after_header(chunk(b"acTL", b"\0" * 8)),
    "frame control out of sequence": after_header(
        chunk(b"acTL", struct.pack(">II", 2, 0)), chunk(b"fcTL", struct.pack(">I", 7) + b"\0" * 22)
    ),
    "short frame data": before_end(chunk(b"fdAT", b"\0")),
    "private chunk": after_header(chunk(b"prVt", b"\0" * 999), chunk(b"QQQQ", b"?")),
    "Exif that is junk": after_header(chunk(b"eXIf", b"junk")),
    "Exif that is empty": after_header(chunk(b"eXIf", b"")),
    "Exif as text that is junk": after_header(
        chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 9\nzz")
    ),
    "chunks between the data": split_data(chunk(b"tEXt", b"a\0b"), chunk(b"tIME", b"")),
    "empty data chunks": split_data(chunk(b"IDAT", b""), chunk(b"IDAT", b"")),
    "data checksum that is wrong": PNG[:-16] + b"\0\0\0\0" + PNG[-12:],
    "bytes behind the end": PNG + b"\0" * 5000 + b"<html>",
    "another file behind the end": PNG + JPEG,
    "no end mark": PNG[:-12],
    "end mark without a checksum": PNG[:-4],
    "bytes in place of the end mark": PNG[:-12] + b"\r\n\r\n" * 9,
    "a line before the file": b"\r\n" + PNG,
    "a byte order mark before the file": b"\xef\xbb\xbf" + PNG,
}

JPEG_FAULTS = {
    "no end mark": JPEG[:-2],
    "half an end mark": JPEG[:-1],
    "a line in place of the end mark": JPEG[:-2] + b"\r\n",
    "zeros in place of the end mark": JPEG[:-2] + b"\0" * 4096,
    "another image in place of the end mark": JPEG[:-2] + THUMBNAIL,
    "bytes behind the end": JPEG + b"\xff\x00junk\xff\xd8\xff" * 50,
    "a video behind the end": JPEG + b"\0\0\0\x18ftypmp42" + bytes(3000),
    "another image behind the end": JPEG + THUMBNAIL,
    "bytes before the first marker": JPEG[:2] + b"junk" + JPEG[2:],
    "fill bytes before the first marker": JPEG[:2] + b"\xff" * 200 + JPEG[2:],
    "zeros between segments": after_start(segment(0xFE, b"text") + b"\0" * 64),
    "stray restart markers": after_start(b"\xff\xd0\xff\xd7\xff\x01"),
    "a segment without a length": after_start(b"\xff\xe5\0\0"),
    "Exif that is junk": after_start(segment(0xE1, b"Exif\0\0junk")),
    "Exif that is empty": after_start(segment(0xE1, b"Exif\0\0")),
    "Exif that points outside": after_start(
        segment(0xE1, b"Exif\0\0II*\0" + struct.pack("<IH", 8, 9) + b"\xff" * 30)
    ),
    "Exif with a thumbnail": after_start(segment(0xE1, b"Exif\0\0II*\0" + THUMBNAIL)),
    "Exif twice": after_start(segment(0xE1, b"Exif\0\0MM\0*"), segment(0xE1, b"Exif\0\0II*\0")),
    "a preview index of nothing": after_start(segment(0xE2, b"MPF\0II*\0\x08\0\0\0")),
    "a colour profile in missing pieces": after_start(segment(0xE2, b"ICC_PROFILE\0\x03\x09junk")),
    "a colour profile without a number": after_start(segment(0xE2, b"ICC_PROFILE\0")),
    "Photoshop data that ends early": after_start(segment(0xED, b"Photoshop 3.0\0" + b"8BIM\x03")),
    "a short JFIF segment": JPEG[:2] + segment(0xE0, b"JFIF") + JPEG[20:],
    "a thousand comments": after_start(*[segment(0xFE, b"x" * 3)] * 1000),
    "comments of 10 MB": after_start(*[segment(0xFE, b"x" * 65000)] * 160),
    "Exif of 10 MB": after_start(*[segment(0xE1, b"Exif\0\0II*\0" + b"\0" * 65000)] * 160),
    "a space before the file": b" " + JPEG,
}

WEBP_FAULTS = {
    "a file size that is too small": riff(PICTURE, size=4),
    "a file size that is too large": riff(PICTURE, size=2**31),
    "an odd file size": riff(PICTURE, size=len(WEBP) - 9),
    "an unknown chunk behind": riff(PICTURE, riff_chunk(b"abcd", b"123")),
    "a chunk behind that is cut off": WEBP + b"EXIF\xff\xff\0\0II*",
    "bytes behind": WEBP + b"\0\0\0" * 33,
    "another file behind": WEBP + JPEG,
    "an unknown chunk before": riff(riff_chunk(b"abcd", b"1"), PICTURE),
    "a colour profile that is not announced": riff(riff_chunk(b"ICCP", b"junk"), PICTURE),
    "Exif that is junk": riff(PICTURE, riff_chunk(b"EXIF", b"junk")),
    "Exif announced and not there": riff(
        riff_chunk(b"VP8X", b"\x3c\0\0\0" + struct.pack("<I", 60)[:3] + struct.pack("<I", 44)[:3]),
        PICTURE,
    ),
    "a canvas of another size": riff(
        riff_chunk(b"VP8X", b"\0\0\0\0" + struct.pack("<I", 99)[:3] * 2), PICTURE
    ),
}

GIF_FAULTS = {
    "no end mark": GIF[:-1],
    "bytes behind": GIF + b"junk" * 100,
    "a comment of a megabyte": GIF[:781] + COMMENT + GIF[781:],
    "an unknown extension": GIF[:781] + b"\x21\x77\x03abc\0" + GIF[781:],
    "a further frame that is cut off": GIF[:-1] + b"\x2c" + b"\0" * 5,
}

FAULTS = {
    **{f"png: {name}": (PNG, data) for name, data in PNG_FAULTS.items()},
    **{f"jpeg: {name}": (JPEG, data) for name, data in JPEG_FAULTS.items()},
    **{f"webp: {name}": (WEBP, data) for name, data in WEBP_FAULTS.items()},
    **{f"gif: {name}": (GIF, data) for name, data in GIF_FAULTS.items()},
    "png with alpha: text": (
        GREY_ALPHA,
        after_header(chunk(b"tEXt", b"k\0" + b"x" * 2**21), file=GREY_ALPHA),
    ),
    "progressive jpeg: no end mark": (PROGRESSIVE, PROGRESSIVE[:-2]),
    "webp with alpha: bytes behind": (ALPHA_WEBP, ALPHA_WEBP + b"junk"),
    "bmp: bytes behind": (BMP, BMP + b"junk"),
    "bmp: a wrong file size": (BMP, BMP[:2] + b"\xff" * 4 + BMP[6:]),
    "tiff: bytes behind": (TIFF, TIFF + b"junk!"),
}


def test_the_comment_goes_between_screen_and_frame() -> None:
    assert GIF[781:782] in {b"!", b","}


@pytest.mark.parametrize("name", FAULTS)
def test_pixels_are_those_of_the_file_without_fault(policy: ImagePolicy, name: str) -> None:
    plain, faulty = FAULTS[name]
    assert plain != faulty
    assert decoded(faulty, policy) == decoded(plain, policy)
    assert inspect(faulty, LIMITS, "f").width == 61


SIZES = ((1, 1), (8, 8), (17, 9), (61, 45), (160, 120))
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"progressive": True},
    {"optimize": True, "quality": 95},
    {"subsampling": 0, "quality": 100},
    {"restart_marker_blocks": 1},
    {"restart_marker_rows": 1, "quality": 20},
)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_without_end_mark_is_whole(
    policy: ImagePolicy, size: tuple[int, int], options: dict[str, object], mode: str
) -> None:
    data = encoded(noise(mode, size), "JPEG", **options)
    assert decoded(data[:-2], policy) == decoded(data, policy)


def test_orientation_is_read_wherever_pillow_reads_it(policy: ImagePolicy) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    block = exif.tobytes()
    xmp = b'<x:xmpmeta tiff:Orientation="6"></x:xmpmeta>'
    text = b"\nexif\n%8d\n%s\n" % (len(block), block.hex().encode())
    files = [
        after_start(segment(0xE1, block)),
        after_start(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp)),
        after_header(chunk(b"eXIf", block[6:])),
        before_end(chunk(b"eXIf", block[6:])),
        after_header(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)),
        after_header(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp))),
        after_header(chunk(b"tEXt", b"Raw profile type exif\0" + text)),
        after_header(chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))),
        encoded(noise("RGB"), "WEBP", exif=block),
        encoded(noise("RGB"), "TIFF", tiffinfo={274: 6}),
    ]
    for data in files:
        image = decoded(data, policy)
        assert (image.original_width, image.original_height) == (45, 61)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("kind", "letter"), [(1, "B"), (3, "H"), (4, "I")])
def test_orientation_of_every_byte_order_and_type(
    policy: ImagePolicy, order: str, kind: int, letter: str
) -> None:
    entry = struct.pack(order + "HHI" + letter, 0x0112, kind, 1, 8).ljust(12, b"\0")
    other = struct.pack(order + "HHII", 0x010E, 2, 2**31, 2**31)  # a text that is not there
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, 2)
    data = after_start(segment(0xE1, b"Exif\0\0" + start + other + entry))
    assert (decoded(data, policy).original_width, decoded(PNG, policy).original_width) == (45, 61)


def test_a_tiff_without_what_is_odd(policy: ImagePolicy) -> None:
    """Directories of Exif and GPS, a profile and texts that are junk; big-endian and big files; smaller versions."""
    odd = {34665: 2**31, 34853: 7, 34675: b"junk", 270: "x" * 2**20, 700: b"<x"}
    data = encoded(noise("RGB"), "TIFF", tiffinfo=odd, compression="tiff_lzw")
    plain = decoded(TIFF, policy)
    assert decoded(data, policy).pixels == plain.pixels
    assert decoded(encoded(noise("RGB"), "TIFF", big_tiff=True), policy).pixels == plain.pixels
    reduced = noise("RGB", (9, 7))
    reduced.encoderinfo = {"tiffinfo": {254: 1}}
    pyramid = encoded(noise("RGB"), "TIFF", save_all=True, append_images=[reduced])
    assert decoded(pyramid, policy).pixels == plain.pixels


def test_tiles_count_as_they_are_decoded(policy: ImagePolicy) -> None:
    data = tiff_of(np.zeros((8, 8), np.uint8), t322=2**15, t323=2**15, t324=8, t325=64)
    with pytest.raises(ImageTooLargeError, match="--max-image-pixels"):
        decoded(data, policy)


def test_pages_are_not_dropped_silently(policy: ImagePolicy) -> None:
    pages = encoded(noise("L"), "TIFF", save_all=True, append_images=[noise("L"), noise("L")])
    with pytest.raises(InvalidImageError, match="3 pages"):
        decoded(pages, policy)


@pytest.mark.parametrize("kind", ["group3", "group4", "jpeg", "packbits", "tiff_deflate", "raw"])
def test_compressions_of_tiff(policy: ImagePolicy, kind: str) -> None:
    image = noise("1" if kind.startswith("group") else "RGB")
    data = encoded(image, "TIFF", compression=kind)
    got = np.frombuffer(decoded(data, policy).pixels, np.uint8).astype(int)
    wanted = np.frombuffer(decoded(encoded(image), policy).pixels, np.uint8)
    assert np.abs(got - wanted).mean() <= (60 if kind == "jpeg" else 0)


def encoded_text(data: bytes) -> bytes:
    import base64

    return base64.b64encode(data)


NAMED = {
    "AVIF": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf",
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "MP4 video": b"\0\0\0\x18ftypisom\0\0\2\0isomiso2",
    "QuickTime video": b"\0\0\0\x14ftypqt  \0\0\0\0qt  ",
    "SVG": b'<?xml version="1.0"?>\n<!-- made by -->\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "PDF": encoded(noise("RGB"), "PDF"),
    "JPEG 2000": encoded(noise("RGB"), "JPEG2000"),
    "JPEG XL": b"\0\0\0\x0cJXL \r\n\x87\n",
    "ICO": encoded(noise("RGB"), "ICO"),
    "PNM": encoded(noise("RGB"), "PPM"),
    "HTML": b"<!DOCTYPE html><html><body>404</body></html>",
    "XML": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "JSON": b'{"error": "not found"}',
    "PostScript": encoded(noise("RGB"), "EPS"),
    "TGA": encoded(noise("RGB"), "TGA"),
    "CUR": b"\0\0\2\0\1\0\x20\x20\0\0",
    "DDS": encoded(noise("RGB"), "DDS"),
    "WebM or Matroska video": b"\x1aE\xdf\xa3\x01\0\0\0",
    "AVI video": b"RIFF\x10\0\0\0AVI LIST",
    "ZIP (or Office document)": b"PK\3\4\x14\0",
    "gzip": b"\x1f\x8b\x08\0",
    "base64 text": encoded_text(PNG),
    "data: URI": b"data:image/png;base64," + encoded_text(PNG),
    "URL": b"https://example.com/a.png",
    "text": "这是什么".encode(),
    "empty": b"",
    "of an unknown format": b"\x00\x01\x02\x03\xfe\xff",
}


@pytest.mark.parametrize("name", NAMED)
def test_refusals_name_what_was_sent(policy: ImagePolicy, name: str) -> None:
    for refuse in (lambda: decoded(NAMED[name], policy), lambda: inspect(NAMED[name], LIMITS, "f")):
        with pytest.raises(InvalidImageError) as caught:
            refuse()
        assert f" {name}; it must be a JPEG, PNG, WebP" in caught.value.message
        assert caught.value.field == "f"


def test_names_are_found_in_linear_time() -> None:
    for data in (b"<!---->" * 200, b"<" * 2000, b"\xff" * 10**6, b" " * 10**6, b"\0" * 10**6):
        assert sniff(data)[0] not in READABLE


COSTLY = {
    "scans": JPEG[:2]
    + PROGRESSIVE[2:-2]
    + b"".join(segment(0xDA, b"\1\1\0\1\x05\0") for _ in range(5000))
    + b"\xff\xd9",
    "segments": after_start(segment(0xE1, b"Exif\0\0") * 100_000),
    "chunks": after_header(chunk(b"tEXt", b"") * 200_000),
    "webp chunks": riff(riff_chunk(b"abcd", b"") * 100_000, PICTURE),
    "gif blocks": GIF[:781] + b"\x21\xfe" + b"\1x" * 10**6 + b"\0" + GIF[781:],
    "tiff pieces": tiff_of(np.zeros((8, 8), np.uint8)).replace(
        struct.pack("<HHI", 273, 4, 1), struct.pack("<HHI", 273, 4, 2**31)
    ),
    "tags": b"II*\0" + struct.pack("<IH", 8, 65535) + bytes(12 * 65535 + 4),
}


@pytest.mark.parametrize("name", COSTLY)
def test_what_costs_too_much_is_refused(policy: ImagePolicy, name: str) -> None:
    with pytest.raises(ImageTooLargeError, match="costs too much to decode: it has more than"):
        decoded(COSTLY[name], policy)


@pytest.mark.parametrize(("side", "words"), [(2001, "visits each"), (9, "more runs than pixels")])
def test_run_lengths_are_limited(policy: ImagePolicy, side: int, words: str) -> None:
    data = slow_bitmap(side) + b"\1\7" * (5000 if side == 9 else 0)
    with pytest.raises(ImageTooLargeError, match=words):
        decoded(data, policy)


def test_a_bitmap_of_run_lengths(policy: ImagePolicy) -> None:
    row = b"\x05\x01" + b"\x04\x02" + b"\0\0"  # five pixels of one colour and four of another
    runs = slow_bitmap(9)
    start = int.from_bytes(runs[10:14], "little")
    got = np.frombuffer(decoded(runs[:start] + row * 9 + b"\0\1", policy).pixels, np.uint8)
    with pytest.raises(InvalidImageError, match="cut off"):
        decoded(runs[:start] + row * 5, policy)
    colours = np.array([[0, 254, 1]] * 5 + [[0, 253, 2]] * 4, np.uint8)
    plain = encoded(Image.fromarray(np.broadcast_to(colours, (9, 9, 3)).copy()))
    assert np.array_equal(got, np.frombuffer(decoded(plain, policy).pixels, np.uint8))


def test_many_scans_of_a_large_image_are_refused(policy: ImagePolicy) -> None:
    large = encoded(Image.new("RGB", (5000, 5000)), "JPEG", progressive=True)
    scan = segment(0xDA, b"\1\1\0\1\x05\0")
    with pytest.raises(ImageTooLargeError, match="visits each of its pixels"):
        decoded(large[:-2] + scan * 200 + b"\xff\xd9", policy)
    assert decoded(large, policy)


def test_what_cannot_be_read_is_not_called_cut_off(policy: ImagePolicy) -> None:
    twelve = bytearray(JPEG)
    twelve[JPEG.index(b"\xff\xc0") + 4] = 12
    damaged = bytearray(PNG)
    damaged[16:20] = b"\0\0\0\x50"
    cases = [
        (bytes(twelve), "12 bits per sample"),
        (bytes(damaged), "wrong checksum"),
        (png(10, 10, body=b"nonsense"), "damaged"),
        (PNG[:8] + chunk(b"CgBI", b"\0\0\0\0") + PNG[8:], "CgBI"),
    ]
    for data, words in cases:
        with pytest.raises(InvalidImageError, match=words) as caught:
            decoded(data, policy)
        assert "cut off" not in caught.value.message
        assert io.BytesIO(data).read(4)


def of_length(kind: bytes, body: bytes, length: int) -> bytes:
    """A PNG chunk that declares another length than it has."""
    return struct.pack(">I", length) + chunk(kind, body)[4:]


def jpeg_of_length(marker: int, body: bytes, length: int) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", length) + body


def riff_of_length(kind: bytes, body: bytes, length: int) -> bytes:
    return kind + struct.pack("<I", length) + riff_chunk(kind, body)[8:]


WRONG_LENGTHS = (0, 1, 3, 8, 9, 40, 300, 65535, 2**24, 2**31, 2**32 - 1)
PALETTED = encoded(noise("RGB").quantize(64))
LOSSLESS_WEBP = encoded(noise("RGBA"), "WEBP", lossless=True)


@pytest.mark.parametrize("length", WRONG_LENGTHS)
def test_a_wrong_length_beside_the_pixels_does_no_harm(policy: ImagePolicy, length: int) -> None:
    short = length & 0xFFFF
    text = b"key\0a text of some words"
    files = [
        *((f, after_header(of_length(b"tEXt", text, length), file=f)) for f in (PNG, PALETTED)),
        (PNG, after_header(of_length(b"zzZz", text * 99, length))),
        (PNG, before_end(of_length(b"tEXt", text, length))),
        (JPEG, after_start(jpeg_of_length(0xE5, text, short))),
        (JPEG, JPEG[:20] + jpeg_of_length(0xFE, text, short) + JPEG[20:]),
        (PROGRESSIVE, after_start(jpeg_of_length(0xED, text * 9, short), file=PROGRESSIVE)),
        (WEBP, riff(riff_of_length(b"ICCP", text, length), PICTURE)),
        (WEBP, riff(PICTURE, riff_of_length(b"EXIF", text, length))),
        (LOSSLESS_WEBP, riff(riff_of_length(b"ICCP", text, length), LOSSLESS_WEBP[12:])),
    ]
    for plain, faulty in files:
        assert decoded(faulty, policy) == decoded(plain, policy)


def test_a_thumbnail_in_a_segment_of_a_wrong_length_is_not_the_image(policy: ImagePolicy) -> None:
    for length in (len(THUMBNAIL) + 13, len(THUMBNAIL) + 40, 65535):
        exif = jpeg_of_length(0xE1, b"Exif\0\0II*\0" + THUMBNAIL, length)
        try:
            image = decoded(after_start(exif), policy)
        except InvalidImageError:
            continue
        assert (image.original_width, image.original_height) == (61, 45)


def png_with(data: bytes, *, file: bytes = PNG, crc: int | None = None) -> bytes:
    """The file with other compressed image data."""
    start = file.index(b"IDAT") - 4
    return file[:start] + chunk(b"IDAT", data, crc=crc) + file[-12:]


def compressed(file: bytes = PNG) -> bytes:
    start = file.index(b"IDAT") + 4
    return file[start : start + int.from_bytes(file[start - 8 : start - 4], "big")]


def test_a_wrong_checksum_within_the_image_data_does_no_harm(policy: ImagePolicy) -> None:
    data = compressed()
    for changed in (
        data[:-4] + b"\0\0\0\0",
        data[:-4],
        data[:-4] + b"\0\0\0\0" + b"bytes behind",
        b"\x78\0" + data[2:],
        b"\x08\x1d" + data[2:],
    ):
        assert decoded(png_with(changed), policy) == decoded(PNG, policy)


def test_damage_that_two_checksums_tell_of_is_refused(policy: ImagePolicy) -> None:
    data = compressed()
    middle = len(data) // 2
    # Rows of noise are stored, so that another byte is no error of the compression.
    damaged = data[:middle] + bytes((data[middle] ^ 0x55,)) + data[middle + 1 :]
    with pytest.raises(InvalidImageError, match="damaged"):
        decoded(png_with(damaged, crc=1), policy)


@pytest.mark.parametrize("depth", [1, 8, 16])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.98])
def test_missing_rows_are_not_made_up(policy: ImagePolicy, depth: int, kept: float) -> None:
    samples = np.full((45, 64 if depth > 1 else 8), 0xFFFF if depth == 16 else 255)
    file = png_of(samples.astype(np.uint16 if depth == 16 else np.uint8), depth, 0)
    rows = zlib.decompress(compressed(file))
    size = len(rows) // 45
    some = rows[: int(45 * kept) * size]
    with pytest.raises(InvalidImageError, match="cut off"):
        decoded(png_with(zlib.compress(some), file=file), policy)
    black = png_with(zlib.compress(b"\0" * len(rows)), file=file)
    assert not any(decoded(black, policy).pixels)


def test_missing_passes_are_not_made_up(policy: ImagePolicy) -> None:
    header = struct.pack(">IIBBBBB", 9, 11, 8, 2, 0, 0, 1)
    sizes = (
        (2, 2),
        (1, 2),
        (3, 1),
        (2, 3),
        (5, 3),
        (4, 6),
        (9, 5),
    )  # columns and rows of the seven passes
    rows = [b"\0" + b"\xff" * 3 * columns for columns, count in sizes for _ in range(count)]
    for last, whole in (
        (len(rows), True),
        (len(rows) - 1, False),
        (len(rows) - 5, False),
        (9, False),
    ):
        data = zlib.compress(b"".join(rows[:last]))
        file = PNG[:8] + chunk(b"IHDR", header) + chunk(b"IDAT", data) + PNG[-12:]
        if whole:
            assert set(decoded(file, policy).pixels) == {255}
            continue
        with pytest.raises(InvalidImageError):
            decoded(file, policy)


def test_palettes(policy: ImagePolicy) -> None:
    start, end = PALETTED.index(b"PLTE") - 4, PALETTED.index(b"IDAT") - 4
    colours = PALETTED[start + 8 : end - 4]
    before, behind = PALETTED[:start], PALETTED[end:]
    longer = (colours + b"\7" * 900)[:900]
    assert decoded(before + chunk(b"PLTE", longer) + behind, policy) == decoded(PALETTED, policy)
    for broken in (b"", chunk(b"PLTE", b""), chunk(b"PLTE", colours, crc=0)):
        with pytest.raises(InvalidImageError, match="palette"):
            decoded(before + broken + behind, policy)
    suggested = after_header(chunk(b"PLTE", colours, crc=0))
    assert decoded(suggested, policy) == decoded(PNG, policy)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_too_many_pixels_are_told_with_the_limit(policy: ImagePolicy, kind: str) -> None:
    data = encoded(noise("RGB").convert("P") if kind == "GIF" else noise("RGB"), kind)
    limits = DecodeLimits(max_pixels=61 * 45 - 1)
    for refuse in (lambda: decoded(data, policy, limits), lambda: inspect(data, limits, "f")):
        with pytest.raises(ImageTooLargeError) as caught:
            refuse()
        for words in ("61 x 45 pixels", "2744 pixels", "--max-image-pixels"):
            assert words in caught.value.message


MANY_WRONG_LENGTHS = {
    "jpeg": JPEG[:2] + b"\xff\xe5\x00\x09" + b"\xff\xe5\x00\x08ABC" * 2_000_000 + JPEG[2:],
    "png": PNG[:33] + b"\0\0\0\1eXIf?\0\0\0\0" * 1_000_000 + PNG[33:],
    "png, sound ones between": PNG[:33]
    + (chunk(b"tRNS", b"\0") + b"\0\0\0\1aaaa") * 200_000
    + PNG[33:],
    "png, large candidates": PNG[:33] + b"\0\0\0\0" + b"\0\x0f\xff\xffIDAT" * 200_000 + PNG[33:],
    "webp": riff(b"abcd\3\0\0\0" + b"VP8 " * 4_000_000, PICTURE),
}


@pytest.mark.parametrize("name", MANY_WRONG_LENGTHS)
def test_looking_behind_wrong_lengths_is_bounded(policy: ImagePolicy, name: str) -> None:
    data = MANY_WRONG_LENGTHS[name]
    started = time.process_time()
    with pytest.raises((InvalidImageError, ImageTooLargeError)):
        decoded(data, policy)
    if "png" not in name:  # of PNG, only the size is read before a worker has the file
        with contextlib.suppress(InvalidImageError, ImageTooLargeError):
            inspect(data, LIMITS, "f")
    assert time.process_time() - started < 5
