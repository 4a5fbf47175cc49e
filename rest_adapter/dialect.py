"""The interface of a REST dialect (such as OpenAI's), and the choice of a dialect by path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import math

from fastapi import APIRouter
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Scope

from rest_adapter.errors import ApiError


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """The parts of a REST dialect that authentication, limits, error handlers and streams need.

    Attributes:
        prefix: Path of the dialect's routes, without a trailing slash: `/v1`.
        router: The routes.
        authorization_of: Returns the caller's key in the headers as the `authorization` of a gRPC call, `Bearer KEY`;
            None if there is no key.
        challenge: `www-authenticate` of the response to a missing or invalid key; None = no such header.
        render_error: Returns the headers and the JSON body of an error.
        render_error_event: Returns the Server-Sent Event that ends a failed stream.
        stream_end: The last bytes of a successful stream; may be empty.
    """

    prefix: str
    router: APIRouter
    authorization_of: Callable[[Headers], str | None]
    challenge: str | None
    render_error: Callable[[ApiError], tuple[dict[str, str], bytes]]
    render_error_event: Callable[[ApiError], bytes]
    stream_end: bytes


def choose(dialects: Sequence[Dialect], path: str) -> Dialect:
    """The dialect with the longest prefix of `path`; the first dialect if none matches."""
    found = [d for d in dialects if path == d.prefix or path.startswith(f"{d.prefix}/")]
    return max(found, key=lambda dialect: len(dialect.prefix), default=dialects[0])


def dialect_of(scope: Scope) -> Dialect:
    """The dialect of a request, by its path."""
    return choose(scope["app"].state.dialects, scope["path"])


def error_response(scope: Scope, error: ApiError) -> Response:
    """The response to a failed request in its dialect."""
    headers, body = dialect_of(scope).render_error(error)
    headers = headers | error.headers
    if error.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    return Response(body, error.status, headers=headers, media_type="application/json")
