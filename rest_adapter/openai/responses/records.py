"""What is kept of responses: all of it in the store, if there is one, else only their recent output items.

Output items are kept without a store as well, since `@ai-sdk/openai` refers to them by id from the second turn on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
import contextlib
from dataclasses import dataclass
from typing import Any, Final
import zlib

import orjson

from rest_adapter.errors import ApiError, invalid, unsupported
from rest_adapter.json_text import shown
from rest_adapter.off_loop import off_loop
from rest_adapter.openai.responses import resource as states
from rest_adapter.openai.responses.in_flight import InFlight
from rest_adapter.openai.responses.items import AnyItem, ReferenceItem
from rest_adapter.openai.responses.listing import documents_of
from rest_adapter.openai.responses.schema import ResponsesRequest
from rest_adapter.openai.responses.store import ResponseStore, StoredResponse, StoreLimits
from rest_adapter.settings import IN_MEMORY, AdapterSettings


_RECENT: Final = StoreLimits(max_entries=1024, max_bytes=16 * 2**20, max_age_s=3600.0)
_CONTINUABLE: Final = (states.COMPLETED, states.INCOMPLETE)
_FAST: Final = 1  # zlib's level


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A response that has ended.

    Attributes:
        caller: Who made the request; empty = a caller without a key.
        request: The request.
        items: The items of its input.
        resource: The response.
        frames: The frames of its stream.
    """

    caller: str
    request: ResponsesRequest
    items: tuple[AnyItem, ...]
    resource: Mapping[str, Any]
    frames: list[bytes]


class Records:
    """The responses of all callers.

    Attributes:
        in_flight: Those that are being generated.

    Args:
        store: The store; None = responses are not stored.
        recent: Where the recent output items are if there is no store.
    """

    def __init__(self, store: ResponseStore | None, recent: ResponseStore) -> None:
        self.in_flight = InFlight()
        self._store = store
        self._recent = recent

    def store(self, param: str, value: object = None) -> ResponseStore:
        """The store.

        Raises:
            ApiError: There is none, so that the field `param` is not supported.
        """
        if self._store is None:
            raise unsupported(
                param, value, "the adapter runs without a store of responses (--response-store)"
            )
        return self._store

    def will_store(self, request: ResponsesRequest) -> bool:
        """Whether a response is to be stored: by default if there is a store.

        Raises:
            ApiError: There is none, but the request asks for one.
        """
        if request.store:
            self.store("store", value=True)
        return self._store is not None and request.store is not False

    async def earlier(self, caller: str, request: ResponsesRequest) -> list[dict[str, Any]]:
        """The items, input and output, of the responses that a request continues, oldest first.

        Raises:
            ApiError: There is no store, or one of the responses is not there or did not end well.
        """
        param, response_id = "previous_response_id", request.previous_response_id
        if response_id is None:
            return []
        chain = await self.store(param, response_id).chain(caller, response_id)
        if chain is None:
            message = f"There is no response {shown(response_id)} with all that it continues, or no longer."
            raise invalid(message, param, "PREVIOUS_RESPONSE_NOT_FOUND")
        if chain[-1].status not in _CONTINUABLE:
            message = (
                f"Response {shown(response_id)} is {chain[-1].status} and cannot be continued."
            )
            raise invalid(message, param)
        items: list[dict[str, Any]] = []
        for response in chain:
            items += orjson.loads(response.input_items)
            items += orjson.loads(response.resource)["output"]
        return items

    async def found(self, caller: str, items: Iterable[AnyItem]) -> dict[str, dict[str, Any]]:
        """The items that references among `items` point at, by id; those that are not there are left out."""
        wanted = {item.target for item in items if isinstance(item, ReferenceItem)}
        found: dict[str, dict[str, Any]] = {}
        for item_id in wanted:
            if item_id in found:
                continue
            holder = await (self._store or self._recent).holder_of(caller, item_id)
            if holder is not None:
                known = [
                    *orjson.loads(holder.input_items),
                    *orjson.loads(holder.resource)["output"],
                ]
                found |= {item["id"]: item for item in known if item["id"] in wanted}
        return found

    async def keep(self, record: Record) -> None:
        """Keeps a response as its request wants, see `will_store`."""
        if self.will_store(record.request):
            stored = await off_loop(sum(map(len, record.frames)), _packed, record)
            await self.store("store").put(record.caller, stored)
        elif record.request.store is None:
            output = record.resource["output"]
            await self._recent.put(
                record.caller,
                StoredResponse(
                    id=record.resource["id"],
                    status=record.resource["status"],
                    resource=orjson.dumps({"output": output}),
                    item_ids=tuple(item["id"] for item in output),
                ),
            )


def _packed(record: Record) -> StoredResponse:
    documents = documents_of(record.items)
    own = [
        document["id"]
        for item, document in zip(record.items, documents, strict=True)
        if item.id is None
    ]
    return StoredResponse(
        id=record.resource["id"],
        previous_id=record.request.previous_response_id,
        status=record.resource["status"],
        resource=orjson.dumps(record.resource),
        input_items=orjson.dumps(documents),
        frames=zlib.compress(b"".join(record.frames), _FAST),
        item_ids=(*own, *(item["id"] for item in record.resource["output"])),
    )


def frames_after(stored: StoredResponse, number: int) -> list[bytes]:
    """The frames of a stream whose sequence numbers are above a number; -1 = all."""
    end = b"\n\n"
    frames = zlib.decompress(stored.frames).split(end)[:-1]
    return [frame + end for frame in frames[max(0, number + 1) :]]


@contextlib.asynccontextmanager
async def open_records(settings: AdapterSettings) -> AsyncIterator[Records]:
    """Opens what the settings ask for, and closes it.

    Raises:
        RuntimeError: The file of the store cannot be opened.
    """
    limits = StoreLimits(
        max_entries=settings.response_store_entries,
        max_bytes=settings.response_store_mib * 2**20,
        max_age_s=settings.response_store_age_s,
    )
    async with contextlib.AsyncExitStack() as stack:
        store = None
        if settings.response_store is not None:
            path = None if settings.response_store == IN_MEMORY else settings.response_store
            store = ResponseStore(path, limits)
            try:
                await store.open()
            except Exception as error:
                problem = settings.problem("response_store", settings.response_store, str(error))
                raise RuntimeError(problem) from error
            stack.push_async_callback(store.close)
        recent = ResponseStore(None, _RECENT)
        await recent.open()
        stack.push_async_callback(recent.close)
        yield Records(store, recent)


def unknown_response(response_id: str) -> ApiError:
    """The error for a response that is not, or no longer, there."""
    message = f"There is no response {shown(response_id)}, or no longer."
    return ApiError(404, message, reason="NOT_FOUND", param="response_id")
