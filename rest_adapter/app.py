"""The ASGI application: routes, layers and error handlers put together.

Owns their order.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
import contextlib
from importlib.metadata import version
from pathlib import Path
from typing import Final

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from qwenvl.keys import KeyFile
from rest_adapter.auth import RequireKey
from rest_adapter.backend import Backend
from rest_adapter.errors import ApiError, aborted, internal
from rest_adapter.middleware import BodyLimit, RequestLog
from rest_adapter.routes import chat, completions, models, ops
from rest_adapter.routes.state import Shared
from rest_adapter.settings import AdapterSettings


_HTTP_ERRORS: Final = {
    404: ("This path does not exist.", "not_found"),
    405: ("This path does not have this method.", "method_not_allowed"),
}


def create_app(settings: AdapterSettings) -> FastAPI:
    """Builds the application; the channel to the service is opened when it starts.

    Raises:
        OSError: The API key file cannot be read.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        backend = Backend(settings.grpc_target, timeout_s=settings.request_timeout_s)
        app.state.shared = Shared(settings, backend, version("qwen-vl-serving"))
        try:
            yield
        finally:
            await backend.close()

    app = FastAPI(
        lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    for group in (chat, completions, models, ops):
        app.include_router(group.router)
    # The last one added is the outermost: a refused key has its log line and its request id as well.
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


def _respond(error: ApiError) -> Response:
    return Response(
        error.body(), error.status, headers=error.headers, media_type="application/json"
    )


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _respond(error)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message, code = _HTTP_ERRORS.get(error.status_code, (str(error.detail), "invalid_request"))
    headers = dict(error.headers or {})
    return _respond(ApiError(error.status_code, message, code=code, headers=headers))


async def _client_gone(_: Request, error: Exception) -> Response:
    del error
    return _respond(aborted())


async def _defect(request: Request, error: Exception) -> Response:
    # The server logs the exception itself; this answer leaves outside of the layers that name the request.
    del error
    answer = internal()
    answer.headers["x-request-id"] = request.scope["state"]["request_id"]
    return _respond(answer)
