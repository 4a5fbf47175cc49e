"""The shared state of the routes, and the gRPC metadata of a request."""

from __future__ import annotations

from dataclasses import dataclass
import re
from typing import Final

from fastapi import Request

from qwenvl.aio import AsyncService
from qwenvl.observability import REQUEST_ID_ENTRY, current_call
from rest_adapter.service_connection import ServiceConnection
from rest_adapter.settings import AdapterSettings


_HEADER_VALUE: Final = re.compile(r"[\x20-\x7e]{1,4096}")


@dataclass(frozen=True, slots=True)
class Shared:
    """The state that lives as long as the application.

    Attributes:
        settings: The adapter's settings.
        connection: The connection to the inference service.
        version: Version of this software.
    """

    settings: AdapterSettings
    connection: ServiceConnection
    version: str

    @property
    def service(self) -> AsyncService:
        """The inference service."""
        return self.connection.service


def shared(request: Request) -> Shared:
    """The shared state, as created by the application's lifespan."""
    value = request.app.state.shared
    assert isinstance(value, Shared)
    return value


def call_metadata(request: Request) -> list[tuple[str, str]]:
    """The metadata of gRPC calls: ids, key and trace; values that are invalid in gRPC are left out.

    Without a `spec.request_id` the service uses the request's own id. A route that makes several generations at once
    must therefore name them.
    """
    call = current_call()
    assert call is not None
    pairs = [(REQUEST_ID_ENTRY, call.request_id)]
    if call.client_request_id is not None:
        pairs.append(("x-request-id", call.client_request_id))
    if call.traceparent is not None:
        pairs.append(("traceparent", str(call.traceparent)))
    authorization = request.state.authorization
    if authorization is not None and _HEADER_VALUE.fullmatch(authorization):
        pairs.append(("authorization", authorization))
    return pairs
