"""Keeps responses for `previous_response_id`, `item_reference` and retrieval, within bounds, in SQLite.

The database is a file, or in memory; either way one thread of its own works on it, so that it does not hold up the
event loop. Callers take turns there, and long conversations are read in pieces. A response belongs to the caller whose
key created it: its id alone is no permission to read it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
import contextlib
from dataclasses import dataclass
import logging
import os
import sqlite3
import time
from typing import Final, TypeVar
from weakref import WeakValueDictionary

from rest_adapter.errors import ApiError


_LOG: Final = logging.getLogger(__name__)
_VERSION: Final = 1
_LOCK_TIMEOUT_S: Final = 10.0
_RETRY_AFTER_S: Final = 5.0
_SCHEMA: Final = f"""
CREATE TABLE IF NOT EXISTS responses (
  caller TEXT NOT NULL, id TEXT NOT NULL, previous_id TEXT, status TEXT NOT NULL, used REAL NOT NULL,
  size INTEGER NOT NULL, resource BLOB NOT NULL,
  input_items BLOB NOT NULL, frames BLOB NOT NULL,
  PRIMARY KEY (caller, id));
CREATE INDEX IF NOT EXISTS responses_by_use ON responses (used, size);
CREATE INDEX IF NOT EXISTS responses_by_caller ON responses (caller, used, size);
CREATE TABLE IF NOT EXISTS items (
  caller TEXT NOT NULL, id TEXT NOT NULL, response_id TEXT NOT NULL,
  PRIMARY KEY (caller, id),
  FOREIGN KEY (caller, response_id) REFERENCES responses (caller, id) ON DELETE CASCADE) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS items_by_response ON items (caller, response_id);
