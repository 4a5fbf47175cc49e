"""Writes JSON values of a request again, for the service and into answers."""

from __future__ import annotations

import orjson

from rest_adapter.errors import invalid


def text_of(value: object, path: str) -> str:
    """The JSON text of a value, which can also be written within a response.

    Args:
        value: The value.
        path: Its path in the request's JSON.

    Raises:
        ApiError: It is nested too deeply, or has an integer of more than 64 bits: these can be read, but not written.
    """
    try:
        # A response puts it into a few more objects, and a stream event into one more.
        orjson.dumps([[[[[[[[value]]]]]]]])
    except orjson.JSONEncodeError:
        message = f"'{path}' is nested too deeply, or has an integer of more than 64 bits."
        raise invalid(message, path) from None
    return orjson.dumps(value).decode()
