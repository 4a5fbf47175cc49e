"""The front around an engine without a model, for commands that speak to a service."""

from __future__ import annotations

from tests.grpc_api.conftest import door, model, model_dir, open_door


__all__ = ["door", "model", "model_dir", "open_door"]
