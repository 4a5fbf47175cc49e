"""The opaque texts that this API hands out in `encrypted_content`, and reads when they come back.

They are packed, not encrypted: what is in them the caller has seen already, or could have written.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final
import zlib

from rest_adapter.errors import too_large


MAX_BYTES: Final = 2 * 2**20
"""Maximum size of all texts of a request."""
_MARK: Final = "qwenvl1."


def pack(kind: str, text: str) -> str:
    """Packs a text.

    Args:
        kind: What it is, such as `reasoning`; a text of one kind is none of another.
        text: The text.
    """
    data = zlib.compress(f"{kind}\n{text}".encode())
    return _MARK + base64.urlsafe_b64encode(data).decode()


class Unpacker:
    """Unpacks the blobs of one request, which are bounded together: a few kilobytes can unpack to gigabytes."""

    def __init__(self) -> None:
        self._left = MAX_BYTES

    def unpack(self, kind: str, blob: str) -> str | None:
        """The text of a blob; None = it is not one of this kind, such as that of another server.

        Raises:
            ApiError: All blobs together are too large.
        """
        if not blob.startswith(_MARK):
            return None
        try:
            data = base64.urlsafe_b64decode(blob.removeprefix(_MARK))
            unpacker = zlib.decompressobj()
            unpacked = unpacker.decompress(data, self._left + 1)
            if len(unpacked) > self._left:
                raise too_large(
                    f"All `encrypted_content` together unpacks to more than {MAX_BYTES // 2**20} MiB, the maximum."
                )
            self._left -= len(unpacked)
            found, _, content = unpacked.decode().partition("\n")
        except (binascii.Error, zlib.error, ValueError):
            return None
        return content if found == kind and unpacker.eof else None
