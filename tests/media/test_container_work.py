"""What reading a container may cost, whatever is repeated in it: steps of Python are counted, no time is measured."""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import random
import re
import struct
from typing import Any
import zlib

import numpy as np
import pytest

from inference_service.media import containers
from inference_service.media.containers import gif, jpeg, png, webp
from inference_service.media.containers.base import (
    BYTES_PER_STEP,
    ContainerError,
    CostlyHeaderError,
    CutOffError,
    Effort,
    Header,
    Stripped,
    TooComplexError,
)
from inference_service.media.decoder import HEADER_STEPS
from inference_service.media.pixels import _orientation
from tests.media.files import SIGNATURE, chunk, encoded, noise, png_of, segment
from tests.support.line_counts import lines_of


SIZE = 2**18
MOST_STEPS = 300_000  # of lines: of a sixth of a second or less, in files of any size
SCAN = b"\1\1\0\0\x3f\0"
GIF = b"GIF89a\1\0\1\0\0\0\0"
FRAME = b"\x2c\0\0\0\0\1\0\1\0\0\2"
RIFF = b"RIFF\0\0\0\0WEBP"
TIFF = b"II*\0\x08\0\0\0"
JPEG = (
    b"\xff\xd8"
    + segment(0xDB, b"\0" + b"\1" * 64)
    + segment(0xC0, b"\x08\0\x10\0\x10\1\1\x11\0")
    + segment(0xDA, SCAN)
)
PROGRESSIVE = JPEG.replace(b"\xff\xc0", b"\xff\xc2")


def steps(read: Callable[[bytes, str], object], data: bytes, kind: str) -> int:
    def work() -> None:
        with contextlib.suppress(ContainerError):
            read(data, kind)

    return lines_of(work, "inference_service.media.containers")


