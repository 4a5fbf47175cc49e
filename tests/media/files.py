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


def tiff_of(samples: np.ndarray, order: Literal["<", ">"] = "<", **tags: int) -> bytes:
    """An uncompressed TIFF of one strip; `tags` replaces or adds values, named `t258`."""
    height, width, *channels = samples.shape
    data = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    count = channels[0] if channels else 1
    bits = samples.dtype.itemsize * 8
    values = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8, 277: count, 278: height}
    values |= {279: len(data), 339: {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]}
    values |= {int(name[1:]): value for name, value in tags.items()}
    entries = b""
    position = 8 + len(data) + len(data) % 2
    extra = b""
    for tag, value in sorted(values.items()):
        if tag in {258, 339} and count > 2:
            extra_at = position + 2 + 12 * len(values) + 4 + len(extra)
            entries += struct.pack(order + "HHII", tag, 3, count, extra_at)
            extra += struct.pack(order + f"{count}H", *(value,) * count)
        elif tag in {258, 339} and count == 2:
            entries += struct.pack(order + "HHIHH", tag, 3, 2, value, value)
        else:
            entries += struct.pack(order + "HHII", tag, 4, 1, value)
    directory = struct.pack(order + "H", len(values)) + entries + struct.pack(order + "I", 0)
    magic = b"II*\0" if order == "<" else b"MM\0*"
    padding = b"\0" * (len(data) % 2)
    return magic + struct.pack(order + "I", position) + data + padding + directory + extra
