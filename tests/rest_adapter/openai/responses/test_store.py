"""The store by itself: bounds, callers, restarts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
import contextlib
from dataclasses import replace
from pathlib import Path
import stat
from typing import Any

import pytest

from rest_adapter.openai.responses import store as store_module
from rest_adapter.openai.responses.store import ResponseStore, StoredResponse, StoreLimits
from rest_adapter.settings import AdapterSettings


LIMITS = StoreLimits(max_entries=3, max_bytes=2000, max_age_s=60)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        self.now_s += 0.001
        return self.now_s


@contextlib.asynccontextmanager
async def opened(
    path: Path | None = None, limits: StoreLimits = LIMITS, clock: Clock | None = None
) -> AsyncIterator[ResponseStore]:
    store = ResponseStore(None if path is None else str(path), limits, clock or Clock())
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def response(name: str, previous: str | None = None, size: int = 10) -> StoredResponse:
    return StoredResponse(
        id=name,
        previous_id=previous,
        status="completed",
        resource=b"x" * size,
        input_items=b"",
        item_ids=(f"msg_{name}",),
    )


def content_of(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.iterdir())


async def kept(store: ResponseStore, caller: str = "") -> set[str]:
    return {name for name in "abcdef" if await store.get(caller, name) is not None}


@pytest.fixture(params=["memory", "file"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    return None if request.param == "memory" else tmp_path / "store.sqlite"


async def test_what_was_put_is_there(path: Path | None) -> None:
    async with opened(path) as store:
        await store.put("k", response("a"))
        found = await store.get("k", "a", "resource", "input_items", "frames")
        assert found is not None
        assert (found.id, found.resource, found.status) == ("a", b"x" * 10, "completed")
        holder = await store.holder_of("k", "msg_a")
        assert holder is not None
        assert holder.id == "a"


async def test_callers_are_apart(path: Path | None) -> None:
    async with opened(path) as store:
        await store.put("k", response("a"))
        assert await store.get("other", "a") is None
        assert await store.holder_of("other", "msg_a") is None
        assert await store.chain("other", "a", 1000) is None
        assert not await store.delete("other", "a")
        assert await store.get("k", "a") is not None


async def test_entries_are_bounded_by_use(path: Path | None) -> None:
    async with opened(path) as store:
        for name in "abc":
            await store.put("", response(name))
        assert await store.get("", "a") is not None  # now the most recently used
        await store.put("", response("d"))
        assert await kept(store) == {"a", "c", "d"}
        assert await store.holder_of("", "msg_b") is None


async def test_bytes_are_bounded(path: Path | None) -> None:
    async with opened(path) as store:
        await store.put("", response("a", size=400))
        await store.put("", response("b", size=400))
        await store.put("", response("c", size=400))
        assert await kept(store) == {"b", "c"}
        await store.put("", response("d", size=2001))
        assert await kept(store) == {"b", "c"}, "what cannot fit drives nothing out"


async def test_the_ids_of_items_count(path: Path | None) -> None:
    """A request of a megabyte can have tens of thousands of items."""
    async with opened(path) as store:
        many = tuple(f"msg_{number}" for number in range(100))
        await store.put("", replace(response("a"), item_ids=many))
        assert await kept(store) == set()


@pytest.mark.parametrize("size", [10, 400])
async def test_a_caller_with_much_drives_out_its_own(path: Path | None, size: int) -> None:
    async with opened(path) as store:
        await store.put("modest", response("a", size=size))
        for name in "bcdef":
            await store.put("greedy", response(name, size=size))
        assert await kept(store, "modest") == {"a"}
        assert await kept(store, "greedy") == ({"e", "f"} if size == 10 else {"f"})
        for name in "bc":
            await store.put("third", response(name, size=size))
        assert await kept(store, "modest") == {"a"}, "nobody has less"


async def test_age_is_bounded(path: Path | None) -> None:
    clock = Clock()
    async with opened(path, clock=clock) as store:
        await store.put("", response("a"))
        await store.put("", response("b"))
        clock.now_s += 50
        assert await store.get("", "a") is not None
        clock.now_s += 50
        assert await kept(store) == {"a"}
        clock.now_s += 100
        assert not await store.delete("", "a")


async def test_a_chain_is_used_as_a_whole(path: Path | None) -> None:
    clock = Clock()
    async with opened(path, clock=clock) as store:
        await store.put("", response("a"))
        await store.put("", response("b", "a"))
        clock.now_s += 50
        chain = await store.chain("", "b", 1000)
        assert chain is not None
        assert [each.id for each in chain] == ["a", "b"]
        clock.now_s += 50
        assert await kept(store) == {"a", "b"}
        assert await store.delete("", "a")
        assert await store.chain("", "b", 1000) is None


async def test_a_chain_is_bounded(path: Path | None) -> None:
    async with opened(path) as store:
        await store.put("", response("a", size=200))
        await store.put("", response("b", "a", size=200))
        assert await store.chain("", "b", 400) is not None
        with pytest.raises(OverflowError):
            await store.chain("", "b", 399)


async def fill(store: ResponseStore, caller: str, count: int, *, frames: bytes = b"") -> None:
    for number in range(count):
        previous = f"r{number - 1}" if number else None
        await store.put(caller, replace(response(f"r{number}", previous), frames=frames))


LONG = StoreLimits(max_entries=10**6, max_bytes=10**9, max_age_s=60)


async def test_the_number_of_responses_in_a_chain_is_bounded(
    path: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "MAX_CHAIN", 200)
    async with opened(path, LONG) as store:
        await fill(store, "", 201)
        chain = await store.chain("", "r199", 10**9)
        assert chain is not None
        assert [one.id for one in chain] == [f"r{number}" for number in range(200)]
        with pytest.raises(OverflowError):
            await store.chain("", "r200", 10**9)


async def test_a_circle_ends(path: Path | None) -> None:
    """Only a foreign hand could make one."""
    async with opened(path, LONG) as store:
        await store.put("", response("a", "b", size=0))
        await store.put("", response("b", "a", size=0))
        with pytest.raises(OverflowError):
            await store.chain("", "b", 1000)


async def test_frames_count_and_are_read_only_for_a_replay(path: Path | None) -> None:
    async with opened(path, LONG) as store:
        await fill(store, "", 3, frames=b"y" * 500)
        chain = await store.chain("", "r2", 30)
        assert chain is not None
        assert {one.frames for one in chain} == {b""}
        found = await store.get("", "r2", "frames")
        assert found is not None
        assert (found.frames, found.resource) == (b"y" * 500, b"")


async def test_a_caller_does_not_wait_for_all_that_another_one_asks(path: Path | None) -> None:
    async with opened(path, LONG) as store:
        await fill(store, "bulk", 300)
        await store.put("other", response("mine"))
        order: list[str] = []

        async def note(name: str, work: Awaitable[object]) -> None:
            assert await work
            order.append(name)

        bulk = [
            asyncio.create_task(note("bulk", store.chain("bulk", "r299", 10**9))) for _ in range(20)
        ]
        await asyncio.sleep(0)
        await note("other", store.get("other", "mine"))
        await asyncio.gather(*bulk)
        assert order.index("other") <= 1


def written_bytes() -> int:
    """What this process has written to files so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["wchar"])


