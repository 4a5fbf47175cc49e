"""Files that mean harm cost little time and memory, and crash no worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
import random
import re
import time
import zlib

from PIL import Image
import pytest

from inference_service.errors import (
    ImageTooLargeError,
    InvalidImageError,
    ServiceError,
)
from inference_service.media.images import DecodeLimits, ProcessedImage
from inference_service.model_spec import ImagePolicy
from tests.media.decoding import JPEG, Decoding, cpu_s, peak_mib
from tests.media.files import chunk, encoded, noise, png, segment


def hostile_files() -> dict[str, bytes]:
    scans = b"".join(segment(0xDA, b"\1\1\0\1\x3f\0") + b"\x7f" * 9 for _ in range(5000))
    progressive = encoded(noise("RGB", (1200, 1200)), "JPEG", progressive=True, quality=5)
    plain = encoded(noise("RGB"))
    return {
        "5,000 scans": progressive[:-2] + scans + b"\xff\xd9",
        "segments of Exif": JPEG[:2] + segment(0xE1, b"Exif\0\0") * 2_000_000 + JPEG[2:],
        "large segments of Exif": JPEG[:2]
        + segment(0xE1, b"Exif\0\0" + bytes(60000)) * 300
        + JPEG[2:],
        "an image of zeros": png(7071, 7071, body=zlib.compress(bytes(7072 * 7071), 9)),
        "more zeros than pixels": png(100, 100, body=zlib.compress(bytes(2**28), 1)),
        "a profile that is a bomb": plain[:33]
        + chunk(b"iCCP", b"n\0\0" + zlib.compress(bytes(2**28), 1)) * 20
        + plain[33:],
        "a lossless image of one colour": encoded(
            Image.new("RGB", (7000, 7000)), "WEBP", lossless=True
        ),
        "a lossless image of the largest size": b"RIFF\x1e\0\0\0WEBPVP8L\x11\0\0\0\x2f\xff\xff\xff\x0f"
        + bytes(13),
        "comments of a GIF": encoded(noise("P"), "GIF")[:781] + b"\x21\xfe\x01a\0" * 10**6,
    }


async def image_or_refusal(
    one: Decoding, data: bytes, policy: ImagePolicy
) -> ProcessedImage | InvalidImageError | ImageTooLargeError:
    try:
        return await one.image(data, policy)
    except (InvalidImageError, ImageTooLargeError) as error:
        return error


async def test_hostile_files_cost_little(make, policy: ImagePolicy) -> None:
    one = make(1, image_timeout_s=120, request_timeout_s=120)  # the bounds are of CPU time
    await one.image(JPEG, policy)
    for name, data in hostile_files().items():
        [pid] = one.pool.pids
        begun, front = cpu_s(pid), time.process_time()
        await image_or_refusal(one, data, policy)
        assert one.pool.pids == (pid,), name
        assert cpu_s(pid) - begun < 15, name
        assert time.process_time() - front < 2, name
        assert peak_mib(pid) < 1124, name


FUZZED = {
    kind: encoded(noise(mode, (40, 30)), kind.split()[0], **options)
    for kind, mode, options in (
        ("PNG", "RGBA", {}),
        ("PNG grey", "I;16", {}),
        ("PNG palette", "P", {"transparency": 3}),
        ("JPEG", "RGB", {}),
        ("JPEG progressive", "RGB", {"progressive": True}),
        ("JPEG cmyk", "CMYK", {"restart_marker_blocks": 2}),
        ("WEBP", "RGB", {}),
        ("WEBP lossless", "RGBA", {"lossless": True}),
        ("WEBP animated", "RGB", {"save_all": True, "append_images": [noise("RGB", (40, 30), 9)]}),
        ("GIF", "P", {}),
        ("BMP", "RGB", {}),
        ("TIFF", "RGB", {}),
        ("TIFF lzw", "RGBA", {"compression": "tiff_lzw"}),
        ("TIFF deflate", "L", {"compression": "tiff_adobe_deflate"}),
        ("TIFF jpeg", "RGB", {"compression": "jpeg"}),
    )
}


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A file with bytes changed, inserted, removed, repeated, or numbers replaced by extreme ones."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(min(len(changed), rng.choice((64, 10**9))) or 1)
        match rng.randrange(6):
            case 0:
                changed[at : at + 1] = bytes((rng.randrange(256),))
            case 1:
                changed[at : at + 4] = rng.choice(
                    (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\x40\0")
                )
            case 2:
                del changed[at : at + rng.randint(1, 40)]
            case 3:
                changed[at:at] = rng.randbytes(rng.randint(1, 40))
            case 4:
                changed[at:at] = changed[at : at + rng.randint(1, 400)]
            case 5:
                del changed[at + rng.randint(0, 200) :]
    return bytes(changed)


async def fuzz(make: Callable[..., Decoding], policy: ImagePolicy, seed: int, rounds: int) -> None:
    """No mutation costs much time or memory, crashes a worker, or ends with anything but an image or a refusal."""
    rng = random.Random(seed)
    limits = DecodeLimits(max_pixels=10**6)
    one = make(2, memory_mib=256, limits=limits, image_timeout_s=10.0)
    small = replace(policy, min_pixels=1024, max_pixels=4096)
    await one.image(JPEG, small)
    pids = set(one.pool.pids)

    async def trial(name: str) -> None:
        data = mutated(FUZZED[name], rng)
        got = await image_or_refusal(one, data, small)
        if isinstance(got, ServiceError):
            assert not re.search("failed|too long|0x", got.message), (name, data.hex())
        else:
            assert len(got.pixels) == got.height * got.width * 3

    for _ in range(rounds):
        await asyncio.gather(*map(trial, FUZZED))
    assert set(one.pool.pids) == pids
    assert max(map(peak_mib, pids)) < 356


async def test_mutations_of_every_format(make, policy: ImagePolicy) -> None:
    await fuzz(make, policy, seed=1, rounds=20)


@pytest.mark.full
async def test_many_mutations_of_every_format(make, policy: ImagePolicy) -> None:
    await fuzz(make, policy, seed=2, rounds=1000)
