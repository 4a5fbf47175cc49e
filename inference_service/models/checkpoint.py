"""Opens the weight files of a checkpoint: safetensors, or else the `.bin` shards of older releases.

torch reads the latter with its restricted unpickler, which creates tensors and runs no code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
import torch

from inference_service.families.weight_files import WeightFileError, weight_files


class LoadError(ValueError):
    """The weights are invalid, unsupported or do not match the configuration; the message says which."""


class StoredTensor(Protocol):
    """A tensor in an open file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, without reading the values."""

    @property
    def dtype(self) -> str:
        """The dtype by torch's name, or the file's if torch has none, without reading the values."""

    def read(self) -> torch.Tensor:
        """The tensor, on the CPU."""


class _Sliced:
    """A tensor of a safetensors file."""

    _DTYPES: Mapping[str, str] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

    def __init__(self, file: Any, name: str) -> None:
        self._file = file
        self._name = name
        header = file.get_slice(name)
        self.shape = tuple(header.get_shape())
        stored = str(header.get_dtype())
        self.dtype = self._DTYPES.get(stored, stored)

    def read(self) -> torch.Tensor:
        tensor: torch.Tensor = self._file.get_tensor(self._name)
        return tensor


class _Mapped:
    """A tensor of a memory-mapped `.bin` file."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        self.shape = tuple(tensor.shape)
        self.dtype = str(tensor.dtype).removeprefix("torch.")

    def read(self) -> torch.Tensor:
        return self._tensor


def open_checkpoint(
    model_dir: Path, stack: ExitStack, current_name: Callable[[str], str]
) -> dict[str, StoredTensor]:
    """The tensors of a model directory by their current names.

    Args:
        model_dir: The directory.
        stack: Closes the files.
        current_name: Maps a stored name to the current one.

    Raises:
        LoadError: There are no weights, a file cannot be read, or a tensor exists twice.
    """
    try:
        paths = weight_files(model_dir)
    except WeightFileError as error:
        raise LoadError(str(error)) from error
    stored: dict[str, StoredTensor] = {}
    for path in paths:
        opened = _open_safetensors if path.suffix == ".safetensors" else _open_bin
        for name, tensor in opened(path, stack):
            current = current_name(name)
            if current in stored:
                raise LoadError(f"{name} exists twice, in two files or under two names")
            stored[current] = tensor
    return stored


def _open_safetensors(path: Path, stack: ExitStack) -> Iterator[tuple[str, StoredTensor]]:
    try:
        file = stack.enter_context(safe_open(path, framework="pt", device="cpu"))
    except (OSError, SafetensorError) as error:
        raise LoadError(f"{path.name} cannot be read as safetensors: {error}") from error
    for name in file.keys():  # noqa: SIM118 - not a mapping, it has only `keys`
        yield name, _Sliced(file, name)


def _open_bin(path: Path, stack: ExitStack) -> Iterator[tuple[str, StoredTensor]]:
    del stack  # the tensors keep the file open
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the unpickler may raise anything for an invalid file
        raise LoadError(
            f"{path.name} cannot be read as tensors only: it is damaged, or has objects that could run code; save the"
            " model as safetensors"
        ) from error
    tensors = state if isinstance(state, dict) else {}
    if not tensors or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise LoadError(f"{path.name} is not a mapping of names to tensors")
    for name, tensor in tensors.items():
        yield str(name), _Mapped(tensor)
