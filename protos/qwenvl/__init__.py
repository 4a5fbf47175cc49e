"""The contract: generated stubs of `qwenvl.inference.v1`, the error table and the typed client.

Owns what both the inference service and its callers share.
"""

from __future__ import annotations

from qwenvl.client import Answer, Client, Error


__all__ = ["Answer", "Client", "Error"]
