"""Messages between the front and a decode worker.

A worker sends one `Ready`, and then one reply for each job, never anything else. A message is 4 bytes of length
(big-endian) and msgpack, never pickle. The files of a job follow it as they are. Pixels come back in a memfd that comes
with the reply; it is sealed, so that a worker cannot shrink it while the front reads it.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from inference_service.media.containers.base import Header
from inference_service.media.images import DecodeLimits, FrameSpec, ProcessedImage
from inference_service.model_spec import ImagePolicy


MAX_REPLY_BYTES: Final = 2**20
LENGTH: Final = struct.Struct(">I")


class HeaderWork(msgspec.Struct, frozen=True, tag="header"):
    """Read with `inspect` what one file declares."""

    field: str


class ImageWork(msgspec.Struct, frozen=True, tag="image"):
    """Decode one file with `decode_image`."""

    policy: ImagePolicy
    min_pixels: int
    max_pixels: int
    field: str


class VideoWork(msgspec.Struct, frozen=True, tag="video"):
    """Decode frames with `decode_video`; `order` has the index of the file of each frame."""

    spec: FrameSpec
    order: tuple[int, ...]
    fields: tuple[str, ...]


class Job(msgspec.Struct, frozen=True):
    """Front to worker; files of these sizes follow.

    Attributes:
        work: What to do.
        limits: Limits on each file.
        file_bytes: Size of each file.
        cpu_s: CPU time after which the kernel ends the worker.
    """

    work: HeaderWork | ImageWork | VideoWork
    limits: DecodeLimits
    file_bytes: tuple[int, ...]
    cpu_s: float


class ImageRecord(msgspec.Struct, frozen=True):
    """A `ProcessedImage` without its pixels."""

    height: int
    width: int
    original_height: int
    original_width: int
    grid: tuple[int, int, int]
    num_tokens: int
    digest: bytes
    frames: int
    time_step: float
    is_video: bool

    @classmethod
    def of(cls, image: ProcessedImage) -> ImageRecord:
        """Describes an image."""
        return cls(**{name: getattr(image, name) for name in cls.__struct_fields__})

    @property
    def pixel_bytes(self) -> int:
        """Bytes of its pixels."""
        return self.frames * self.height * self.width * 3

    def with_pixels(self, pixels: bytes | memoryview) -> ProcessedImage:
        """The image."""
        return ProcessedImage(pixels=pixels, **msgspec.structs.asdict(self))


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Worker to front, once: everything is imported."""


class Done(msgspec.Struct, frozen=True, tag="done"):
    """Worker to front: the images; their pixels, one after the other, are in the memfd that comes along."""

    images: tuple[ImageRecord, ...]


class Inspected(msgspec.Struct, frozen=True, tag="inspected"):
    """Worker to front: what a file declares."""

    declared: Header


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """Worker to front: a `ServiceError`."""

    reason: str
    message: str
    field: str
    metadata: dict[str, str]


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Worker to front: a defect, with a traceback for the log."""

    traceback: str


Reply = Ready | Done | Inspected | Refused | Failed

_ENCODER: Final = msgspec.msgpack.Encoder()
JOBS: Final = msgspec.msgpack.Decoder(Job)
REPLIES: Final[msgspec.msgpack.Decoder[Reply]] = msgspec.msgpack.Decoder(Reply)


def encode(message: Job | Reply) -> bytes:
    """A message with its length."""
    payload = _ENCODER.encode(message)
    return LENGTH.pack(len(payload)) + payload
