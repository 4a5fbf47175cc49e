"""Reads `file:` URLs below the directory that the operator allowed."""

from __future__ import annotations

import os
from pathlib import Path
import stat
from typing import Final
from urllib.parse import unquote, urlsplit

from inference_service.errors import (
    ImageFetchError,
    ImageTooLargeError,
    ImageUrlRefusedError,
    InvalidImageUrlError,
)


_REFUSED: Final = "This service may not read this file (--allow-local-media-path)."
_MALFORMED: Final = "The file URL is malformed; it must have the form file:///path/to/image."


def read_local_file(uri: str, root: Path | None, max_bytes: int, field: str) -> bytes:
    """Reads a file.

    Args:
        uri: A `file:` URL, from `clean_url`.
        root: The allowed directory, resolved; None = nothing may be read.
        max_bytes: Maximum size.
        field: Path of the image in the request, for errors.

    Raises:
        ImageUrlRefusedError: It is not a regular file below the directory.
        InvalidImageUrlError: The URL is malformed.
        ImageTooLargeError: It has more bytes than allowed.
        ImageFetchError: It cannot be read.
    """
    refused = ImageUrlRefusedError(_REFUSED, field=field)
    if root is None:
        raise refused
    try:
        parts = urlsplit(uri)
        name = unquote(parts.path, errors="strict")
    except ValueError:
        raise InvalidImageUrlError(_MALFORMED, field=field) from None
    if parts.netloc not in {"", "localhost"} or parts.query or not name.startswith("/"):
        raise InvalidImageUrlError(_MALFORMED, field=field)
    try:
        path = Path(name).resolve()
        if not path.is_relative_to(root):
            raise refused
        return _read_regular_file(path, max_bytes, field)
    except (OSError, ValueError, RuntimeError):
        raise ImageFetchError("The file does not exist or cannot be read.", field=field) from None


def too_large(max_bytes: int, field: str) -> ImageTooLargeError:
    """The error for a file of more bytes than allowed."""
    return ImageTooLargeError(
        f"The image has more than {max_bytes} bytes, the maximum (--max-image-bytes); send a smaller one.",
        field=field,
        metadata={"max_bytes": str(max_bytes)},
    )


def _read_regular_file(path: Path, max_bytes: int, field: str) -> bytes:
    # The path is resolved: a symbolic link was created since and is refused. A pipe must not block.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ImageUrlRefusedError(_REFUSED, field=field)
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise too_large(max_bytes, field)
    return data
