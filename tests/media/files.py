"""Image files for the tests of decoding, some of which no library writes."""

from __future__ import annotations

import io
import struct
from typing import Any, Literal
import zlib

import numpy as np
from PIL import Image

from inference_service.media.decode import decode_image
from inference_service.media.images import DecodeLimits, ProcessedImage
from inference_service.model_spec import ImagePolicy


LIMITS = DecodeLimits()
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def noise(mode: str, size: tuple[int, int] = (61, 45), seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    width, height = size
    if mode in {"I;16", "I"}:
        return Image.fromarray(rng.integers(0, 65536, (height, width), dtype=np.uint16))
    if mode in {"1", "P", "PA"}:
        return noise("RGBA" if mode == "PA" else "RGB", size).convert(mode[0])
    channels = len(mode)
    data = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.frombytes(mode, size, data.tobytes())


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes, policy: ImagePolicy, limits: DecodeLimits = LIMITS) -> ProcessedImage:
    return decode_image(
        data,
        policy=policy,
        min_pixels=policy.min_pixels,
        max_pixels=policy.max_pixels,
        limits=limits,
        field="f",
    )


def pixels_of(image: ProcessedImage) -> np.ndarray:
    array = np.frombuffer(image.pixels, dtype=np.uint8)
    return array.reshape(image.height, image.width, 3)


def chunk(kind: bytes, body: bytes, *, crc: int | None = None) -> bytes:
    checked = kind + body
    checksum = zlib.crc32(checked) if crc is None else crc
    return struct.pack(">I", len(body)) + checked + struct.pack(">I", checksum)


def segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(body) + 2) + body


def png(width: int, height: int, *, body: bytes = b"", depth: int = 8, colour: int = 0) -> bytes:
    """A PNG whose header says anything."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return SIGNATURE + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def png_of(samples: np.ndarray, depth: int, colour: int, *between: bytes) -> bytes:
    """A PNG of samples [height, width] or [height, width, channels], with chunks between header and data."""
    height, width = samples.shape[:2]
    rows = samples.reshape(height, -1)
    if depth == 16:
        packed = rows.astype(">u2").view(np.uint8).reshape(height, -1)
    else:
        bits = np.unpackbits(rows.astype(np.uint8)[..., None], axis=2)[..., 8 - depth :]
        packed = np.packbits(bits.reshape(height, -1), axis=1)
    filtered = np.concatenate([np.zeros((height, 1), np.uint8), packed], axis=1)
    plain = png(width, height, depth=depth, colour=colour, body=zlib.compress(filtered.tobytes()))
    return plain[:33] + b"".join(between) + plain[33:]


def tiff_of(
    samples: np.ndarray,
    order: Literal["<", ">"] = "<",
    *,
    planes: bool = False,
    compressed: bool = False,
    **tags: int,
) -> bytes:
    """A TIFF of one strip, or one for each of several planes; `tags` replaces or adds values, named `t258`."""
    height, width, *channels = samples.shape
    count = channels[0] if channels else 1
    bits = samples.dtype.itemsize * 8
    kind = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    stored = samples.astype(samples.dtype.newbyteorder(order))
    strips = [
        zlib.compress(piece) if compressed else piece
        for piece in (
            [stored[..., i].tobytes() for i in range(count)] if planes else [stored.tobytes()]
        )
    ]
    starts = [8 + sum(map(len, strips[:i])) for i in range(len(strips))]
    values: dict[int, list[int]] = {256: [width], 257: [height], 258: [bits] * count}
    values |= {259: [8 if compressed else 1], 262: [1], 273: starts, 277: [count], 278: [height]}
    values |= {279: [*map(len, strips)], 284: [1 + planes], 339: [kind] * count}
    for name, value in tags.items():
        tag = int(name[1:])
        values[tag] = [value] * (count if tag in {258, 339} else 1)
    data = b"".join(strips)
    data += b"\0" * (len(data) % 2)
    position = 8 + len(data)
    entries = extra = b""
    for tag, numbers in sorted(values.items()):
        form = "H" if tag in {258, 339} else "I"
        packed = struct.pack(f"{order}{len(numbers)}{form}", *numbers)
        if len(packed) > 4:
            extra_at = position + 2 + 12 * len(values) + 4 + len(extra)
            extra += packed
            packed = struct.pack(order + "I", extra_at)
        entries += struct.pack(order + "HHI", tag, 3 if form == "H" else 4, len(numbers))
        entries += packed.ljust(4, b"\0")
    directory = struct.pack(order + "H", len(values)) + entries + struct.pack(order + "I", 0)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(order + "I", position) + data + directory + extra
