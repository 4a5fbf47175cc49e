"""A decoder with its worker processes, and a look at what they cost."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
import struct
from typing import Any

from inference_service.media.decoder import ImageDecoder
from inference_service.media.images import FrameSpec, ProcessedImage
from inference_service.media.pool import WorkerPool
from inference_service.model_spec import ImagePolicy, VideoPolicy
from tests.media.files import LIMITS, encoded, noise


JPEG = encoded(noise("RGB"), "JPEG")
VIDEO = VideoPolicy(min_pixels=1, max_pixels=10**9, timestamps=True)


def slow_bitmap(side: int = 2000) -> bytes:
    """Runs of one pixel, which Pillow decodes in Python: seconds."""
    runs = (b"\x01\x07" * side + b"\0\0") * side + b"\0\1"
    palette = b"".join(bytes((i, 255 - i, 0, 0)) for i in range(256))
    information = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(runs), 0, 0, 256, 0)
    offset = 14 + 40 + len(palette)
    head = b"BM" + struct.pack("<IHHI", offset + len(runs), 0, 0, offset)
    return head + information + palette + runs


SLOW = slow_bitmap()


class Decoding:
    """A decoder with its pool."""

    def __init__(self, size: int = 2, memory_mib: int = 1024, **options: Any) -> None:
        command = options.pop("command", None)
        self.pool = WorkerPool(size, memory_mib=memory_mib, command=command)
        self.decoder = ImageDecoder(self.pool, options.pop("limits", LIMITS), **options)

    async def image(
        self, data: bytes, policy: ImagePolicy, allowance: Any = None
    ) -> ProcessedImage:
        return await self.decoder.decode(
            data,
            allowance or self.decoder.allowance(),
            policy=policy,
            min_pixels=policy.min_pixels,
            max_pixels=policy.max_pixels,
            field="f",
        )

    async def video(
        self, files: list[bytes], policy: ImagePolicy, allowance: Any = None
    ) -> tuple[ProcessedImage, ...]:
        return await self.decoder.decode_video(
            files,
            [f"f{i}" for i in range(len(files))],
            FrameSpec(policy=policy, video=VIDEO, fps=2.0),
            allowance or self.decoder.allowance(),
            field="video",
        )

    async def busy_pid(self) -> int:
        """The worker that computes, once it does."""
        return await busy_pid(self.pool)


async def busy_pid(pool: WorkerPool) -> int:
    """The worker of a pool that computes, once it does."""
    async with asyncio.timeout(60):
        while True:
            for worker in pool._busy:
                if worker.ready and cpu_s(worker.process.pid) > 0.3:
                    return worker.process.pid
            await asyncio.sleep(0.02)


def cpu_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
