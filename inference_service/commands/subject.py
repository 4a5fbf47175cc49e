"""The model that a command is about, as the backend that would serve it describes it."""

from __future__ import annotations

from pathlib import Path

from inference_service.any_model.choice import BackendKind, choose_backend
from inference_service.any_model.facts import ModelFacts, read_facts
from inference_service.families.registry import load_spec
from inference_service.model_spec import ModelSpec


Subject = ModelSpec | ModelFacts


def read_subject(directory: Path, backend: str) -> Subject:
    """Reads a model's configuration files; weights need not be there.

    Args:
        directory: The model's directory.
        backend: The setting.

    Raises:
        ValueError: No backend can serve it; the message is for the operator.
        OSError: A file cannot be read.
    """
    if choose_backend(backend, directory) is BackendKind.NATIVE:
        return load_spec(directory)
    return read_facts(directory)
