"""The wire format between the front and the engine process.

Message types, their msgpack frames (4 bytes of length, big-endian, then the payload) and the memfds that carry
pixels. Never pickle (CVE-2025-32444): a frame can only become one of the types below.

A memfd travels with the first byte of the frame that announces it. The kernel keeps descriptors in order and never
delivers one later than its byte, so the receiver takes the oldest descriptor when it reads such a frame. A memfd
has no name: its memory is freed when both processes have ended, however they ended.
"""

from __future__ import annotations

from collections.abc import Sequence
import mmap
import os
import struct
from typing import Final, Generic, TypeVar

import msgspec

from inference_service.engine_protocol.messages import (
    ChoiceOutput,
    EngineConfig,
    EngineFailure,
    EngineReady,
    EngineRequest,
    EngineStats,
    PromptLayout,
    PromptSource,
)


MAX_FRAME_BYTES: Final = 64 * 2**20
"""Maximum payload. A million prompt ids are 5 MB; log probabilities of a long prompt are the largest messages."""

READ_BYTES: Final = 256 * 2**10
"""Maximum bytes per read from the socket."""

_LENGTH: Final = struct.Struct(">I")
_ENCODER: Final = msgspec.msgpack.Encoder()


class WireError(Exception):
    """The bytes are not a valid message, or a message exceeds the maximum frame size."""


class Start(msgspec.Struct, frozen=True, tag="start"):
    """Front to engine, the first message: load this model."""

    config: EngineConfig


class Add(msgspec.Struct, frozen=True, tag="add"):
    """Front to engine: compute this request. With `pixel_bytes` > 0 a memfd of that size is sent along."""

    request: EngineRequest
    pixel_bytes: int = 0


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """Front to engine: end one choice of a request now, or (None) all of them; unknown ids are ignored."""

    request_id: str
    choice_index: int | None = None


class Prepare(msgspec.Struct, frozen=True, tag="prepare"):
    """Front to an engine that prepares its prompts: prepare this one. Pixels are sent as with `Add`."""

    number: int
    source: PromptSource
    pixel_bytes: int = 0


class Forget(msgspec.Struct, frozen=True, tag="forget"):
    """Front to engine: nobody waits for this prompt any more; if it is not prepared yet, it never is."""

    number: int


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """Engine to front: the model is loaded, requests are accepted."""

    ready: EngineReady


class LoadFailed(msgspec.Struct, frozen=True, tag="load_failed"):
    """Engine to front: the model cannot be loaded; the reason is for the operator, not for callers."""

    reason: str


class Outputs(msgspec.Struct, frozen=True, tag="outputs"):
    """Engine to front: outputs of choices. The last output of each has a finish reason, exactly once."""

    outputs: tuple[ChoiceOutput, ...]


class Prepared(msgspec.Struct, frozen=True, tag="prepared"):
    """Engine to front: the prompt with this number, or why it is refused; neither if it was forgotten."""

    number: int
    layout: PromptLayout | None = None
    failure: EngineFailure | None = None


class Heartbeat(msgspec.Struct, frozen=True, tag="heartbeat"):
    """Engine to front: the engine loop is alive; `turn` counts its iterations since the start."""

    stats: EngineStats
    turn: int


class Pulse(msgspec.Struct, frozen=True, tag="pulse"):
    """Engine to front: the process is alive, whatever its loop does; `progress` grows within a step, too."""

    progress: int


Command = Start | Add | Abort | Prepare | Forget
Event = Loaded | LoadFailed | Outputs | Prepared | Heartbeat | Pulse
_MessageT = TypeVar("_MessageT")


def encode(message: Command | Event) -> bytearray:
    """Makes the frame of a message.

    Raises:
        WireError: The message is longer than `MAX_FRAME_BYTES`.
    """
    frame = bytearray(_LENGTH.size)
    _ENCODER.encode_into(message, frame, _LENGTH.size)
    size = len(frame) - _LENGTH.size
    if size > MAX_FRAME_BYTES:
        raise WireError(f"a message of {size} bytes does not fit a frame of {MAX_FRAME_BYTES}")
    _LENGTH.pack_into(frame, 0, size)
    return frame


class FrameReader(Generic[_MessageT]):
    """Cuts a stream of bytes into messages; memory is bounded by one frame and one read."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[_MessageT]) -> None:
        self._decoder = decoder
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray) -> list[_MessageT]:
        """Takes the bytes that were read and returns the completed messages.

        Raises:
            WireError: A frame is too long or invalid; the stream cannot be read any further.
        """
        self._buffer += data
        messages: list[_MessageT] = []
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._buffer, start)
            if size > MAX_FRAME_BYTES:
                raise WireError(
                    f"a frame of {size} bytes is too long; at most {MAX_FRAME_BYTES} are allowed"
                )
            end = start + _LENGTH.size + size
            if len(self._buffer) < end:
                break
            messages.append(self._decode(self._buffer[start + _LENGTH.size : end]))
            start = end
        del self._buffer[:start]
        return messages

    def _decode(self, payload: bytearray) -> _MessageT:
        try:
            return self._decoder.decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise WireError(
                f"a payload of {len(payload)} bytes is not a valid message: {error}"
            ) from error


def command_reader() -> FrameReader[Command]:
    """Reads commands, in the engine."""
    return FrameReader(msgspec.msgpack.Decoder(Command))


def event_reader() -> FrameReader[Event]:
    """Reads events, in the front."""
    return FrameReader(msgspec.msgpack.Decoder(Event))


def write_pixels(pixels: Sequence[bytes | memoryview]) -> int:
    """Copies images, one after the other, into a new memfd and returns its descriptor, which the caller closes.

    Raises:
        OSError: No memory or no descriptor is left.
    """
    fd = os.memfd_create("pixels", os.MFD_CLOEXEC)
    try:
        for image in pixels:
            rest = memoryview(image).cast("B")
            while rest:
                rest = rest[os.write(fd, rest) :]
    except OSError:
        os.close(fd)
        raise
    return fd


def map_pixels(fd: int, size: int) -> memoryview:
    """Maps a received memfd read-only and closes the descriptor; the memory lives as long as the returned view.

    Raises:
        WireError: The memfd is smaller than announced (touching the missing pages would be a SIGBUS).
    """
    try:
        if os.fstat(fd).st_size < size:
            raise WireError(f"the memfd is smaller than {size} bytes")
        return memoryview(mmap.mmap(fd, size, access=mmap.ACCESS_READ))
    finally:
        os.close(fd)
