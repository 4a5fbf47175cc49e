"""Reads `file:` URLs below the directory that the operator allowed."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import os
from pathlib import Path
import stat
from typing import BinaryIO, Final
from urllib.parse import unquote, urlsplit

from inference_service.errors import (
    ImageFetchError,
    ImageTooLargeError,
    ImageUrlRefusedError,
    InvalidImageUrlError,
)


_REFUSED: Final = "This service may not read this file (--allow-local-media-path)."
_MALFORMED: Final = "The file URL is malformed; it must have the form file:///path/to/image."


def local_file_size(uri: str, root: Path | None, field: str) -> int:
    """The bytes of a file; arguments and errors as `read_local_file`."""
    with _opened(uri, root, field) as file:
        return os.fstat(file.fileno()).st_size


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
    with _opened(uri, root, field) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise too_large(max_bytes, field)
    return data


@contextlib.contextmanager
def _opened(uri: str, root: Path | None, field: str) -> Iterator[BinaryIO]:
    """A file, open; as `read_local_file`."""
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
        # The path is resolved: a symbolic link was created since and is refused. A pipe must not block.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise refused
            yield file
    except (OSError, ValueError, RuntimeError):
        raise ImageFetchError("The file does not exist or cannot be read.", field=field) from None


def too_large(max_bytes: int, field: str) -> ImageTooLargeError:
    """The error for a file of more bytes than allowed."""
    return ImageTooLargeError(
        f"The image has more than {max_bytes} bytes, the maximum (--max-image-bytes); send a smaller one.",
        field=field,
        metadata={"max_bytes": str(max_bytes)},
    )
