"""Where images stand in a body: only there may a string be longer than all text of a body.

`json_size` counts before the JSON is parsed, and takes every long string for an image that begins like one. Here the
places are known, so that a `cache_salt` or a schema cannot be as long as a photograph.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, TypeAlias

from rest_adapter.errors import too_large
from rest_adapter.json_size import LONG_BYTES, is_media


_TOP: Final = frozenset(("contents", "images", "input", "inputs", "messages", "questions"))
"""Fields of a body with images in them, also of APIs that are refused with the advice to use this one."""
_WITHIN: Final = frozenset(
    (
        *("content", "messages", "output", "instructions", "parts", "contents"),
        *("source", "image_url", "image", "images", "image_urls", "video", "videos", "video_url"),
        *("file", "input_audio", "inline_data", "inlineData"),
    )
)
"""Fields below these. Not `input` and `arguments`, which are the caller's own JSON there, nor `data`, if an object."""
_FIELDS: Final = frozenset(
    (
        *("image_url", "image", "images", "image_urls", "url", "base64", "data", "source"),
        *("video", "videos", "video_url", "file_data"),
    )
)
"""Fields whose text, or whose list of texts, is an image."""
_MIB: Final = 2**20
_MAX_NAME_CHARS: Final = 80

_Link: TypeAlias = "tuple[_Link, str | int] | None"
"""The path of a value, from its end."""


def check_places(document: object, num_bytes: int, *, max_text_bytes: int) -> None:
    """Refuses a body with too much text, of which nothing is an image that stands where no image may.

    Args:
        document: The JSON.
        num_bytes: Size of the body.
        max_text_bytes: Maximum size without images, in bytes.

    Raises:
        ApiError: There is too much.
    """
    if num_bytes <= max_text_bytes or not isinstance(document, dict):
        return
    media, longest, where = 0, 0, ""
    for text, link, is_place in _long_texts(document):
        if is_place and is_media(text[:LONG_BYTES].encode()):
            media += len(text)
        elif len(text) > longest:
            longest, where = len(text), _joined(link)
    if num_bytes - media <= max_text_bytes:
        return
    told = f" The longest text is '{where}' with {longest / _MIB:.1f} MiB." if longest else ""
    raise too_large(
        f"The body has {(num_bytes - media) / _MIB:.1f} MiB without its images, but at most {max_text_bytes / _MIB:g} "
        f"MiB are allowed (--max-text-mib).{told}",
        where or None,
    )


def _long_texts(document: object) -> Iterator[tuple[str, _Link, bool]]:
    """The long texts, their paths, and whether an image may stand there."""
    waiting: list[tuple[Any, _Link, str, bool]] = [(document, None, "", True)]
    while waiting:
        value, link, name, may_hold = waiting.pop()
        is_top = link is None
        for step, inner in value.items() if isinstance(value, dict) else enumerate(value):
            field = step if isinstance(step, str) else name  # a list is as its field
            if isinstance(inner, dict | list):
                holds = may_hold and (field != step or step in (_TOP if is_top else _WITHIN))
                waiting.append((inner, (link, step), field, holds))
            elif isinstance(inner, str) and len(inner) > LONG_BYTES:
                yield inner, (link, step), may_hold and not is_top and field in _FIELDS


def _joined(link: _Link) -> str:
    steps: list[str] = []
    while link is not None:
        link, step = link
        steps.append(f"[{step}]" if isinstance(step, int) else f".{step[:_MAX_NAME_CHARS]}")
    return "".join(reversed(steps)).removeprefix(".")
