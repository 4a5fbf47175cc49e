"""Builds the ASGI application: dialects, middleware and error handlers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
import contextlib
from importlib.metadata import version
from pathlib import Path
from typing import Final

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from qwenvl.aio import AsyncService
from qwenvl.keys import KeyFile
from rest_adapter import probes
from rest_adapter.auth import RequireKey
from rest_adapter.dialect import Dialect, error_response
from rest_adapter.errors import ApiError, aborted, internal
from rest_adapter.middleware import BodyLimit, RequestLog, response_request_id
from rest_adapter.openai.dialect import OPENAI
from rest_adapter.settings import AdapterSettings
from rest_adapter.state import Shared


DIALECTS: Final = (OPENAI,)
"""The served dialects; the first one also formats the errors of all other paths."""

_HTTP_ERRORS: Final = {
    404: ("This path does not exist.", "NOT_FOUND"),
    405: ("This path does not support this method.", "METHOD_NOT_ALLOWED"),
}


def create_app(settings: AdapterSettings, dialects: Sequence[Dialect] = DIALECTS) -> FastAPI:
    """Builds the application; the channel to the service is opened when it starts.

    Args:
        settings: The adapter's settings.
        dialects: The dialects to serve, at least one; the first also formats the errors of all other paths.

    Raises:
        OSError: The API key file cannot be read.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = AsyncService(settings.grpc_target, timeout_s=settings.request_timeout_s)
        app.state.shared = Shared(settings, service, version("qwen-vl-serving"))
        try:
            yield
        finally:
            await service.close()

    app = FastAPI(
        lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.state.dialects = tuple(dialects)
    for router in (*(dialect.router for dialect in dialects), probes.router):
        app.include_router(router)
    # The last one added is the outermost: refused keys also get a log line and a request id.
    app.add_middleware(
        BodyLimit, max_bytes=settings.max_body_mib * 2**20, timeout_s=settings.body_timeout_s
    )
    if settings.api_key_file is not None:
        app.add_middleware(RequireKey, keys=KeyFile(Path(settings.api_key_file)))
    app.add_middleware(RequestLog)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _client_gone)
    app.add_exception_handler(Exception, _defect)
    return app


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(request.scope, error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message, reason = _HTTP_ERRORS.get(error.status_code, (str(error.detail), "INVALID_REQUEST"))
    failure = ApiError(error.status_code, message, reason=reason, headers=error.headers)
    return error_response(request.scope, failure)


async def _client_gone(request: Request, error: Exception) -> Response:
    del error
    return error_response(request.scope, aborted())


async def _defect(request: Request, error: Exception) -> Response:
    # The server logs the exception; this response bypasses the middleware that adds the request id.
    del error
    failure = internal()
    failure.headers["x-request-id"] = response_request_id()
    return error_response(request.scope, failure)
