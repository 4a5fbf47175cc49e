"""Fixtures of the front around an engine without a model."""

from tests.grpc_api.conftest import model, model_dir, open_service


__all__ = ["model", "model_dir", "open_service"]
