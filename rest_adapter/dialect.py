"""The interface of a REST dialect (such as OpenAI's), and the choice of a dialect by path."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
import math
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from starlette.datastructures import Headers, QueryParams
from starlette.responses import Response
from starlette.status import HTTP_401_UNAUTHORIZED, HTTP_429_TOO_MANY_REQUESTS
from starlette.types import Scope

from qwenvl.inference.v1 import model_service_pb2 as model_pb
from qwenvl.keys import KeyFile
from qwenvl.observability import current_call
from rest_adapter.errors import ApiError
from rest_adapter.metrics import ERRORS, RATE_LIMITED
from rest_adapter.openapi.operation import Description


COMMENT: Final = b": still here\n\n"
"""A comment in a stream of events, which clients skip."""

MODELS_PATH: Final = "/v1/models"
"""The list of models, which OpenAI and Anthropic have at the same path."""


def _own_status(error: ApiError) -> int:
    return error.status


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelForm:
    """How a dialect writes the served models.

    Attributes:
        one: Returns the document of a model.
        several: Returns the document of all models; the query may ask for a part of them.
    """

    one: Callable[[model_pb.Model], Mapping[str, Any]]
    several: Callable[[Sequence[model_pb.Model], QueryParams], Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """The parts of a REST dialect that authentication, limits, error handlers and streams need.

    Attributes:
        prefix: Path of the dialect's routes, without a trailing slash: `/v1`. Of several dialects the one with the
            longest prefix of a path serves it, so that one can have a path below another's.
        router: The routes.
        authorizations_of: Returns the caller's keys in the headers, each as the `authorization` of a gRPC call,
            `Bearer KEY`; a client may send several headers, of which not all have a real key.
        challenge: `www-authenticate` of every 401 (RFC 9110, 11.6.1), also of the service's; None = no such header.
        render_error: Returns the headers and the JSON body of an error.
        status_of: Returns the HTTP status of an error, if it differs from the error's own.
        render_error_event: Returns the Server-Sent Event that ends a failed stream.
        stream_end: The last bytes of a successful stream; may be empty.
        heartbeat: What a stream without output sends from time to time.
        request_id_header: A header of every response with the same value as `x-request-id`; None = no such header.
        lifespan: Opens what the routes need, after `app.state.shared`, and closes it when the application stops; None =
            nothing.
        description: Describes the routes for the OpenAPI document; None = they are not in it.
        models: How the models are written at `MODELS_PATH`; None = not in this dialect.
        header: Clients of this dialect send it: it tells them at `MODELS_PATH` and where nothing is served; None = no
            header does.
    """

    prefix: str
    router: APIRouter
    authorizations_of: Callable[[Headers], Sequence[str]]
    challenge: str | None
    render_error: Callable[[ApiError], tuple[dict[str, str], bytes]]
    render_error_event: Callable[[ApiError], bytes]
    stream_end: bytes
    status_of: Callable[[ApiError], int] = _own_status
    heartbeat: bytes = COMMENT
    request_id_header: str | None = None
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]] | None = None
    description: Description | None = None
    models: ModelForm | None = None
    header: str | None = None


def choose(dialects: Sequence[Dialect], path: str) -> Dialect:
    """The dialect with the longest prefix of `path`; the first dialect if none matches."""
    found = [d for d in dialects if path == d.prefix or path.startswith(f"{d.prefix}/")]
    return max(found, key=lambda dialect: len(dialect.prefix), default=dialects[0])


def dialect_of(scope: Scope) -> Dialect:
    """The dialect of a request, by its path; where that is of several or of none, by the headers."""
    state, path = scope["app"].state, scope["path"]
    sent = Headers(scope=scope).keys()
    dialects: Sequence[Dialect] = state.dialects
    named = next((d for d in dialects if d.header in sent), None)
    if named is not None:
        is_of_several = f"{path}/".startswith(f"{MODELS_PATH}/")
        if is_of_several or not state.endpoints.template_of(path):
            return named
    return choose(dialects, path)


def authorization_of(scope: Scope, keys: KeyFile | None) -> str | None:
    """The `Bearer KEY` of a request: the first one that is known, else the first one; None = the request has no key."""
    candidates = dialect_of(scope).authorizations_of(Headers(scope=scope))
    known = (each for each in candidates if keys is not None and keys.accepts(each))
    return next(known, None) or next(iter(candidates), None)


def response_request_id() -> str:
    """`x-request-id` of the current response: the client's own id, else the request's id."""
    call = current_call()
    assert call is not None
    return call.client_request_id or call.request_id


def note_error(scope: Scope, error: ApiError) -> None:
    """Gives an error the id of the request, and the access log the reason; counts it."""
    error.request_id = response_request_id()
    scope["state"]["error"] = error
    ERRORS.labels(error.reason).inc()
    if error.status == HTTP_429_TOO_MANY_REQUESTS:
        RATE_LIMITED.labels(error.reason).inc()


def error_response(scope: Scope, error: ApiError) -> Response:
    """The response to a failed request in its dialect."""
    note_error(scope, error)
    dialect = dialect_of(scope)
    headers, body = dialect.render_error(error)
    headers = headers | error.headers
    if error.status == HTTP_401_UNAUTHORIZED and dialect.challenge is not None:
        headers["www-authenticate"] = dialect.challenge
    if error.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    status = dialect.status_of(error)
    return Response(body, status, headers=headers, media_type="application/json")


def retry_headers(error: ApiError) -> dict[str, str]:
    """`x-should-retry: false` for errors that generated clients retry by default, but that a retry does not help."""
    if error.retry_after_s is None and (error.status == 409 or error.status >= 500):
        return {"x-should-retry": "false"}
    return {}
