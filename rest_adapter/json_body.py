"""Reads the JSON body of a request, and logs or refuses unknown fields."""

from __future__ import annotations

from collections.abc import Callable
import logging
from typing import Final, TypeVar

from fastapi import Request
import orjson

from rest_adapter.errors import ApiError, invalid
from rest_adapter.state import shared


_LOG: Final = logging.getLogger(__name__)
_MAX_LOGGED_FIELDS: Final = 20
_MAX_LOGGED_CHARS: Final = 100
_Parsed = TypeVar("_Parsed")


async def read_json(
    request: Request, parse: Callable[[object], tuple[_Parsed, list[str]]]
) -> _Parsed:
    """Reads and checks the body; unknown fields are logged, or refused if the settings say so.

    Args:
        request: The HTTP request.
        parse: Checks a JSON document; returns the request and the paths of unknown fields.

    Raises:
        ApiError: The body is not valid JSON, or a field is invalid.
    """
    body = await request.body()
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type and media_type != "application/json":
        message = f"The content type is {media_type[:100]!r}, but must be application/json."
        raise ApiError(415, message, reason="UNSUPPORTED_MEDIA_TYPE")
    try:
        # orjson refuses invalid UTF-8, and nesting deeper than 1024 before it creates objects.
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise invalid("The body is not valid JSON.", None, "INVALID_JSON") from None
    parsed, unknown = parse(document)
    if unknown:
        if shared(request).settings.strict_fields:
            message = f"'{unknown[0]}' is not a known field (--strict-fields)."
            raise invalid(message, unknown[0], "UNKNOWN_FIELD")
        names = [name[:_MAX_LOGGED_CHARS] for name in unknown[:_MAX_LOGGED_FIELDS]]
        _LOG.info({"message": "unknown fields are ignored", "fields": ", ".join(names)})
    return parsed
