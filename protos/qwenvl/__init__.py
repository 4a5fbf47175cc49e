"""The API contract: generated stubs of `qwenvl.inference.v1`, the error table and the typed clients.

The clients are imported on first use, as the engine process also imports this package but does not need gRPC.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from qwenvl.async_client import AsyncClient
    from qwenvl.client import Client, Error
    from qwenvl.specs import Answer


__all__ = ["Answer", "AsyncClient", "Client", "Error"]

_MODULES = {"Answer": "specs", "AsyncClient": "async_client", "Client": "client", "Error": "client"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"qwenvl.{_MODULES[name]}"), name)