PRAGMA user_version = {_VERSION};
"""
_SETTINGS: Final = (
    "journal_mode = WAL",
    "synchronous = NORMAL",
    "secure_delete = ON",
    "temp_store = MEMORY",  # temporary files would have content of conversations, which nobody overwrites
    "foreign_keys = ON",
)
MAX_CHAIN: Final = 4096
"""Maximum number of responses in a conversation."""

_CHAIN_SLICE: Final = 64
_ID_BYTES: Final = 320
"""About how many bytes an item's id takes, with those of its response and of its caller, in the table and the index."""
_DELETE_OLDEST: Final = """
DELETE FROM responses WHERE rowid =
  (SELECT rowid FROM responses WHERE caller = ? ORDER BY used, rowid LIMIT 1) RETURNING size
"""
_ITEMS: Final = ("resource", "input_items")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResponse:
    """A response as it is kept.

    Attributes:
        id: Its id.
        previous_id: The id of the response that it continues; None = it begins a conversation.
        status: Its status, such as `completed`.
        resource: The response in JSON.
        input_items: The list of its own input items in JSON.
        frames: The events of its stream, as the caller of this module packs them.
        item_ids: The ids of its items, input and output. Not read back.
    """

    id: str
    previous_id: str | None = None
    status: str
    resource: bytes = b""
    input_items: bytes = b"[]"
    frames: bytes = b""
    item_ids: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Its size in bytes, without the ids of its items."""
        return sum(map(len, (self.resource, self.input_items, self.frames)))

    @property
    def kept_size(self) -> int:
        """About how many bytes it takes in a store."""
        return self.size + _ID_BYTES * len(self.item_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLimits:
    """The bounds of a store; of the caller with the most, the responses that were not used for longest give way.

    Attributes:
        max_entries: Maximum number of responses.
        max_bytes: Maximum total size in bytes.
        max_age_s: Seconds after its last use for which a response is kept. Whatever continues it, uses it.
    """

    max_entries: int
    max_bytes: int
    max_age_s: float


class StoreError(ApiError):
    """The store cannot be read or written now: 503."""

    def __init__(self) -> None:
        super().__init__(
            503,
            "The store of responses (--response-store) does not work now; try again later.",
            reason="STORE_UNAVAILABLE",
            retry_after_s=_RETRY_AFTER_S,
        )


class ResponseStore:
    """Responses by caller and id.

    All methods but `open` and `close` raise `StoreError` if the file cannot be read or written; the log says why.

    Args:
        path: The file; None = in memory.
        limits: The bounds.
        clock: Returns the time in seconds, on which all processes with the same file agree.
    """

    def __init__(
        self, path: str | None, limits: StoreLimits, clock: Callable[[], float] = time.time
    ) -> None:
        self._path = path
        self._limits = limits
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="response-store")
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._database: sqlite3.Connection

    async def open(self) -> None:
        """Opens the database and creates its tables; to be called once, before all other methods.

        Raises:
            sqlite3.Error: The file cannot be opened or is no database.
            ValueError: It was written by another version of this software.
        """
        await self._in_thread(self._open)

    async def close(self) -> None:
        """Closes the database."""
        await self._in_thread(self._database.close)
        self._thread.shutdown()

    async def put(self, caller: str, response: StoredResponse) -> bool:
        """Keeps a response, replacing one with the same id, and removes what is beyond the bounds.

        Args:
            caller: Who made the request; empty = a caller without a key.
            response: The response.

        Returns:
            Whether it is kept: False if it alone is larger than the store.
        """
        return await self._run(caller, self._put, caller, response)

    async def get(self, caller: str, response_id: str, *parts: str) -> StoredResponse | None:
        """A response of a caller; None = it does not exist, or no longer.

        Args:
            caller: Who asks.
            response_id: Its id.
            parts: Which of `resource`, `input_items` and `frames` are wanted; the others are empty.
        """
        return await self._run(caller, self._get, caller, response_id, parts)

    async def chain(
        self, caller: str, response_id: str, max_bytes: int
    ) -> list[StoredResponse] | None:
        """A response and those that it continues, without their frames, the first one first.

        Args:
            caller: Who made the request.
            response_id: The last response.
            max_bytes: Maximum size of all of them together.

        Returns:
            The responses; None = one of them is not there.

        Raises:
            OverflowError: They are larger, or more than `MAX_CHAIN`.
        """
        found: list[StoredResponse] = []
        next_id: str | None = response_id
        while next_id is not None:
            links = await self._run(caller, self._links, caller, next_id, max_bytes)
            if links is None:
                return None
            found += links
            max_bytes -= sum(response.size for response in links)
            if len(found) > MAX_CHAIN:
                raise OverflowError
            next_id = found[-1].previous_id
        return found[::-1]

    async def holder_of(self, caller: str, item_id: str) -> StoredResponse | None:
        """The response of a caller that has an item, without its frames; None = none has it."""
        return await self._run(caller, self._holder_of, caller, item_id)

    async def delete(self, caller: str, response_id: str) -> bool:
        """Removes a response of a caller; returns whether it was there."""
        return await self._run(caller, self._delete, caller, response_id)

    async def _run(self, caller: str, work: Callable[..., _Result], *args: object) -> _Result:
        """Does work in the thread, one piece at a time for each caller, so that nobody waits for all of another one."""
        turn = self._turns.setdefault(caller, asyncio.Lock())
        async with turn:
            try:
                return await self._in_thread(work, *args)
            except sqlite3.Error as error:
                _LOG.error({"message": "the store of responses failed", "detail": str(error)})
                raise StoreError from error

    async def _in_thread(self, work: Callable[..., _Result], *args: object) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    def _open(self) -> None:
        if self._path is not None:
            # The content of conversations is nobody else's business.
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
        database = sqlite3.connect(
            self._path or ":memory:", timeout=_LOCK_TIMEOUT_S, isolation_level=None
        )
        try:
            _check_version(database)
            for setting in _SETTINGS:
                database.execute(f"PRAGMA {setting}")
            database.executescript(_SCHEMA)
        except BaseException:
            database.close()
            raise
        self._database = database

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield self._database
            self._database.execute("COMMIT")
        except BaseException:
            # SQLite itself has ended it after some errors, such as a full disk.
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise

    def _put(self, caller: str, response: StoredResponse) -> bool:
        size = response.kept_size
        if size > self._limits.max_bytes:
            _LOG.warning("a response of %d bytes is larger than the store and is not kept", size)
            return False
        row = (
            *(caller, response.id, response.previous_id, response.status, self._clock()),
            *(size, response.resource, response.input_items, response.frames),
        )
        with self._transaction() as database:
            database.execute(
                f"INSERT OR REPLACE INTO responses VALUES ({', '.join('?' * len(row))})",  # noqa: S608
                row,
            )
            database.executemany(
                "INSERT OR REPLACE INTO items VALUES (?, ?, ?)",
                [(caller, item_id, response.id) for item_id in response.item_ids],
            )
            self._evict(database)
        return True

    def _evict(self, database: sqlite3.Connection) -> None:
        """Removes what is too old, and what is too much: of the caller that has most."""
        database.execute("DELETE FROM responses WHERE used < ?", (self._oldest_use(),))
        count, size = database.execute(
            "SELECT count(*), coalesce(sum(size), 0) FROM responses"
        ).fetchone()
        limits = self._limits
        if count <= limits.max_entries and size <= limits.max_bytes:
            return
        rows = database.execute("SELECT caller, count(*), sum(size) FROM responses GROUP BY caller")
        held = {caller: [count, size] for caller, count, size in rows}
        while (too_many := count > limits.max_entries) or size > limits.max_bytes:
            greedy = max(held, key=lambda caller: held[caller][not too_many])
            [(freed,)] = database.execute(_DELETE_OLDEST, (greedy,)).fetchall()
            held[greedy] = [held[greedy][0] - 1, held[greedy][1] - freed]
            count, size = count - 1, size - freed

    def _oldest_use(self) -> float:
        return self._clock() - self._limits.max_age_s

    def _get(self, caller: str, response_id: str, parts: tuple[str, ...]) -> StoredResponse | None:
        with self._transaction() as database:
            return self._used(database, caller, response_id, parts)

    def _links(self, caller: str, response_id: str, max_bytes: int) -> list[StoredResponse] | None:
        """A response and some that it continues; None = one of them is not there."""
        found: list[StoredResponse] = []
        next_id: str | None = response_id
        with self._transaction() as database:
            while next_id is not None and len(found) < _CHAIN_SLICE:
                response = self._used(database, caller, next_id, _ITEMS)
                if response is None:
                    return None
                max_bytes -= response.size
                if max_bytes < 0:
                    raise OverflowError
                found.append(response)
                next_id = response.previous_id
        return found

    def _holder_of(self, caller: str, item_id: str) -> StoredResponse | None:
        with self._transaction() as database:
            row = database.execute(
                "SELECT response_id FROM items WHERE caller = ? AND id = ?", (caller, item_id)
            ).fetchone()
            return None if row is None else self._used(database, caller, row[0], _ITEMS)

    def _used(
        self,
        database: sqlite3.Connection,
        caller: str,
        response_id: str,
        parts: tuple[str, ...],
    ) -> StoredResponse | None:
        """Parts of a response that is now in use, and therefore kept."""
        names = ("id", "previous_id", "status", *parts)
        # Not RETURNING, for which SQLite first writes all that it returns to a table of its own.
        updated = database.execute(
            "UPDATE responses SET used = ? WHERE caller = ? AND id = ? AND used >= ?",
            (self._clock(), caller, response_id, self._oldest_use()),
        )
        if not updated.rowcount:
            return None
        row = database.execute(
            f"SELECT {', '.join(names)} FROM responses WHERE caller = ? AND id = ?",  # noqa: S608
            (caller, response_id),
        ).fetchone()
        return StoredResponse(**dict(zip(names, row, strict=True)))

    def _delete(self, caller: str, response_id: str) -> bool:
        with self._transaction() as database:
            deleted = database.execute(
                "DELETE FROM responses WHERE caller = ? AND id = ? AND used >= ?",
                (caller, response_id, self._oldest_use()),
            )
            count = deleted.rowcount
        self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # the log has the content as well
        return count > 0


def _check_version(database: sqlite3.Connection) -> None:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version not in (0, _VERSION):
        raise ValueError(f"its format is version {version}, but this software has {_VERSION}")
