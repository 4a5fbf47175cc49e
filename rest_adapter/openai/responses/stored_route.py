"""The routes of single responses: GET, DELETE, cancel, input items."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request, Response
import orjson

from rest_adapter.body import body_of
from rest_adapter.dialect import dialect_of
from rest_adapter.errors import ApiError, invalid
from rest_adapter.off_loop import off_loop
from rest_adapter.openai.responses import resource as states
from rest_adapter.openai.responses.in_flight import Run
from rest_adapter.openai.responses.records import frames_after, unknown_response
from rest_adapter.openai.responses.requests import caller_of_request, records_of
from rest_adapter.openai.responses.store import StoredResponse
from rest_adapter.paced import PacedResponse
from rest_adapter.query import integer_of
from rest_adapter.stream import STREAM_HEADERS, on_one_line
from rest_adapter.validation import wrong


router: Final = APIRouter()
_PATH: Final = "/v1/responses/{response_id}"
_MAX_PAGE: Final = 100
_DEFAULT_PAGE: Final = 20
_JSON: Final = "application/json"
_UNPACKED: Final = 8
"""About how many times larger the frames of a stream are than they are kept."""
_BOOLEANS: Final = {"true": True, "1": True, "false": False, "0": False, "": False}


@router.get(_PATH)
async def get_response(request: Request, response_id: str) -> Response:
    """A response as it is now; with `?stream=true` the events of its stream, after `starting_after`."""
    is_stream = _boolean(request, "stream")
    after = integer_of(request.query_params, "starting_after", -1, minimum=-1)
    store, caller = records_of(request).store("response_id"), caller_of_request()
    run = records_of(request).in_flight.find(caller, response_id)
    if run is not None:
        if is_stream:
            raise _in_progress(response_id, "events", "stream")
        content = await _rendered(run)
        return _paced(request, content, media_type=_JSON)
    stored = await store.get(caller, response_id, "frames" if is_stream else "resource")
    if stored is None:
        raise unknown_response(response_id)
    if not is_stream:
        return _paced(request, stored.resource, media_type=_JSON)
    return await _replay(request, stored, after)


@router.delete(_PATH)
async def delete_response(request: Request, response_id: str) -> Response:
    """Deletes a response, also one in progress; those that continue it cannot be continued any more."""
    records, caller = records_of(request), caller_of_request()
    store, run = records.store("response_id"), records.in_flight.find(caller, response_id)
    if run is not None:
        await run.delete()
    if not await store.delete(caller, response_id) and run is None:
        raise unknown_response(response_id)
    deleted = {"id": response_id, "object": "response", "deleted": True}
    return Response(orjson.dumps(deleted), media_type=_JSON)


@router.post(_PATH + "/cancel")
async def cancel_response(request: Request, response_id: str) -> Response:
    """Cancels a response that is being streamed."""
    records, caller = records_of(request), caller_of_request()
    run = records.in_flight.find(caller, response_id)
    if run is not None:
        await run.cancel()
        status = run.resource["status"]
        if status in (states.CANCELLED, states.IN_PROGRESS):
            content, body = await _rendered(run), body_of(request)
            body.take_for_answer(len(content))  # it cannot be cancelled again
            return PacedResponse(content, body, media_type=_JSON)
    else:
        stored = await records.store("response_id").get(caller, response_id)  # its status
        if stored is None:
            raise unknown_response(response_id)
        status = stored.status
    message = f"Response '{response_id}' is {status}; only one in progress can be cancelled."
    raise invalid(message, "response_id")


@router.get(_PATH + "/input_items")
async def list_input_items(request: Request, response_id: str) -> Response:
    """A page of the items that a response was created from, without those of the responses that it continues."""
    order = request.query_params.get("order", "desc")
    if order not in ("asc", "desc"):
        raise wrong("order", order, "asc or desc")
    limit = integer_of(request.query_params, "limit", _DEFAULT_PAGE, minimum=1, maximum=_MAX_PAGE)
    store, caller = records_of(request).store("response_id"), caller_of_request()
    if records_of(request).in_flight.find(caller, response_id) is not None:
        raise _in_progress(response_id, "input items", "response_id")
    stored = await store.get(caller, response_id, "input_items")
    if stored is None:
        raise unknown_response(response_id)
    after, content = request.query_params.get("after"), stored.input_items
    body_of(request).take(len(content))
    page = await off_loop(len(content), _page, content, order, after, limit)
    return _paced(request, page, media_type=_JSON)


def _page(content: bytes, order: str, after: str | None, limit: int) -> bytes:
    items: list[dict[str, Any]] = orjson.loads(content)
    if order == "desc":
        items.reverse()
    begin = _begin(after, items)
    page = items[begin : begin + limit]
    return orjson.dumps(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else "",
            "last_id": page[-1]["id"] if page else "",
            "has_more": begin + limit < len(items),
        }
    )


def _in_progress(response_id: str, what: str, param: str) -> ApiError:
    message = f"Response '{response_id}' is in progress; its {what} can be had after its end."
    return invalid(message, param)


def _begin(after: str | None, items: list[dict[str, Any]]) -> int:
    """Where a page begins: after the item that `after` names."""
    if not after:
        return 0
    ids = [item["id"] for item in items]
    if after not in ids:
        raise wrong("after", after, "the id of one of the items")
    return ids.index(after) + 1


async def _replay(request: Request, stored: StoredResponse, after: int) -> Response:
    end = b"" if stored.status == states.FAILED else dialect_of(request.scope).stream_end

    def events() -> bytes:
        return on_one_line(b"".join(frames_after(stored, after))) + end

    content = await off_loop(_UNPACKED * len(stored.frames), events)
    return _paced(request, content, headers=STREAM_HEADERS, media_type="text/event-stream")


async def _rendered(run: Run) -> bytes:
    """A response in progress: it repeats the instructions and tools of its request."""
    return await off_loop(run.num_bytes, orjson.dumps, run.resource)


def _paced(request: Request, content: bytes, **options: Any) -> Response:
    """What is looked at; as that can be asked for again, it counts as a body."""
    body = body_of(request)
    body.take(len(content))
    return PacedResponse(content, body, **options)


def _boolean(request: Request, name: str) -> bool:
    text = request.query_params.get(name, "").lower()
    if text not in _BOOLEANS:
        raise wrong(name, text, "true or false")
    return _BOOLEANS[text]
