"""Reads the parameters of a query."""

from __future__ import annotations

from starlette.datastructures import QueryParams

from rest_adapter.validation import wrong


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
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdecimal()) or not minimum <= int(text[:12]) <= maximum:
        raise wrong(name, text, f"an integer from {minimum} to {maximum}")
    return int(text)
