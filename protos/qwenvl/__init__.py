"""The contract: generated stubs of `qwenvl.inference.v1`, the error table and the typed client.

The client is imported when it is first used: the engine process shares this package and needs no gRPC.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from qwenvl.client import Answer, Client, Error


__all__ = ["Answer", "Client", "Error"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from qwenvl import client  # noqa: PLC0415 - see above

    return getattr(client, name)
