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


_CODE: Final = (".py", ".pyc", ".pyd", ".so", ".pth", ".egg", ".whl", ".pyz")
_PICKLES: Final = (
    *(".bin", ".pt", ".pt2", ".ptl", ".pth", ".th", ".ckpt", ".npy", ".npz"),
    *(".pkl", ".pickle", ".dill", ".joblib"),
)
_CODE_KEYS: Final = ("auto_map", "custom_generate", "custom_pipelines")
_KERNEL_KEYS: Final = ("attn_implementation", "experts_implementation")
"""Ends of keys. The library's own kernels have plain names; a name with a slash is a repository of compiled code."""
_MODEL_KEY: Final = "audio_tokenizer_name_or_path"
_QUANTISED: Final = "quantization_config"
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
        suffix = path.suffix.lower()
        if suffix in _CODE:
            raise SpecError(
                f"{name} is code: code of a model's repository is never run; remove it if the model needs none"
            )
        if suffix in _PICKLES:
            raise SpecError(
                f"{name} may be a pickle, and reading one can run code: only safetensors are read; remove it"
            )
        if suffix == ".json":
            _refuse_contents(path, str(name))
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
    """All files of a directory and its folders; hidden ones of the hubs' caches are not read by the library.

    Links to folders are followed once, so that links that go round in circles end.
    """
    seen: set[Path] = set()
    folders = [model_dir]
    while folders:
        folder = folders.pop()
        if folder.resolve() in seen:
            continue
        seen.add(folder.resolve())
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                continue
            if path.is_dir():
                folders.append(path)
            else:
                yield path


def _refuse_contents(path: Path, name: str) -> None:
    """Raises if a configuration names code: in any object of it, since libraries differ in where they look."""
    try:
        values = json.loads(path.read_bytes())
    except RecursionError:
        raise SpecError(f"{name} is nested too deeply") from None
    except (ValueError, OSError):
        return  # whoever needs the file says what is wrong with it
    if (problem := _problem(values, is_config=name == "config.json")) is not None:
        raise SpecError(f"{name}: {problem}")


def _problem(values: Any, *, is_config: bool, depth: int = 0) -> str | None:
    """What is wrong with a value of a configuration, or with one inside it."""
    if depth > _MAX_DEPTH:
        return "an object is nested too deeply"
    if isinstance(values, dict):
        for key, value in values.items():
            if (problem := _problem_of_key(key, value, is_config=is_config)) is not None:
                return problem
        values = list(values.values())
    if isinstance(values, list):
        inner = (_problem(v, is_config=is_config, depth=depth + 1) for v in values)
        return next((problem for problem in inner if problem is not None), None)
    return None


def _problem_of_key(key: str, value: Any, *, is_config: bool) -> str | None:
    if not value:
        return None
    if key in _CODE_KEYS:
        return (
            f"{key} names code of the model's repository, which is never run; remove it if the architecture is one that"
            " transformers has itself"
        )
    if key.removesuffix("_internal").endswith(_KERNEL_KEYS) and "/" in json.dumps(value):
        return f"{key} names kernels of a hub, which are code and never run; remove it"
    if key == _MODEL_KEY:
        return f"{key} names another model, which is not loaded; remove it if the model needs none"
    if key == _QUANTISED and is_config:
        return f"{key}: the checkpoint is quantised; serve the model from which it was made"
    return None
