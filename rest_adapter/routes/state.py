"""What the routes of one application share, and how a route gets at it.

Owns the bundle of settings and backend, and who is asking.
"""

from __future__ import annotations

from dataclasses import dataclass
import re
from typing import Final

from fastapi import Request

from rest_adapter.backend import Backend, Caller
from rest_adapter.middleware import header_of
from rest_adapter.settings import AdapterSettings


_HEADER_VALUE: Final = re.compile(r"[\x20-\x7e]{1,4096}")
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class Shared:
    """What lives as long as the application.

    Attributes:
        settings: The adapter's settings.
        backend: The inference service.
        version: Version of this software.
    """

    settings: AdapterSettings
    backend: Backend
    version: str


def shared(request: Request) -> Shared:
    """The bundle that the application's lifespan made."""
    value = request.app.state.shared
    assert isinstance(value, Shared)
    return value


def caller(request: Request) -> Caller:
    """Who asks; headers that gRPC could not carry are left out."""
    authorization = header_of(request.scope, b"authorization")
    traceparent = header_of(request.scope, b"traceparent")
    return Caller(
        request_id=request.scope["state"]["request_id"],
        authorization=_if_like(_HEADER_VALUE, authorization),
        traceparent=_if_like(_TRACEPARENT, traceparent),
    )


def _if_like(pattern: re.Pattern[str], value: str | None) -> str | None:
    return value if value is not None and pattern.fullmatch(value) else None
