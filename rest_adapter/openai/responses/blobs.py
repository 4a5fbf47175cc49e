"""The opaque texts that this API hands out in `encrypted_content`, and reads when they come back.

They are packed, not encrypted: what is in them the caller has seen already, or could have written.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final
import zlib


_MAX_BYTES: Final = 8 * 2**20
_MARK: Final = "qwenvl1."


def pack(kind: str, text: str) -> str:
    """Packs a text.

    Args:
        kind: What it is, such as `reasoning`; a text of one kind is none of another.
        text: The text.
    """
    data = zlib.compress(f"{kind}\n{text}".encode())
    return _MARK + base64.urlsafe_b64encode(data).decode()


def unpack(kind: str, blob: str) -> str | None:
    """The text of a blob; None = it is not one of this kind, such as that of another server."""
    if not blob.startswith(_MARK):
        return None
    try:
        data = base64.urlsafe_b64decode(blob.removeprefix(_MARK))
        # Bounded, because a few kilobytes can unpack to gigabytes.
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(data, _MAX_BYTES).decode()
    except (binascii.Error, zlib.error, ValueError):
        return None
    found, _, content = text.partition("\n")
    return content if found == kind and unpacker.eof else None
