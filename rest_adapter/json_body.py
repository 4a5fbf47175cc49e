"""Reads the JSON body of a request, and logs or refuses unknown fields."""

from __future__ import annotations

from collections.abc import Callable
import logging
import re
from typing import Final, TypeVar

from fastapi import Request
import orjson

from rest_adapter.body import body_of
from rest_adapter.errors import ApiError, invalid
from rest_adapter.json_errors import explain_json_error
from rest_adapter.json_size import check_size
from rest_adapter.media_places import check_places
from rest_adapter.metrics import IGNORED_FIELDS
from rest_adapter.off_loop import off_loop
from rest_adapter.refusals import begin_calls
from rest_adapter.state import shared


_LOG: Final = logging.getLogger(__name__)
_MAX_LOGGED_FIELDS: Final = 20
_MAX_LOGGED_CHARS: Final = 100
# `curl -d` sends this type, whatever the data. A web page can send it too, but then with its origin.
_FORM_TYPE: Final = "application/x-www-form-urlencoded"
_BEGIN_BYTES: Final = 4096
_VALUES: Final = re.compile(
    r'(?:"[^"]*+"|[^,])++'
)  # between commas that are not in a quoted string
_JSON: Final = re.compile(r"application/[^\s,]+\+json")
_BOM: Final = b"\xef\xbb\xbf"
_Parsed = TypeVar("_Parsed")


async def read_json(
    request: Request, parse: Callable[[object], tuple[_Parsed, list[str]]]
) -> _Parsed:
    """Reads and checks the body; unknown fields are logged, or refused if the settings say so.

    If a field occurs twice, the last one counts. A byte order mark before the JSON is ignored.

    Args:
        request: The HTTP request.
        parse: Checks a JSON document; returns the request and the paths of unknown fields.

    Raises:
        ApiError: The body is not valid JSON or has too many values, or a field is invalid; or the caller is to wait.
    """
    body = body_of(request)
    settings = shared(request).settings
    media_type = _media_type(request)
    data = await body.read()

    def release() -> None:
        data.clear()
        body.release()

    await begin_calls(request.scope, release)
    if media_type == _FORM_TYPE and not data[:_BEGIN_BYTES].lstrip().startswith(b"{"):
        raise _wrong_type(media_type)
    max_text = settings.max_text_mib * 2**20
    extra = await off_loop(len(data), check_size, data, max_text_bytes=max_text)
    body.take(extra)
    parsed, unknown = await off_loop(len(data), _parse, data, parse, max_text)
    if unknown:
        if settings.strict_fields:
            message = f"'{unknown[0][:_MAX_LOGGED_CHARS]}' is not a known field (--strict-fields)."
            raise invalid(message, unknown[0], "UNKNOWN_FIELD")
        IGNORED_FIELDS.inc(len(unknown))
        names = [name[:_MAX_LOGGED_CHARS] for name in unknown[:_MAX_LOGGED_FIELDS]]
        _LOG.info({"message": "unknown fields are ignored", "fields": ", ".join(names)})
    return parsed


def _media_type(request: Request) -> str:
    media_type = _common_type(", ".join(request.headers.getlist("content-type")))
    if media_type not in ("", "application/json", _FORM_TYPE) and not _JSON.fullmatch(media_type):
        raise _wrong_type(media_type)
    return media_type


def _common_type(header: str) -> str:
    """The media type of the header; proxies join the values of a repeated one, which count as one if they agree.

    Those that do not are given as they are, which is no media type that anybody accepts.
    """
    types = {_without_parameters(value) for value in _VALUES.findall(header)} - {""}
    return ", ".join(sorted(types))


def _without_parameters(value: str) -> str:
    return value.partition(";")[0].strip().lower()


def _wrong_type(media_type: str) -> ApiError:
    message = f"The content type is {media_type[:100]!r}, but must be application/json."
    return ApiError(415, message, reason="UNSUPPORTED_MEDIA_TYPE")


def _parse(
    data: bytearray, parse: Callable[[object], tuple[_Parsed, list[str]]], max_text_bytes: int
) -> tuple[_Parsed, list[str]]:
    if data.startswith(_BOM):
        del data[: len(_BOM)]
    try:
        # orjson refuses invalid UTF-8, and nesting deeper than 1024 before it creates objects.
        document = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise explain_json_error(data, error) from None
    num_bytes = len(data)
    data.clear()
    check_places(document, num_bytes, max_text_bytes=max_text_bytes)
    return parse(document)
