"""What the routes that take JSON have in common: the body on its way in, and a client that may go away.

Owns reading and the fate of fields that nobody knows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
import logging
from typing import Any, Final, TypeVar

from fastapi import Request
import orjson

from rest_adapter.errors import ApiError, aborted, invalid
from rest_adapter.routes.state import shared
from rest_adapter.sse import until_disconnected


_LOG: Final = logging.getLogger(__name__)
_MAX_LOGGED_FIELDS: Final = 20
_Answer = TypeVar("_Answer")
_Parsed = TypeVar("_Parsed")


async def read(request: Request, parse: Callable[[object], tuple[_Parsed, list[str]]]) -> _Parsed:
    """Reads and checks the body; fields that nobody knows are logged or refused.

    Args:
        request: The HTTP request.
        parse: Checks a JSON document; gives the request and the paths of unknown fields.

    Raises:
        ApiError: The body is no JSON, or is refused.
    """
    body = await request.body()
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type and media_type != "application/json":
        raise ApiError(415, "The content type must be application/json.", code="unsupported_media")
    try:
        # orjson refuses invalid UTF-8, and nesting deeper than 1024 before it becomes objects.
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise invalid("The body is not valid JSON.", None, "invalid_json") from None
    parsed, unknown = parse(document)
    if unknown:
        if shared(request).settings.strict_fields:
            raise invalid(f"'{unknown[0]}' is unknown.", unknown[0], "unknown_parameter")
        _LOG.info("unknown fields are ignored: %s", ", ".join(unknown[:_MAX_LOGGED_FIELDS]))
    return parsed


async def while_connected(request: Request, work: Coroutine[Any, Any, _Answer]) -> _Answer:
    """Does the work, and cancels it when the client goes away; Starlette does so for streams only."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(until_disconnected(request.receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise aborted()
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)