HOSTILE = {
    "JPEG": {
        "stuffed bytes before the image": b"\xff\xd8" + b"\xff\0" * (SIZE // 2),
        "fill bytes before the image": b"\xff\xd8" + b"\xff" * SIZE,
        "markers that stand alone": b"\xff\xd8" + b"\xff\1" * (SIZE // 2),
        "reserved markers in a scan": JPEG + b"\xff\1" * (SIZE // 2),
        "empty comments in a scan": JPEG + b"\xff\xfe\0\2" * (SIZE // 4),
        "restarts": JPEG + b"\xff\xd0" * (SIZE // 2),
        "scans": PROGRESSIVE + segment(0xDA, SCAN) * (SIZE // 12),
    },
    "GIF": {
        "zeros": GIF + bytes(SIZE),
        "one comment of short blocks": GIF + b"\x21\xfe" + b"\1a" * (SIZE // 2),
        "empty comments": GIF + b"\x21\xfe\0" * (SIZE // 3),
        "cut extensions": GIF + b"\x21" * SIZE,
    },
    "PNG": {
        "empty image data": SIGNATURE + chunk(b"IHDR", bytes(8)) + chunk(b"IDAT", b"") * 20_000,
        "chunks of no type": encoded(noise("RGB"))[:33] + bytes(SIZE),
    },
    "WEBP": {
        "empty chunks": RIFF + b"XXXX\0\0\0\0" * (SIZE // 8),
        "chunks of a wrong length": RIFF + b"ALPH\1\0\0\0" * (SIZE // 8),
    },
    "TIFF": {"one directory": TIFF + b"\xff\x0f" + b"\0\1\3\0\1\0\0\0\1\0\0\0" * 4095},
    "BMP": {"nothing": b"BM" + bytes(SIZE)},
}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, files in HOSTILE.items() for name in files]
)
@pytest.mark.parametrize("read", [containers.header, containers.strip])
def test_what_is_repeated_costs_no_step_for_every_byte(read, kind: str, name: str) -> None:
    data = HOSTILE[kind][name]
    assert steps(read, data, kind) < MOST_STEPS


BEGINNINGS = {
    "JPEG": (b"\xff\xd8", JPEG, PROGRESSIVE),
    "GIF": (GIF, GIF + FRAME, GIF + b"\x21\xfe"),
    "PNG": (SIGNATURE, encoded(noise("RGB"))[:33], encoded(noise("P"))[:60]),
    "WEBP": (RIFF, encoded(noise("RGB"), "WEBP")[:30]),
    "TIFF": (TIFF, encoded(noise("RGB"), "TIFF")[:8]),
    "BMP": (encoded(noise("RGB"), "BMP")[:54],),
}
BYTES = b"\0\0\0\1\2\xff\xff\x21\x2c\x3b\xfe\xda\xd0\xd8\xe1aIDATVP8LXNMF"


@pytest.mark.parametrize("kind", sorted(BEGINNINGS))
def test_repetitions_at_random_cost_no_step_for_every_byte(kind: str) -> None:
    rng = random.Random(kind)
    for _ in range(25):
        unit = bytes(rng.choice(BYTES) for _ in range(rng.randint(1, 12)))
        data = rng.choice(BEGINNINGS[kind]) + unit * (SIZE // len(unit))
        for read in (containers.header, containers.strip):
            assert steps(read, data, kind) < MOST_STEPS, (unit, data[:64])


def front_header(data: bytes, kind: str) -> Header:
    """As the front reads it on its event loop."""
    return containers.header(data, kind, Effort(HEADER_STEPS))


COSTLY = {
    "GIF": {
        "empty extensions": GIF + b"\x21\1\0" * 19_990 + FRAME,
        "comments of short blocks": GIF + b"\x21\xfe" + b"\1a" * 19_990 + b"\0" + FRAME,
    },
    "WEBP": {
        "empty chunks": RIFF + b"EXIF\0\0\0\0" * 9_990 + encoded(noise("RGB"), "WEBP")[12:],
        "a wrong length": RIFF + b"EXIF\1\0\0\0" + b"VP8 " * 2**16,
    },
    "JPEG": {
        "empty comments": JPEG[:2] + b"\xff\xfe\0\2" * 2_000 + JPEG[2:],
        "stray bytes": JPEG[:2] + b"\xff\0" * 2**18 + JPEG[2:],
        "a wrong length": JPEG[:2] + b"\xff\xe1\0\3a" + b"\xff\0" * 2**17 + JPEG[2:],
    },
    "TIFF": {
        "tags": TIFF
        + struct.pack("<H", 4_000)
        + b"".join(struct.pack("<HHII", tag, 3, 1, 1) for tag in range(4_000)),
    },
}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, files in COSTLY.items() for name in files]
)
def test_the_front_leaves_costly_headers_to_workers(kind: str, name: str) -> None:
    data = COSTLY[kind][name]
    with pytest.raises(CostlyHeaderError):
        front_header(data, kind)
    with contextlib.suppress(ContainerError):
        containers.header(data, kind)  # no more than the format's own limits


@pytest.mark.parametrize("kind", sorted(BEGINNINGS))
def test_no_header_costs_the_front_more_than_its_steps(kind: str) -> None:
    rng = random.Random(kind)
    files = [*HOSTILE[kind].values(), *COSTLY.get(kind, {}).values()]
    for _ in range(25):
        unit = bytes(rng.choice(BYTES) for _ in range(rng.randint(1, 12)))
        files.append(rng.choice(BEGINNINGS[kind]) + unit * (SIZE // len(unit)))
    for data in files:

        def read(data: bytes, kind: str) -> None:
            with contextlib.suppress(CostlyHeaderError):
                front_header(data, kind)

        assert steps(read, data, kind) < 30 * HEADER_STEPS, data[:64]


@pytest.mark.parametrize("kind", sorted(BEGINNINGS))
def test_what_the_front_reads_is_what_a_worker_reads(kind: str) -> None:
    rng = random.Random(kind)
    whole = encoded(noise("RGB"), kind)
    assert front_header(whole, kind) == containers.header(whole, kind)
    for _ in range(100):
        data = bytearray(whole)
        at = rng.randrange(8, 40)
        data[at : at + rng.randrange(4)] = rng.randbytes(rng.randrange(8)) * rng.randint(1, 20)
        outcomes: list[object] = []
        for read in (front_header, containers.header):
            try:
                outcomes.append(read(bytes(data), kind))
            except ContainerError as error:
                outcomes.append((type(error), str(error)))
        assert outcomes[0] == outcomes[1]


def test_effort_is_of_parts_and_of_bytes() -> None:
    effort = Effort(3)
    effort.spend(1)
    effort.spend_bytes(2 * BYTES_PER_STEP)
    with pytest.raises(CostlyHeaderError):
        effort.spend(1)


def test_stray_bytes_are_skipped_as_decoders_do_but_not_without_end() -> None:
    whole = encoded(noise("P"), "GIF")
    at = whole.index(b"\x2c", 13 + 768)
    for few, many, data, read in (
        (gif.MAX_STRAY, gif.MAX_STRAY + 1, whole[:at] + b"%b" + whole[at:], "GIF"),
        (jpeg.MAX_STRAY, jpeg.MAX_STRAY + 1, JPEG[:2] + b"%b" + JPEG[2:], "JPEG"),
    ):
        before, after = data.split(b"%b")
        assert containers.header(before + bytes(few) + after, read).width
        with pytest.raises(CutOffError, match="no image data, but"):
            containers.header(before + bytes(many) + after, read)
        for cut in (few, 10):  # here nothing tells that there could be more
            with pytest.raises(CutOffError, match="ends before its image data"):
                containers.header(before + bytes(cut), read)


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_blocks_of_a_frame_are_counted(cut: int) -> None:
    def strip(blocks: int) -> Stripped:
        data = GIF + FRAME + b"\1a" * blocks + b"\0;"
        return gif.strip(data[: len(data) - cut])

    whole = strip(gif.MAX_FRAME_BLOCKS - 1)
    assert whole.complete == (cut < 2)
    assert whole.data.count(b"\1a") == gif.MAX_FRAME_BLOCKS - 1
    with pytest.raises(TooComplexError, match="500000 blocks"):
        strip(gif.MAX_FRAME_BLOCKS)


def test_markers_of_the_scans_are_counted() -> None:
    data = JPEG + b"\xff\1" * (jpeg.MAX_MARKERS - 1)
    assert jpeg.strip(data + b"\xff\xd9").complete
    with pytest.raises(TooComplexError, match="20000 markers"):
        jpeg.strip(data + b"\xff\1\xff\xd9")


@pytest.mark.parametrize("beside", [b"", b"a" * 2**20])
def test_a_progressive_file_has_its_scans_or_if_it_is_large_any_number(beside: bytes) -> None:
    data = PROGRESSIVE + beside + segment(0xDA, SCAN) * 4 + b"\xff\xd9"
    assert jpeg.header(data).passes == (jpeg.MAX_SCANS if beside else 5)
    assert jpeg.strip(data).header.passes == 5


@pytest.mark.parametrize("seed", range(20))
def test_the_next_restart_of_a_scan_is_found_without_looking_at_all(seed: int) -> None:
    rng = random.Random(seed)
    data = JPEG + b"".join(
        rng.choice((b"\xff\0", b"a", bytes((0xFF, 0xD0 + rng.randrange(8)))))
        for _ in range(rng.randint(0, 30))
    )
    all_of_them = re.findall(rb"\xff[\xd0-\xd7]", data[data.rfind(b"\xff\xda") :])
    turn = all_of_them[-1][1] + 1 & 7 if all_of_them else 0
    assert re.findall(rb"\xff[\xd0-\xd7]", jpeg.continuation(data, 0)) == [
        bytes((0xFF, 0xD0 | turn)),
        bytes((0xFF, 0xD0 | turn + 1 & 7)),
    ]


def exif_text(orientation: int, kind: bytes = b"zTXt") -> bytes:
    """ImageMagick's chunk, in lines of 72 digits."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\x01\3\0\1\0\0\0" + bytes((orientation,)) + bytes(7)
    digits = exif.hex().encode() + b"00" * 60
    lines = b"\n".join(digits[at : at + 72] for at in range(0, len(digits), 72))
    text = b"\nexif\n%8d\n" % (len(digits) // 2) + lines + b"\n"
    return text_chunk(kind, b"Raw profile type exif", text)


def xmp_text(orientation: int, kind: bytes = b"iTXt") -> bytes:
    return text_chunk(kind, b"XML:com.adobe.xmp", b'<x tiff:Orientation="%d"/>' % orientation)


def text_chunk(kind: bytes, name: bytes, text: bytes) -> bytes:
    between = {b"tEXt": b"", b"zTXt": b"\0", b"iTXt": b"\1\0\0\0"}[kind]
    body = text if kind == b"tEXt" else zlib.compress(text)
    return chunk(kind, name + b"\0" + between + body)


def with_chunks(*chunks: bytes) -> bytes:
    return png_of(noise_array(), 8, 2, *chunks)


def noise_array() -> Any:
    return np.asarray(noise("RGB", (4, 3)))


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt"])
@pytest.mark.parametrize("text", [exif_text, xmp_text])
def test_texts_that_hold_the_orientation_are_read(text: Callable[..., bytes], kind: bytes) -> None:
    others = (chunk(b"tEXt", b"Comment\0hello"), text_chunk(b"zTXt", b"Raw profile type icc", b"x"))
    stripped = png.strip(with_chunks(*others, text(6, kind), *others, text(3, kind)))
    assert _orientation(stripped.exif, stripped.xmp) == 6


def test_a_chunk_of_exif_comes_before_texts_of_it() -> None:
    exif = chunk(b"eXIf", b"II*\0\x08\0\0\0\1\0\x12\x01\3\0\1\0\0\0\5" + bytes(7))
    for chunks in ((exif, exif_text(3)), (exif, exif_text(3), exif_text(4))):
        stripped = png.strip(with_chunks(*chunks))
        assert _orientation(stripped.exif, stripped.xmp) == 5


@pytest.mark.parametrize("name", [b"Raw profile type exif", b"XML:com.adobe.xmp"])
@pytest.mark.parametrize("text", [b"", b"\n" * 2**20, b"no digits", b"\n\n\nabc"])
def test_a_text_of_each_kind_is_unpacked_once_whatever_it_is(
    name: bytes, text: bytes, monkeypatch
) -> None:
    unpacked: list[bytes] = []
    read = png._text

    def counted(kind: bytes, body: bytes) -> bytes:
        unpacked.append(read(kind, body))
        return unpacked[-1]

    monkeypatch.setattr(png, "_text", counted)
    assert png.strip(with_chunks(*[text_chunk(b"zTXt", name, text)] * 210)).complete
    assert unpacked == [text]


def test_the_pixels_behind_a_wrong_length_are_looked_for_a_few_times_only(monkeypatch) -> None:
    pixels = encoded(noise("RGB"), "WEBP")[12:]
    wrong = b"EXIF" + struct.pack("<I", 40) + bytes(10)
    assert webp.strip(RIFF + wrong + pixels).header.width == 61
    searches = 0

    class Searched:
        def search(self, *arguments: Any) -> Any:
            nonlocal searches
            searches += 1
            return pattern.search(*arguments)

    pattern = webp._PIXELS_BEGIN
    monkeypatch.setattr(webp, "_PIXELS_BEGIN", Searched())
    with pytest.raises(ContainerError):
        webp.header(RIFF + (b"ALPH" + struct.pack("<I", 2**17 - 9) + bytes(2**17 - 30)) * 40)
    assert searches == 8
