"""A decode worker: a process that decodes one job after the other, with limits on memory and CPU time.

Started by `media.pool` as `python -P -m inference_service.media.worker`; it does not outlive the front. Its input is
hostile: it imports only what decoding needs, opens nothing, and may be killed at any time.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import contextlib
import fcntl
import math
import os
from pathlib import Path
import resource
import socket
import sys
import traceback
from typing import BinaryIO, Final

from inference_service.child import die_with, limit_memory, silence
from inference_service.errors import ServiceError
from inference_service.media.checks import inspect
from inference_service.media.decode import decode_image, decode_video
from inference_service.media.images import DecodeLimits, ProcessedImage
from inference_service.media.sandbox import enter_sandbox
from inference_service.media.worker_protocol import (
    JOBS,
    LENGTH,
    Done,
    Failed,
    HeaderWork,
    ImageRecord,
    ImageWork,
    Inspected,
    Job,
    Ready,
    Refused,
    VideoWork,
    encode,
)


_OOM_SCORE: Final = "900"
"""Of 1000: the kernel ends a worker before the front and the engine, unless it ends all of a container at once."""
_MAX_TRACEBACK: Final = 8000
_MAX_DESCRIPTORS: Final = 64


def serve(sock: socket.socket) -> None:
    """Decodes jobs until the front closes the socket."""
    sock.sendall(encode(Ready()))
    with sock.makefile("rb") as stream:
        while (job := _read_job(stream)) is not None:
            files = [stream.read(size) for size in job.file_bytes]
            if sum(map(len, files)) < sum(job.file_bytes):
                return
            _limit_cpu(job.cpu_s)
            _answer(sock, job, files)


def _read_job(stream: BinaryIO) -> Job | None:
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (size,) = LENGTH.unpack(head)
    return JOBS.decode(stream.read(size))


def _answer(sock: socket.socket, job: Job, files: list[bytes]) -> None:
    try:
        if isinstance(job.work, HeaderWork):
            declared = inspect(files[0], job.limits, job.work.field)
            sock.sendall(encode(Inspected(declared)))
            return
        images = _decoded(job.work, job.limits, files)
        fd = _sealed([image.pixels for image in images])
    except ServiceError as error:
        sock.sendall(encode(Refused(error.reason, error.message, error.field, error.metadata)))
        return
    except Exception:  # noqa: BLE001 - a defect; the front logs it
        sock.sendall(encode(Failed(traceback.format_exc()[-_MAX_TRACEBACK:])))
        return
    reply = encode(Done(tuple(map(ImageRecord.of, images))))
    try:
        sent = socket.send_fds(sock, [reply], [fd])
    finally:
        os.close(fd)
    sock.sendall(reply[sent:])


def _decoded(
    work: ImageWork | VideoWork, limits: DecodeLimits, files: list[bytes]
) -> tuple[ProcessedImage, ...]:
    if isinstance(work, ImageWork):
        image = decode_image(
            files[0],
            policy=work.policy,
            min_pixels=work.min_pixels,
            max_pixels=work.max_pixels,
            limits=limits,
            field=work.field,
        )
        return (image,)
    return decode_video([files[i] for i in work.order], work.fields, work.spec, limits)


def _sealed(pixels: Sequence[bytes | memoryview]) -> int:
    """A memfd with the pixels, which nobody can change any more."""
    fd = os.memfd_create("decoded", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    for image in pixels:
        rest = memoryview(image)
        while rest:
            rest = rest[os.write(fd, rest) :]
    seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def _limit_cpu(seconds: float) -> None:
    """From now on; at the soft limit the kernel sends SIGXCPU, which ends the process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(used.ru_utime + used.ru_stime + seconds)
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _confine(memory_bytes: int) -> None:
    """Limits the process to what decoding needs: memory, no output, no core files, and the sandbox."""
    silence()
    limit_memory(memory_bytes)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (_MAX_DESCRIPTORS, _MAX_DESCRIPTORS))
    with contextlib.suppress(OSError):  # read-only in some containers
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    enter_sandbox()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the process.

    Args:
        argv: Arguments without the program name; None = those of the process.
    """
    parser = argparse.ArgumentParser(prog="inference_service.media.worker")
    parser.add_argument("--fd", type=int, required=True, help="socket to the front")
    parser.add_argument("--parent", type=int, required=True, help="process id of the front")
    parser.add_argument("--memory-mib", type=int, required=True, help="memory for one job")
    args = parser.parse_args(argv)
    die_with(args.parent)
    _confine(args.memory_mib * 2**20)
    with (
        socket.socket(fileno=args.fd) as sock,
        contextlib.suppress(BrokenPipeError, ConnectionError),
    ):
        serve(sock)
    return 0


if __name__ == "__main__":
    sys.exit(main())
