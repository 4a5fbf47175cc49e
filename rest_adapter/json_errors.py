"""Says what is wrong with a body that is not JSON, and where."""

from __future__ import annotations

import codecs
import re
from typing import Final

import orjson

from rest_adapter.errors import ApiError, invalid


_UTF_16: Final = "it is UTF-16, but JSON must be UTF-8"
_UTF_32: Final = "it is UTF-32, but JSON must be UTF-8"
_BEGINS: Final = {
    codecs.BOM_UTF32_LE: _UTF_32,
    codecs.BOM_UTF32_BE: _UTF_32,
    codecs.BOM_UTF16_LE: _UTF_16,
    codecs.BOM_UTF16_BE: _UTF_16,
    # an object without a byte order mark
    b"{\0\0\0": _UTF_32,
    b"\0\0\0": _UTF_32,
    b"{\0": _UTF_16,
    b"\0{": _UTF_16,
    b"\x1f\x8b": "it is compressed, but has no 'content-encoding: gzip'",
}
"""How bodies begin that are no UTF-8, and what they are; the longer ones first."""
_NOT_A_NUMBER: Final = re.compile(r"-?(?:NaN|Infinity)")
_ESCAPE: Final = re.compile(r"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)
_NEAR_CHARS: Final = 16


def explain_json_error(data: bytearray, error: orjson.JSONDecodeError) -> ApiError:
    """The error for a body that orjson refuses.

    Args:
        data: The body.
        error: orjson's error.
    """
    if not data.strip():
        return _not_json("it is empty")
    for begin, what in _BEGINS.items():
        if data.startswith(begin):
            return _not_json(what)
    try:
        text = data.decode()
    except UnicodeDecodeError as wrong:
        before = data[: wrong.start].decode()
        return _not_json(f"the byte 0x{data[wrong.start]:02x} is not UTF-8", before)
    before, after = text[: error.pos], text[error.pos : error.pos + _NEAR_CHARS]
    if found := _NOT_A_NUMBER.match(text, max(0, error.pos - 1)) or _NOT_A_NUMBER.match(after):
        return _not_json(f"{found[0]} is not a value of JSON", before)
    if "surrogate" in error.msg and (half := _lone_surrogate(text, error.pos)):
        return invalid(
            f"A string of the body has half of a character, {half[0]}, at {_place(text[: half.start()])}; text must be "
            "cut between characters.",
            None,
        )
    return _not_json(error.msg.partition(": line")[0], before)


def _lone_surrogate(text: str, begin: int) -> re.Match[str] | None:
    """The first escape of half of a surrogate pair."""
    high: re.Match[str] | None = None
    for escape in _ESCAPE.finditer(text, begin):
        code = int(escape[1] or "0", 16)
        is_low = 0xDC00 <= code < 0xE000
        if high is not None and not (is_low and escape.start() == high.end()):
            return high
        if is_low and high is None:
            return escape
        high = escape if 0xD800 <= code < 0xDC00 else None
    return high


def _not_json(what: str, before: str | None = None) -> ApiError:
    where = "" if before is None else f" at {_place(before)}"
    return invalid(f"The body is not valid JSON: {what}{where}.", None, "INVALID_JSON")


def _place(before: str) -> str:
    """The place after some text; both numbers count from 1."""
    return f"line {before.count(chr(10)) + 1}, column {len(before) - before.rfind(chr(10))}"
