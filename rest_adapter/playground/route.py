"""The routes GET / and GET /playground/{name}: the page and its files, which hold nothing secret and need no key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
import hashlib
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Final

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException
from starlette.status import HTTP_304_NOT_MODIFIED, HTTP_404_NOT_FOUND


_INDEX: Final = "index.html"
_TYPES: Final = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "mjs": "text/javascript; charset=utf-8",
    "json": "application/json",
    "png": "image/png",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}
# The page loads nothing from elsewhere, and what an answer or a file name says never becomes a script.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types dompurify"
)
_HEADERS: Final = {
    "cache-control": "no-cache",  # asks each time, so that a new version shows at once
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


@dataclass(frozen=True, slots=True)
class _File:
    """A file as it is sent."""

    body: bytes
    media_type: str
    etag: str


def _walk(folder: Traversable, prefix: str) -> Iterator[tuple[str, Traversable]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(entry, f"{prefix}{entry.name}/")
        else:
            yield f"{prefix}{entry.name}", entry


def _load() -> dict[str, _File]:
    """All files by their path below `/playground/`; no other name can be asked for."""
    package = files(__package__)
    found: dict[str, _File] = {}
    for folder in ("page", "vendor"):
        for name, entry in _walk(package / folder, "" if folder == "page" else f"{folder}/"):
            body = entry.read_bytes()
            media_type = _TYPES[name.rpartition(".")[2]]
            found[name] = _File(body, media_type, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
    return found


def make_router() -> APIRouter:
    """Reads the page's files and makes the routes that send them.

    Raises:
        OSError: The package is incomplete.
    """
    pages = _load()
    index = pages.pop(_INDEX)
    router = APIRouter()

    @router.get("/")
    async def page(request: Request) -> Response:
        """The page."""
        return _send(request, index)

    @router.get("/playground/{name:path}")
    async def file(request: Request, name: str) -> Response:
        """A file of the page."""
        return _send(request, _find(pages, name))

    return router


def _find(pages: Mapping[str, _File], name: str) -> _File:
    if name not in pages:
        raise HTTPException(HTTP_404_NOT_FOUND)
    return pages[name]


def _send(request: Request, found: _File) -> Response:
    """The file, or 304 if the browser has it already (RFC 9110, 13.1.2)."""
    headers = _HEADERS | {"etag": found.etag}
    known = request.headers.get("if-none-match", "")
    if found.etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
        return Response(status_code=HTTP_304_NOT_MODIFIED, headers=headers)
    return Response(found.body, media_type=found.media_type, headers=headers)
