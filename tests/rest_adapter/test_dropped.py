"""Nothing is kept in memory of bodies that nobody is going to read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
import contextlib
from pathlib import Path
import threading
from typing import Any

import pytest

from rest_adapter.body_budget import BodyBudget
from rest_adapter.dropped import Dropped, drop_body
from rest_adapter.http_protocol import BoundedHttpProtocol
from rest_adapter.refusals import RefuseHammering
from tests.rest_adapter.conftest import Adapter, open_adapter, wait_until
from tests.rest_adapter.raw_http import answers_of, connect, head, read_to_end


CALLERS = 6
KIB = 2**10
BODY_BYTES = 200 * KIB
"""More than uvicorn keeps of a body before it stops to read; one read of a socket has it."""
MIB = 2**20


class Watched:
    """The connections of an adapter, and how many refused callers wait.

    Attributes:
        release: Ends the waiting.
    """

    def __init__(self) -> None:
        self.protocols: list[BoundedHttpProtocol] = []
        self.waiting = 0
        self.release = threading.Event()

    @property
    def received(self) -> int:
        """Bytes of bodies in memory."""
        bodies = (each.cycle.body for each in self.protocols if each.cycle)
        unparsed = (len(each._backlog) + each.conn.waiting_bytes for each in self.protocols)
        return sum(map(len, bodies)) + sum(unparsed)

    async def wait(self, *_: object) -> None:
        self.waiting += 1
        while not self.release.is_set():  # noqa: ASYNC110 - of another thread
            await asyncio.sleep(0.01)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    watched = Watched()
    made = BoundedHttpProtocol.connection_made

    def noted(self: BoundedHttpProtocol, transport: Any) -> None:
        watched.protocols.append(self)
        made(self, transport)

    monkeypatch.setattr(BoundedHttpProtocol, "connection_made", noted)
    monkeypatch.setattr("qwenvl.pacing.RefusalPacing.wait", watched.wait)
    return watched


@pytest.fixture
def keyed(tmp_path: Path) -> Iterator[Adapter]:
    keys = tmp_path / "keys"
    keys.write_text("one\n")
    with open_adapter(api_key_file=str(keys)) as adapter:
        yield adapter


@pytest.fixture
def _refusing(monkeypatch: pytest.MonkeyPatch) -> None:
    """All calls are too many."""
    monkeypatch.setattr(RefuseHammering, "_refusal", lambda self, _: self._too_many())


@pytest.mark.usefixtures("_refusing")
@pytest.mark.parametrize("framing", ["content-length: 9000000", "transfer-encoding: chunked"])
@pytest.mark.parametrize(("key", "status"), [("wrong", 401), ("one", 429)])
def test_callers_that_wait_for_their_refusal_have_nothing_in_memory(
    watched: Watched, keyed: Adapter, framing: str, key: str, status: int
) -> None:
    opening = head("POST", "/v1/chat/completions", f"authorization: Bearer {key}", framing)
    block = b"%x\r\n%b\r\n" % (BODY_BYTES, bytes(BODY_BYTES))
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(connect(keyed)) for _ in range(CALLERS)]
        for one in sockets:
            one.sendall(opening + (block if "chunked" in framing else bytes(BODY_BYTES)))
        wait_until(lambda: watched.waiting == CALLERS)
        wait_until(lambda: watched.received < KIB)
        for one in sockets:  # which is not read while it waits
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.send(bytes(BODY_BYTES))
            one.settimeout(20)
        assert watched.received < KIB
        watched.release.set()
        for one in sockets:
            one.shutdown(1)
            (answer,) = answers_of(read_to_end(one), ["POST"])
            assert (answer.status, answer.headers["connection"]) == (status, "close")


def test_what_is_discarded_is_not_in_memory_but_counts(
    watched: Watched, keyed: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    most = 0

    @contextlib.contextmanager
    def discarding(_: BodyBudget) -> Iterator[Any]:
        def pause_s(count: int) -> float:
            counts.append(count)
            return 0.02

        yield pause_s

    monkeypatch.setattr(BodyBudget, "discarding", discarding)
    watched.release.set()
    lines = ("authorization: Bearer wrong", f"content-length: {4 * MIB}")
    body = bytes(4 * MIB)
    with connect(keyed) as connection:
        sending = threading.Thread(
            target=connection.sendall, args=(head("POST", "/v1/completions", *lines) + body,)
        )
        sending.start()

        def has_enough() -> bool:
            nonlocal most
            most = max([most, *(len(each.cycle.body) for each in watched.protocols if each.cycle)])
            return sum(counts) > 3 * MIB

        wait_until(has_enough)
        (answer,) = answers_of(read_to_end(connection), ["POST"])
        sending.join()
    assert answer.status == 401
    assert most == 0
    assert 3 * MIB < sum(counts) <= 4 * MIB, "but for what came before the answer"


@pytest.mark.usefixtures("_refusing")
def test_a_small_body_is_dropped_and_its_connection_goes_on(
    watched: Watched, keyed: Adapter
) -> None:
    watched.release.set()
    lines = ("authorization: Bearer one", f"content-length: {30 * KIB}")
    with connect(keyed) as connection:
        for _ in range(3):
            connection.sendall(head("POST", "/v1/completions", *lines) + bytes(30 * KIB))
        connection.sendall(head("GET", "/version", "connection: close", lines[0]))
        answers = answers_of(read_to_end(connection), ["POST"] * 3 + ["GET"])
    assert [answer.status for answer in answers] == [429, 429, 429, 200]


def test_dropped_bytes_are_counted_and_not_kept() -> None:
    body = first = drop_body({})
    body += b"abc"
    body += bytearray(4)
    assert body is first
    assert (bytes(body), len(body), first.num_bytes) == (b"", 0, 7)
    assert isinstance(body, Dropped)
