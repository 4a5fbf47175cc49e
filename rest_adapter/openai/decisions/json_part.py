"""Renders a part of type `input_json` as text, within OpenAI's limits."""

from __future__ import annotations

from typing import Any, Final

import orjson

from rest_adapter.errors import invalid
from rest_adapter.openai.content import Text
from rest_adapter.openai.part_fields import Fields
from rest_adapter.validation import wrong


MAX_LEVELS: Final = 32
MAX_VALUES: Final = 10_000
MAX_BYTES: Final = 256 * 2**10


def read_json_part(part: Fields) -> Text:
    """The text of a part: its `data` as compact JSON.

    Raises:
        ApiError: `data` is not an object or a list of objects, or exceeds a limit.
    """
    path = part.path_of("data")
    data = part.values.get("data")
    objects = data if isinstance(data, list) else [data]
    if "data" not in part.values:
        raise invalid(f"'{path}' is missing.", path, "MISSING_FIELD")
    if not all(isinstance(item, dict) for item in objects):
        raise wrong(path, data, "an object or a list of objects")
    levels, values = _measure(data)
    text = orjson.dumps(data) if levels <= MAX_LEVELS and values <= MAX_VALUES else b""
    for count, maximum, what in (
        (levels, MAX_LEVELS, "levels"),
        (values, MAX_VALUES, "values"),
        (len(text), MAX_BYTES, "bytes"),
    ):
        if count > maximum:
            raise invalid(
                f"'{path}' has more than {maximum} {what}, the maximum of an input_json part.", path
            )
    return Text(text.decode(), path)


def _measure(data: Any) -> tuple[int, int]:
    """The levels of objects and lists in each other, and the number of values; counts no further than the limits."""
    levels = values = 0
    layer = [data]
    while layer and levels <= MAX_LEVELS and values <= MAX_VALUES:
        values += len(layer)
        containers = [value for value in layer if isinstance(value, dict | list)]
        levels += bool(containers)
        layer = [
            inner
            for value in containers
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
    return levels, values
