"""The front around an engine without a model, for commands that speak to a service."""

from __future__ import annotations

from tests.grpc_api.conftest import model, model_dir, open_service, service


__all__ = ["model", "model_dir", "open_service", "service"]
