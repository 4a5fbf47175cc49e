"""Reads the parameters of a query."""

from __future__ import annotations

import re
from typing import Final

from starlette.datastructures import QueryParams

from rest_adapter.validation import wrong


_INTEGER: Final = re.compile("-?0*[0-9]{1,19}", re.ASCII)
"""Leading zeros apart no longer than 64 bits, as `int` takes long for long ones, and refuses the longest."""


def integer_of(
    params: QueryParams, name: str, default: int, *, minimum: int, maximum: int = 2**31 - 1
) -> int:
    """An integer; `default` if it is missing or empty.

    Raises:
        ApiError: It is no integer, or out of bounds.
    """
    text = params.get(name, "")
    if not text:
        return default
    if _INTEGER.fullmatch(text) and minimum <= (value := int(text)) <= maximum:
        return value
    raise wrong(name, text, f"an integer from {minimum} to {maximum}")