async def test_reading_writes_only_that_it_was_read(path: Path | None) -> None:
    """Neither to the file and its log, nor to temporary files of SQLite."""
    size = 4 * 2**20
    async with opened(path, LONG) as store:
        content: dict[str, Any] = {
            "resource": b"x" * size,
            "input_items": b"y" * size,
            "frames": b"z" * size,
        }
        await store.put("", replace(response("a"), **content))
        before = written_bytes()
        for part, value in content.items():
            found = await store.get("", "a", part)
            assert found is not None
            assert getattr(found, part) == value
        assert await store.chain("", "a", 2 * size) is not None
        assert await store.holder_of("", "msg_a") is not None
        assert written_bytes() - before < size / 16


async def test_no_content_is_in_temporary_files(path: Path | None) -> None:
    async with opened(path) as store:
        value = await store._run(
            "", lambda: store._database.execute("PRAGMA temp_store").fetchone()
        )
        assert value == (2,), "in memory"


async def test_deleting_deletes_the_items_as_well(path: Path | None) -> None:
    async with opened(path) as store:
        await store.put("", response("a"))
        assert await store.delete("", "a")
        assert not await store.delete("", "a")
        assert await store.holder_of("", "msg_a") is None


async def test_a_file_survives_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "store.sqlite"
    clock = Clock()
    async with opened(file, clock=clock) as store:
        await store.put("k", response("a"))
        await store.put("k", response("b", "a"))
    async with opened(file, clock=clock) as store:
        chain = await store.chain("k", "b", 1000)
        assert chain is not None
        assert [each.id for each in chain] == ["a", "b"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


async def test_two_processes_may_share_a_file(tmp_path: Path) -> None:
    file = tmp_path / "store.sqlite"
    clock = Clock()
    async with opened(file, clock=clock) as one, opened(file, clock=clock) as other:
        await one.put("", response("a"))
        await other.put("", response("b"))
        assert await kept(one) == await kept(other) == {"a", "b"}


async def test_deleted_content_is_not_left_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "store.sqlite"
    async with opened(file) as store:
        secret = b"a very secret text"
        await store.put("", StoredResponse(id="a", status="completed", resource=secret))
        assert secret in content_of(tmp_path)
        assert await store.delete("", "a")
        assert secret not in content_of(tmp_path)


async def test_a_file_of_another_version_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "store.sqlite"
    async with opened(file) as store:
        await store._run("", lambda: store._database.execute("PRAGMA user_version = 99"))
    with pytest.raises(ValueError, match="version 99"):
        async with opened(file):
            pass


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "is a directory"),
        ("none/store.sqlite", "is not a directory"),
        ("text", "is not an SQLite database"),
    ],
)
def test_a_path_that_cannot_be_a_store(tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / "text").write_text("not a database, but a text")
    settings = AdapterSettings(response_store=str(tmp_path / name))
    with pytest.raises(SystemExit, match=problem):
        settings.check_files()


@pytest.mark.parametrize("name", [None, "memory", "new.sqlite"])
def test_a_path_that_can_be_a_store(tmp_path: Path, name: str | None) -> None:
    store = str(tmp_path / name) if name == "new.sqlite" else name
    AdapterSettings(response_store=store).check_files()
