"""Fills a model with the weights of a checkpoint.

Owns reading of safetensors files, one or sharded, and the check that they hold exactly the tensors of the name
tables. Must not know what the tensors are for. Pickled weights are never read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
import torch

from inference_service.models.config_file import SpecError, read_config
from inference_service.models.family import EMBEDDING, LM_HEAD
from inference_service.models.registry import FAMILIES
from inference_service.models.spec import ModelSpec, load_spec
from inference_service.models.tables import tensor_table
from inference_service.models.vision_language import VisionLanguageModel


SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
STORED_DTYPES = frozenset({"F32", "F16", "BF16"})


class LoadError(ValueError):
    """The weights do not fit the configuration, or are not in a form that is read; the message says which."""


def load_model(model_dir: Path, *, dtype: torch.dtype, device: torch.device) -> VisionLanguageModel:
    """Reads a checkpoint.

    Args:
        model_dir: Directory with config.json and safetensors.
        dtype: Dtype that weights are converted to.
        device: Where they go.

    Raises:
        SpecError: The configuration cannot be served.
        LoadError: A tensor is missing, unexpected, or of another shape or dtype than its name says.
    """
    spec = load_spec(model_dir)
    with ExitStack() as stack:
        stored = _open_checkpoint(model_dir, stack, FAMILIES[spec.family].current_name)
        _check(spec, stored)
        with torch.device("meta"):
            model = VisionLanguageModel(spec)
        model = model.to(dtype).to_empty(device=device).requires_grad_(requires_grad=False).eval()
        with torch.inference_mode():
            _fill(model, stored)
    return model


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in an open safetensors file, under the name that it has there."""

    file: Any
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        """From the header."""
        return tuple(self.file.get_slice(self.name).get_shape())

    @property
    def dtype(self) -> str:
        """From the header, as safetensors spells it."""
        return str(self.file.get_slice(self.name).get_dtype())

    def read(self) -> torch.Tensor:
        """The tensor, on the CPU."""
        tensor: torch.Tensor = self.file.get_tensor(self.name)
        return tensor


def _open_checkpoint(
    model_dir: Path, stack: ExitStack, current_name: Callable[[str], str]
) -> dict[str, StoredTensor]:
    """The tensors by the names of today."""
    stored: dict[str, StoredTensor] = {}
    for path in _weight_files(model_dir):
        try:
            file = stack.enter_context(safe_open(path, framework="pt", device="cpu"))
        except (OSError, SafetensorError) as error:
            raise LoadError(f"{path.name} cannot be read as safetensors: {error}") from error
        for name in file.keys():  # noqa: SIM118 - no mapping, only `keys`
            current = current_name(name)
            if current in stored:
                raise LoadError(f"{name} is there twice, in two files or under two names")
            stored[current] = StoredTensor(file, name)
    return stored


def _weight_files(model_dir: Path) -> Iterator[Path]:
    if (model_dir / SINGLE).is_file():
        yield model_dir / SINGLE
        return
    if not (model_dir / INDEX).is_file():
        raise LoadError(
            f"{model_dir} has neither {SINGLE} nor {INDEX}: weights are read from safetensors only"
        )
    try:
        weight_map = read_config(model_dir / INDEX).section("weight_map").values
    except SpecError as error:
        raise LoadError(str(error)) from error
    for name in sorted(set(map(str, weight_map.values()))):
        if Path(name).name != name:
            raise LoadError(f"{INDEX} names {name!r}, which is no file beside it")
        yield model_dir / name


def _check(spec: ModelSpec, stored: Mapping[str, StoredTensor]) -> None:
    """Compares names, shapes and dtypes, from the headers only."""
    expected = {entry.name: entry.shape for entry in tensor_table(spec)}
    if spec.decoder.tie_word_embeddings and LM_HEAD in stored:
        expected[LM_HEAD] = expected[EMBEDDING]
    for what, names in (
        ("missing", expected.keys() - stored.keys()),
        ("unexpected", stored.keys() - expected.keys() - FAMILIES[spec.family].rebuilt),
    ):
        if names:
            some = ", ".join(sorted(names)[:5])
            raise LoadError(f"{len(names)} {what} tensors in the checkpoint: {some}")
    for name, shape in expected.items():
        tensor = stored[name]
        if tensor.shape != shape:
            raise LoadError(f"{name} has shape {tensor.shape}, expected {shape}")
        if tensor.dtype not in STORED_DTYPES:
            raise LoadError(f"{name} is stored as {tensor.dtype}, which is not supported")


def _fill(model: VisionLanguageModel, stored: Mapping[str, StoredTensor]) -> None:
    parameters = dict(model.named_parameters())
    unfilled = {name: parameter.shape[0] for name, parameter in parameters.items()}
    for entry in tensor_table(model.spec):
        parameter = parameters[entry.parameter]
        tensor = stored[entry.name].read()
        rows = tensor.shape[0]
        parameter[entry.row : entry.row + rows].copy_(tensor.reshape(rows, *parameter.shape[1:]))
        unfilled[entry.parameter] -= rows
    left = [name for name, rows in unfilled.items() if rows]
    if left:
        raise AssertionError(f"the name tables leave parameters unset: {left}")
    if model.spec.decoder.tie_word_embeddings and LM_HEAD in stored:
        head = stored[LM_HEAD].read()
        if not torch.equal(head, stored[EMBEDDING].read()):
            raise LoadError(f"{LM_HEAD} differs from {EMBEDDING}, to which config.json ties it")
