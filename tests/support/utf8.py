"""UTF-8 as an answer shows it."""

from __future__ import annotations


def shown(data: bytes) -> str:
    """The text of bytes: U+FFFD for those that are not valid, and nothing for a character that they end within."""
    for size in range(1, 4):
        try:
            data[-size:].decode()
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data" and error.start == 0:
                data = data[:-size]
                break
    return data.decode(errors="replace")
