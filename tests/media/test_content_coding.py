"""Content codings are undone in small steps, counted in memory, in a thread that nothing else waits for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
import contextlib
import gc
import gzip
from pathlib import Path
import random
import threading
from typing import Any
import weakref
import zlib

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
import pytest

from inference_service.errors import (
    ImageFetchError,
    ImageTooLargeError,
    QueueFullError,
    ServiceError,
)
from inference_service.media import content_coding, fetch
from inference_service.media.content_coding import (
    MAX_CODINGS,
    PIECE_BYTES,
    CodingError,
    Decoding,
    Inflation,
    content_codings,
)
from inference_service.media.file_budget import FetchedFiles, FileBudget
from tests.support.media_hosts import fetcher, refused, says, server


pytestmark = pytest.mark.usefixtures("dialled")

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
MIB = 2**20
WINDOW = {"gzip": zlib.MAX_WBITS | 16, "zlib": zlib.MAX_WBITS, "raw": -zlib.MAX_WBITS}


def packed(data: bytes, window: str, level: int = 9) -> bytes:
    packer = zlib.compressobj(level, wbits=WINDOW[window])
    return packer.compress(data) + packer.flush()


def at_once(body: bytes, window: str) -> bytes | None:
    """What zlib makes of a body without pieces; None = it is refused."""
    inflater = zlib.decompressobj(WINDOW[window])
    try:
        decoded = inflater.decompress(body)
    except zlib.error:
        return None
    return decoded if inflater.eof else None


def in_pieces(body: bytes, window: str) -> bytes | None:
    inflation = Inflation(body, window, WINDOW[window])
    pieces: list[bytes] = []
    try:
        while not inflation.done:
            pieces.append(inflation._step())
    except CodingError:
        return None
    assert max(map(len, pieces)) <= PIECE_BYTES
    return b"".join(pieces)


@hypothesis_settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(sorted(WINDOW)),
    st.sampled_from([0, 1, 9]),
    st.tuples(st.sampled_from(["zeros", "noise"]), st.integers(0, 5 * PIECE_BYTES // 2)),
    st.sampled_from(["whole", "cut", "damaged", "more"]),
    st.randoms(use_true_random=False),
)
def test_pieces_are_what_is_decoded_at_once(
    window: str, level: int, content: tuple[str, int], fate: str, rng: random.Random
) -> None:
    kind, size = content
    body = packed(bytes(size) if kind == "zeros" else rng.randbytes(size), window, level)
    at = rng.randrange(len(body))
    match fate:
        case "cut":
            body = body[:at]
        case "damaged":
            body = body[:at] + bytes((body[at] ^ 1 << rng.randrange(8),)) + body[at + 1 :]
        case "more":
            body += rng.randbytes(at)
    assert in_pieces(body, window) == at_once(body, window)


@pytest.mark.parametrize(
    "body",
    [
        packed(bytes(40 * MIB), "raw"),
        b"\0\0\0\xff\xff" * 2**20,  # stored blocks without content
        packed(bytes(2**24), "raw", 0),
    ],
)
def test_no_step_reads_or_makes_more_than_a_piece(body: bytes, monkeypatch) -> None:
    sizes: list[tuple[int, int]] = []

    class Counted:
        def __init__(self, window: int) -> None:
            self._zlib = zlib.decompressobj(window)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._zlib, name)

        def decompress(self, data: bytes, limit: int) -> bytes:
            made = self._zlib.decompress(data, limit)
            sizes.append((len(data), len(made)))
            return made

    class Zlib:
        error = zlib.error
        decompressobj = Counted

    monkeypatch.setattr(content_coding, "zlib", Zlib)
    in_pieces(body, "raw")
    assert max(map(max, sizes)) <= PIECE_BYTES
    assert len(sizes) <= 2 + (len(body) + sum(made for _, made in sizes)) // (PIECE_BYTES // 2)


def layers(count: int) -> bytes:
    body = PNG
    for _ in range(count):
        body = gzip.compress(body)
    return body


def coded(count: int, labels: int | None = None) -> Any:
    header = ",".join(["gzip"] * (count if labels is None else labels))
    return says(f"HTTP/1.1 200 OK\nContent-Encoding: {header}", layers(count))


async def fetched(script: Any, files: FetchedFiles | None = None, **changes: Any) -> bytes:
    async with server(script) as port:
        service = fetcher(f"127.0.0.1:{port}", **changes)
        return await service.fetch(f"http://127.0.0.1:{port}/", field="f", files=files)


@pytest.mark.parametrize("labels", [None, 3, 6000])
async def test_as_many_codings_are_undone_as_hosts_apply(labels: int | None) -> None:
    assert await fetched(coded(MAX_CODINGS, labels)) == PNG


@pytest.mark.parametrize("count", [MAX_CODINGS + 1, 50])
async def test_more_codings_are_refused_before_they_are_undone(count: int, monkeypatch) -> None:
    begun: list[bytes] = []
    init = Inflation.__init__

    def counted(self: Inflation, body: bytes, coding: str, window_bits: int) -> None:
        begun.append(body)
        init(self, body, coding, window_bits)

    monkeypatch.setattr(Inflation, "__init__", counted)
    async with server(coded(count)) as port:
        error = await refused(
            fetcher(f"127.0.0.1:{port}"), f"http://127.0.0.1:{port}/", ImageFetchError
        )
    assert f"compressed more than {MAX_CODINGS} times" in error.message
    assert error.metadata["cause"] == "content_encoding"
    assert len(begun) == MAX_CODINGS


def test_a_header_of_codings_that_are_only_labels_costs_nothing() -> None:
    decoding = Decoding(content_codings(",".join(["gzip"] * 10**5)))
    assert decoding.next(b"no image") is None


async def test_a_body_is_counted_as_it_is_in_memory() -> None:
    budget = FileBudget(64 * MIB, wait_s=1)
    body = bytes(4 * MIB)
    script = says(
        "HTTP/1.1 200 OK\nContent-Encoding: gzip, gzip", gzip.compress(gzip.compress(body))
    )
    with budget.of_request() as files:
        assert await fetched(script, files) == body
        assert files.held_bytes == budget.used_bytes == len(body)
    assert budget.used_bytes == 0


async def test_what_expands_waits_for_memory_and_never_holds_more(monkeypatch) -> None:
    """Four bodies of 20 KB that expand to 20 MiB, beside an older request: unpacked as far as there is room."""
    budget = FileBudget(8 * MIB, wait_s=0.2)
    made = 0
    step = Inflation._step

    def counted(self: Inflation) -> bytes:
        nonlocal made
        piece = step(self)
        made += len(piece)
        return piece

    monkeypatch.setattr(Inflation, "_step", counted)
    bomb = says("HTTP/1.1 200 OK\nContent-Encoding: gzip", gzip.compress(bytes(20 * MIB), 1))
    with budget.of_request() as oldest, budget.of_request() as files:
        assert oldest.has_room(1)
        outcomes = await asyncio.gather(
            *(fetched(bomb, files) for _ in range(4)), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [QueueFullError] * 4
        assert "--media-buffer-mib" in str(outcomes[0])
        assert budget.used_bytes <= 8 * MIB
        assert made <= budget.used_bytes + 4 * PIECE_BYTES


async def test_a_bomb_is_unpacked_no_further_than_to_the_maximum(monkeypatch) -> None:
    steps = 0
    step = Inflation._step

    def counted(self: Inflation) -> bytes:
        nonlocal steps
        steps += 1
        return step(self)

    monkeypatch.setattr(Inflation, "_step", counted)
    bomb = says("HTTP/1.1 200 OK\nContent-Encoding: gzip", gzip.compress(bytes(16 * MIB), 1))
    with pytest.raises(ImageTooLargeError, match="--max-image-bytes"):
        await fetched(bomb, max_bytes=MIB)
    assert steps <= 2 + MIB // (PIECE_BYTES // 2)


@contextlib.contextmanager
def busy_default_threads() -> Iterator[None]:
    """Threads that are as busy as they would be with the work of others."""
    done = threading.Event()
    threads = ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(threads)
    threads.submit(done.wait)
    try:
        yield
    finally:
        done.set()


async def test_nothing_waits_for_what_others_do_in_threads(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    with busy_default_threads():
        async with asyncio.timeout(20):
            assert await fetched(coded(1)) == PNG
            service = fetcher(local_root=tmp_path)
            uri = f"file://{tmp_path}/a.png"
            assert await service.fetch(uri, field="f") == PNG


async def test_a_fetch_that_is_given_up_is_unpacked_no_further(monkeypatch) -> None:
    stopped = threading.Event()
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    steps = 0
    step = Inflation._step

    def slow(self: Inflation) -> bytes:
        nonlocal steps
        steps += 1
        loop.call_soon_threadsafe(begun.set)
        stopped.wait(20)
        return step(self)

    monkeypatch.setattr(Inflation, "_step", slow)
    bomb = says("HTTP/1.1 200 OK\nContent-Encoding: gzip", gzip.compress(bytes(20 * MIB), 1))
    task = asyncio.ensure_future(fetched(bomb))
    async with asyncio.timeout(20):
        await begun.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        stopped.set()
        monkeypatch.undo()
        assert await fetched(coded(1)) == PNG  # after what was begun
    assert steps == 1


async def test_local_files_wait_for_memory_before_they_are_read(
    tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "a").write_bytes(bytes(MIB))
    budget = FileBudget(2 * MIB, wait_s=0.05)
    service = fetcher(local_root=tmp_path)
    uri = f"file://{tmp_path}/a"
    with budget.of_request() as oldest, budget.of_request() as files:
        assert oldest.has_room(1)
        for count in (1, 2):
            assert len(await service.fetch(uri, field="f", files=files)) == MIB
            assert files.held_bytes == count * MIB
        monkeypatch.delattr(fetch, "read_local_file")
        with pytest.raises(QueueFullError, match="--media-buffer-mib"):
            await service.fetch(uri, field="f", files=files)


@pytest.mark.parametrize("end", ["too many codings", "too large", "cut", "cancelled"])
async def test_a_fetch_that_failed_holds_nothing(end: str, monkeypatch) -> None:
    """Its error may live until the next collection of garbage, in the tasks that waited for it."""
    seen: list[weakref.ref[Inflation]] = []
    init = Inflation.__init__

    def noted(self: Inflation, body: bytes, coding: str, window_bits: int) -> None:
        init(self, body, coding, window_bits)
        seen.append(weakref.ref(self))

    monkeypatch.setattr(Inflation, "__init__", noted)
    if end == "too many codings":
        script = coded(MAX_CODINGS + 1)
    else:
        body = gzip.compress(bytes(20 * MIB), 1)
        script = says(
            "HTTP/1.1 200 OK\nContent-Encoding: gzip", body[:-9] if end == "cut" else body
        )
    gc.collect()
    gc.disable()
    try:
        size = MIB if end == "too large" else 20 * MIB
        tasks = [asyncio.ensure_future(fetched(script, max_bytes=size))]
        waiting = asyncio.gather(*tasks)
        if end == "cancelled":
            async with asyncio.timeout(20):
                while not seen:  # noqa: ASYNC110 - nobody could set an event
                    await asyncio.sleep(0)
            waiting.cancel()
        with pytest.raises((ServiceError, asyncio.CancelledError)):
            await waiting
        async with asyncio.timeout(20):  # for a step that was begun
            while any(inflation() for inflation in seen):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
    finally:
        gc.enable()
    assert seen
