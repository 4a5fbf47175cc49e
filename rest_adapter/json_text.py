"""Values of a request's JSON in messages."""

from __future__ import annotations

from typing import Final

import orjson


_MAX_SHOWN: Final = 80
_MANY_ZEROS: Final = 1e21


def shown(value: object) -> str:
    """A value for a message, as JSON: texts shortened, numbers without exponent, lists and objects by their kind."""
    if isinstance(value, dict):
        return "an object" if value else "an empty object"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, str) and len(value) > _MAX_SHOWN:
        value = value[:_MAX_SHOWN] + "..."
    if isinstance(value, float) and value.is_integer() and abs(value) < _MANY_ZEROS:
        value = int(value)
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:
        return str(value)  # an integer of more than 64 bits
