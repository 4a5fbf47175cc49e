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

from rest_adapter.body import RequestBody
from rest_adapter.errors import ApiError, invalid, too_large, unsupported
from rest_adapter.json_size import Size
from rest_adapter.json_text import shown
from rest_adapter.metrics import NOT_STORED
from rest_adapter.off_loop import off_loop
from rest_adapter.openai.responses import resource as states
from rest_adapter.openai.responses.in_flight import InFlight
from rest_adapter.openai.responses.items import AnyItem, ReferenceItem
from rest_adapter.openai.responses.listing import documents_of
from rest_adapter.openai.responses.schema import ResponsesRequest
from rest_adapter.openai.responses.store import (
    MAX_CHAIN,
    ResponseStore,
    StoredResponse,
    StoreError,
    StoreLimits,
)
from rest_adapter.settings import IN_MEMORY, AdapterSettings


_RECENT: Final = StoreLimits(max_entries=1024, max_bytes=16 * 2**20, max_age_s=3600.0)
_CONTINUABLE: Final = (states.COMPLETED, states.INCOMPLETE)
_MAX_REFERENCES: Final = 512
_Document = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A response that has ended.

    Attributes:
        caller: Who made the request; empty = a caller without a key.
        request: The request.
        items: The items of its input.
        resource: The response.
        frames: The frames of its stream, compressed.
        size: Size of the request in bytes.
    """

    caller: str
    request: ResponsesRequest
    items: tuple[AnyItem, ...]
    resource: Mapping[str, Any]
    frames: bytes
    size: int


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

    async def earlier(self, caller: str, response_id: str, body: RequestBody) -> list[_Document]:
        """The items, input and output, of a response and of those that it continues, oldest first.

        Args:
            caller: Who made the request.
            response_id: The response, which the request continues.
            body: The body of the request, which the items count as a part of.

        Raises:
            ApiError: There is no store, one of the responses is not there or did not end well, or they are too large or
                have too many values.
        """
        param = "previous_response_id"
        store = self.store(param, response_id)
        try:
            chain = await store.chain(caller, response_id, body.max_bytes)
        except OverflowError:
            maximum = body.max_bytes // 2**20
            message = (
                f"The conversation has more than {maximum} MiB (--max-body-mib) or {MAX_CHAIN} responses,"
                " the maximum."
            )
            raise too_large(message) from None
        if chain is None and self.in_flight.find(caller, response_id) is not None:
            raise _not_continuable(response_id, states.IN_PROGRESS)
        if chain is None:
            message = f"There is no response {shown(response_id)} with all that it continues, or no longer."
            raise invalid(message, param, "PREVIOUS_RESPONSE_NOT_FOUND")
        if chain[-1].status not in _CONTINUABLE:
            raise _not_continuable(response_id, chain[-1].status)
        size = sum(response.size for response in chain)
        body.take(size)
        body.take(await off_loop(size, _checked_size, chain))
        return await off_loop(size, _items_of, chain)

    async def found(
        self, caller: str, items: Iterable[AnyItem], body: RequestBody
    ) -> dict[str, _Document]:
        """The items that references among `items` point at, by id; those that are not there are left out.

        Args:
            caller: Who made the request.
            items: The items of the request.
            body: The body of the request, which the found items count as a part of.

        Raises:
            ApiError: There are too many references, or what they point at is too large.
        """
        wanted = {item.target for item in items if isinstance(item, ReferenceItem)}
        if len(wanted) > _MAX_REFERENCES:
            message = (
                f"'input' has {len(wanted)} references to items, but at most {_MAX_REFERENCES}."
            )
            raise invalid(message, "input")
        found: dict[str, _Document] = {}
        for item_id in wanted:
            if item_id in found:
                continue
            holder = await (self._store or self._recent).holder_of(caller, item_id)
            if holder is not None:
                body.take(holder.size)
                known = await off_loop(holder.size, _items_of, [holder])
                found |= {item["id"]: item for item in known if item["id"] in wanted}
        return found

    async def keep(self, record: Record) -> bool:
        """Keeps a response as its request wants, see `will_store`; the answer is good whether that succeeds or not.

        Returns:
            Whether it is stored.
        """
        wanted = self.will_store(record.request)
        try:
            if wanted:
                size = record.size + len(record.frames)
                stored = await off_loop(size, _packed, record)
                is_kept = await self.store("store").put(record.caller, stored)
            else:
                is_kept = False
                await self._keep_recent(record)
        except StoreError:  # which has logged why
            is_kept = False
        if wanted and not is_kept:
            NOT_STORED.inc()
        return is_kept

    async def _keep_recent(self, record: Record) -> None:
        if record.request.store is not None:
            return
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


def _not_continuable(response_id: str, status: str) -> ApiError:
    message = f"Response {shown(response_id)} is {status} and cannot be continued."
    return invalid(message, "previous_response_id")


def _checked_size(responses: Iterable[StoredResponse]) -> int:
    """About how much memory the input items take: each request was within the bounds, but a conversation has many.

    Raises:
        ApiError: They have too many values.
    """
    size = sum((Size.of(response.input_items) for response in responses), Size())
    size.check("conversation")
    return size.memory


def _items_of(responses: Iterable[StoredResponse]) -> list[_Document]:
    """All items, input and output, without log probabilities, which are no part of a prompt."""
    items: list[_Document] = []
    for response in responses:
        items += orjson.loads(response.input_items)
        output: list[_Document] = orjson.loads(response.resource)["output"]
        for part in (part for item in output for part in item.get("content") or ()):
            part.pop("logprobs", None)
        items += output
    return items


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
        frames=record.frames,
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
