"""Judges the directory of a model for transformers before anything is imported for it.

transformers can run Python files of a repository and unpickle its weights. Neither is ever asked for
(`trust_remote_code=False`, `use_safetensors=True`); a directory that has them is refused all the same, so that nothing
depends on how a version of the library reads these switches (CVE-2023-6730, CVE-2024-11392).
"""

from __future__ import annotations

from collections.abc import Iterator
import json
from pathlib import Path
from typing import Any, Final

from inference_service.any_model.registry import architectures
from inference_service.families.config_file import SpecError, read_config
from inference_service.families.copied_files import refuse_adapter
from inference_service.families.weight_files import WeightFileError, read_header, weight_files


_CODE: Final = (".py", ".pyc", ".pyd", ".so", ".pth")
_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz")
_CODE_KEYS: Final = ("auto_map", "custom_generate", "custom_pipelines")
_MAX_DEPTH: Final = 64


def check_folder(model_dir: Path) -> str:
    """Judges a directory with a whole model.

    Returns:
        Its `model_type`.

    Raises:
        SpecError: It has code, pickles or an unknown architecture, or its weights are not complete safetensors.
        RegistryError: The architectures cannot be known.
        OSError: A file cannot be read.
    """
    model_type = check_configuration(model_dir)
    try:
        for path in weight_files(model_dir):
            if path.suffix != ".safetensors":
                raise SpecError(f"{path.name} is a pickle; only safetensors are read")
            read_header(path)
    except WeightFileError as error:
        raise SpecError(str(error)) from error
    return model_type


def check_configuration(model_dir: Path) -> str:
    """Judges a directory that may have no weights yet; results and errors as `check_folder`."""
    refuse_adapter(model_dir)
    for path in _files(model_dir):
        name = path.relative_to(model_dir)
        if path.suffix in _CODE:
            raise SpecError(
                f"{name} is code: code of a model's repository is never run; remove it if the model needs none"
            )
        if path.suffix in _PICKLES:
            raise SpecError(
                f"{name} may be a pickle, and reading one can run code: only safetensors are read; remove it"
            )
        if path.suffix == ".json" and path.parent == model_dir:
            _refuse_code_names(path)
    return known_model_type(model_dir)


def known_model_type(model_dir: Path) -> str:
    """The `model_type` of a directory, if transformers knows its architecture; errors as `check_folder`."""
    config = read_config(model_dir / "config.json")
    model_type = config.text("model_type")
    known = architectures()
    if model_type not in known:
        raise SpecError(
            f"config.json: model_type {model_type!r} is not among the {len(known)} architectures of"
            " AutoModelForImageTextToText in the installed transformers"
        )
    return model_type


def _files(model_dir: Path) -> Iterator[Path]:
    """All files of a directory and its folders; hidden ones of the hubs' caches are not read by the library."""
    for path in sorted(model_dir.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _refuse_code_names(path: Path) -> None:
    """Raises if a configuration names code: in any object of it, since libraries differ in where they look."""
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return  # whoever needs the file says what is wrong with it
    if (key := _code_key(values)) is not None:
        raise SpecError(
            f"{path.name}: {key} names code of the model's repository, which is never run; remove it if the"
            " architecture is one that transformers has itself"
        )


def _code_key(values: Any, depth: int = 0) -> str | None:
    if depth > _MAX_DEPTH:
        return "an object nested too deeply"
    if isinstance(values, dict):
        if (key := next((key for key in _CODE_KEYS if values.get(key)), None)) is not None:
            return key
        values = list(values.values())
    if isinstance(values, list):
        return next((k for v in values if (k := _code_key(v, depth + 1)) is not None), None)
    return None
