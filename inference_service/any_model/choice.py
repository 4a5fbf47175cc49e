"""Chooses the backend for a model: this project's engine, or the transformers library."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from inference_service.any_model.folder import check_configuration
from inference_service.any_model.registry import RegistryError
from inference_service.families.config_file import SpecError
from inference_service.families.registry import is_native, load_spec


class BackendKind(Enum):
    """What computes a model."""

    NATIVE = "native"
    TRANSFORMERS = "transformers"


def choose_backend(wanted: str, model_dir: Path) -> BackendKind:
    """The backend for a model. Imports nothing for it; weights need not be there.

    Args:
        wanted: `auto`, or the value of a `BackendKind`; auto = native where the family is ours, else transformers.
        model_dir: The model's directory.

    Raises:
        SpecError: The backend cannot serve it; with `auto`, the message names both.
        OSError: A file cannot be read.
    """
    if wanted == BackendKind.NATIVE.value or (wanted == "auto" and is_native(model_dir)):
        load_spec(model_dir)
        return BackendKind.NATIVE
    try:
        check_configuration(model_dir)
    except (SpecError, RegistryError) as error:
        if wanted != "auto":
            raise SpecError(f"--backend transformers cannot serve this model: {error}") from error
        raise SpecError(
            f"no backend can serve this model. native: {_native_problem(model_dir)}; transformers: {error}"
        ) from error
    return BackendKind.TRANSFORMERS


def _native_problem(model_dir: Path) -> str:
    try:
        load_spec(model_dir)
    except SpecError as error:
        return str(error)
    return "it can"  # not reached: `is_native` is part of what `load_spec` checks
