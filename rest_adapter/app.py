"""Builds the ASGI application: dialects, middleware and error handlers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
import contextlib
from importlib.metadata import version
from pathlib import Path
from typing import Final

from fastapi import APIRouter, FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from qwenvl.keys import KeyFile
from rest_adapter import metrics, models, probes
from rest_adapter.anthropic.dialect import ANTHROPIC
from rest_adapter.auth import RequireKey
from rest_adapter.body import Bodies, BodyLimits
from rest_adapter.body_budget import BodyBudget
from rest_adapter.connections import MAX_CONNECTIONS, Connections, ShareConnections
from rest_adapter.dialect import Dialect, error_response
from rest_adapter.errors import ApiError, aborted
from rest_adapter.framing import RefuseUnclearFraming
from rest_adapter.middleware import Failures, RequestLog
from rest_adapter.openai.dialect import OPENAI
from rest_adapter.openapi import route as openapi
from rest_adapter.openapi.own import own_descriptions
from rest_adapter.origins import RefuseForeignPages, compile_origins
from rest_adapter.paths import AnswerOptions, Endpoints, HeadAsGet, TidyPaths
from rest_adapter.playground.route import make_router
from rest_adapter.refusals import MAX_CALLS, RefuseHammering
from rest_adapter.service_connection import ServiceConnection
from rest_adapter.settings import AdapterSettings
from rest_adapter.state import Shared
from rest_adapter.turns import Turns


DIALECTS: Final = (OPENAI, ANTHROPIC)
"""The served dialects; the first one also formats the errors of all other paths."""

_EXPOSED_HEADERS: Final = ("retry-after", "x-request-id", "x-should-retry")


def create_app(settings: AdapterSettings, dialects: Sequence[Dialect] = DIALECTS) -> FastAPI:
    """Builds the application; the channel to the service is opened when it starts.

    Args:
        settings: The adapter's settings.
        dialects: The dialects to serve, at least one; the first also formats the errors of all other paths.

    Raises:
        OSError: The API key file cannot be read, or the certificates cannot be used.
    """
    connection = ServiceConnection(settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        connection.open()
        app.state.shared = Shared(settings, connection, version("qwen-vl-serving"))
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(connection.close)
            for dialect in dialects:
                if dialect.lifespan is not None:
                    await stack.enter_async_context(dialect.lifespan(app))
            yield

    app = FastAPI(
        lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.state.dialects = tuple(dialects)
    app.state.turns = Turns()
    app.state.connections = Connections(MAX_CONNECTIONS)
    routers = [dialect.router for dialect in dialects]
    routers += [models.router, probes.router, metrics.router]
    if settings.playground:
        routers += [make_router(), _docs(settings, dialects)]
    for router in routers:
        app.include_router(router)
    app.state.endpoints = Endpoints(
        (dialect.prefix for dialect in dialects),
        (route for router in routers for route in router.routes),
    )
    _add_middleware(app, settings, dialects)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _client_gone)
    return app


def _docs(settings: AdapterSettings, dialects: Sequence[Dialect]) -> APIRouter:
    """The routes that describe all routes."""
    described = [dialect.description for dialect in dialects if dialect.description is not None]
    return openapi.make_router(
        [*described, *own_descriptions(described)],
        version("qwen-vl-serving"),
        needs_key=settings.api_key_file is not None,
    )


def _add_middleware(app: FastAPI, settings: AdapterSettings, dialects: Sequence[Dialect]) -> None:
    """Adds the middleware from the inside out."""
    keys = None if settings.api_key_file is None else KeyFile(Path(settings.api_key_file))
    origins = compile_origins(settings.allowed_origins)
    app.add_middleware(HeadAsGet)
    # Without keys nobody knows whose requests come.
    app.add_middleware(RefuseHammering, max_calls=None if keys is None else MAX_CALLS)
    app.add_middleware(ShareConnections)
    if keys is not None:
        app.add_middleware(RequireKey)
    else:
        app.add_middleware(RefuseForeignPages, origins=origins)
    app.add_middleware(RefuseUnclearFraming)
    app.add_middleware(Failures)
    app.add_middleware(AnswerOptions, endpoints=app.state.endpoints)
    # Outside of the check of keys: a browser sends its question (OPTIONS) without one.
    app.add_middleware(
        CORSMiddleware,
        allow_origin_regex=origins.pattern,
        allow_methods=("DELETE", "GET", "HEAD", "OPTIONS", "POST"),
        allow_headers=("*",),
        allow_private_network=True,
        expose_headers=(*_EXPOSED_HEADERS, *filter(None, (d.request_id_header for d in dialects))),
    )
    app.add_middleware(RequestLog, keys=keys)
    app.add_middleware(TidyPaths)
    app.add_middleware(
        Bodies,
        limits=BodyLimits(
            max_bytes=settings.max_body_mib * 2**20,
            silence_s=settings.body_timeout_s,
            min_bytes_per_s=settings.min_body_kib_per_s * 1024,
            budget=BodyBudget(settings.body_budget_mib * 2**20, settings.max_body_mib * 2**20),
        ),
    )


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(request.scope, error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    endpoints: Endpoints = request.app.state.endpoints
    if error.status_code == 404:
        failure = endpoints.explain_path(request.method, request.url.path)
    elif error.status_code == 405:
        failure = endpoints.explain_method(request.method, request.url.path)
    else:
        failure = ApiError(error.status_code, str(error.detail), reason="INVALID_REQUEST")
    return error_response(request.scope, failure)


async def _client_gone(request: Request, error: Exception) -> Response:
    del error
    metrics.CLIENT_DISCONNECTS.labels("body").inc()
    return error_response(request.scope, aborted())
