"""A store that cannot be read or written: answers are given all the same, and the store goes on when it can."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
import sqlite3
from typing import Any

import pytest

from rest_adapter.metrics import NOT_STORED
from rest_adapter.openai.responses.store import ResponseStore, StoreError
from tests.rest_adapter.conftest import Adapter, open_adapter
from tests.rest_adapter.openai.responses.test_answers import call, post, streamed
from tests.rest_adapter.openai.responses.test_store import LONG, opened, response


def destroy(file: Path) -> None:
    """Removes a table, as a foreign hand or a defect of the disk may."""
    database = sqlite3.connect(file)
    database.execute("DROP TABLE items")
    database.execute("DROP TABLE responses")
    database.close()


WORK: dict[str, Any] = {
    "put": lambda store: store.put("", response("b")),
    "get": lambda store: store.get("", "a", "resource"),
    "chain": lambda store: store.chain("", "a", 1000),
    "holder_of": lambda store: store.holder_of("", "msg_a"),
    "delete": lambda store: store.delete("", "a"),
}


@pytest.mark.parametrize("name", WORK)
async def test_every_method_says_that_the_store_fails(tmp_path: Path, name: str) -> None:
    file = tmp_path / "store.sqlite"
    async with opened(file) as store:
        await store.put("", response("a"))
        destroy(file)
        for _ in range(2):  # no transaction is left open
            with pytest.raises(StoreError) as caught:
                await WORK[name](store)
            assert caught.value.status == 503
            assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
            assert "no such table" in str(caught.value.__cause__)


def set_pages(store: ResponseStore, count: int) -> None:
    store._database.execute(f"PRAGMA max_page_count = {count}")


async def test_a_store_on_a_full_disk_goes_on_when_there_is_room(tmp_path: Path) -> None:
    async with opened(tmp_path / "store.sqlite", LONG) as store:
        await store.put("", response("a"))
        await store._in_thread(set_pages, store, 1)  # no more than now
        for _ in range(3):
            with pytest.raises(StoreError):
                await store.put("", response("b", size=100_000))
            assert await store.get("", "a") is not None
        await store._in_thread(set_pages, store, 10_000)
        assert await store.put("", response("b", size=100_000))
        assert await store.get("", "b") is not None


async def test_a_store_goes_on_after_a_failed_commit(tmp_path: Path) -> None:
    async with opened(tmp_path / "store.sqlite") as store:

        def fail() -> None:
            with store._transaction() as database:
                database.execute("PRAGMA defer_foreign_keys = ON")
                database.execute("INSERT INTO items VALUES ('', 'msg_x', 'nobody')")

        with pytest.raises(StoreError):
            await store._run("", fail)
        assert await store.put("", response("a"))
        assert await store.holder_of("", "msg_x") is None


async def test_what_is_too_large_is_not_kept_and_told() -> None:
    async with opened() as store:
        assert not await store.put("", response("a", size=2001))
        assert await store.put("", response("a"))


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Adapter, dict[str, Any]]]:
    """An adapter whose store is destroyed after one response, and that response."""
    file = tmp_path_factory.mktemp("store") / "store.sqlite"
    with open_adapter(response_store=str(file)) as adapter:
        stored = post(adapter).json()
        assert stored["store"] is True
        destroy(file)
        yield adapter, stored


def test_answers_are_given_though_they_cannot_be_stored(
    failing: tuple[Adapter, dict[str, Any]],
) -> None:
    adapter, _ = failing
    before = NOT_STORED._value.get()
    answer = post(adapter)
    assert answer.status_code == 200
    assert (answer.json()["status"], answer.json()["store"]) == ("completed", False)
    assert answer.json()["output"][0]["content"][0]["text"] == "hello"
    last = streamed(adapter)[-1]
    assert last["type"] == "response.completed"
    assert (last["response"]["status"], last["response"]["store"]) == ("completed", False)
    assert NOT_STORED._value.get() == before + 2
    assert post(adapter, store=False).json()["store"] is False
    assert NOT_STORED._value.get() == before + 2, "nobody wanted it"


def test_the_failure_of_an_answer_is_told_and_not_that_of_the_store(
    failing: tuple[Adapter, dict[str, Any]],
) -> None:
    adapter, _ = failing
    last = streamed(adapter, input="fail-after 1 GPU_OUT_OF_MEMORY")[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["error"]["message"] == "It is GPU_OUT_OF_MEMORY."
    assert last["response"]["store"] is False


@pytest.mark.parametrize(
    "what", ["retrieve", "replay", "items", "cancel", "delete", "continue", "refer"]
)
def test_what_needs_the_store_is_refused(
    failing: tuple[Adapter, dict[str, Any]], what: str
) -> None:
    adapter, stored = failing
    path = f"/{stored['id']}"
    reference = {"type": "item_reference", "id": stored["output"][0]["id"]}
    answer = {
        "retrieve": lambda: call(adapter, "GET", path),
        "replay": lambda: call(adapter, "GET", path, params={"stream": "true"}),
        "items": lambda: call(adapter, "GET", f"{path}/input_items"),
        "cancel": lambda: call(adapter, "POST", f"{path}/cancel"),
        "delete": lambda: call(adapter, "DELETE", path),
        "continue": lambda: post(adapter, previous_response_id=stored["id"]),
        "refer": lambda: post(adapter, input=[reference]),
    }[what]()
    assert answer.status_code == 503
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("server_error", "overloaded")
    assert "--response-store" in error["message"]
    assert answer.headers["retry-after"] == "5"
