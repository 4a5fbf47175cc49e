"""The contract: generated stubs of `qwenvl.inference.v1`, the error table and the typed clients."""

from __future__ import annotations

from qwenvl.async_client import AsyncClient
from qwenvl.client import Client, Error
from qwenvl.specs import Answer


__all__ = ["Answer", "AsyncClient", "Client", "Error"]
