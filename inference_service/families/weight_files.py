"""Finds the weight files of a checkpoint and reads what safetensors headers say about their tensors. Torch-free.

Fine-tuners leave other files beside the weights: adapters, optimizer states, an index of earlier shards. The same
choice serves a directory and the listing of a hub's repository.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
import json
from pathlib import Path
import re
import struct

from inference_service.families.config_file import SpecError, read_config
from inference_service.model_spec import DTYPE_BYTES
from inference_service.text.broken_files import what_is_wrong


FORMATS = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
"""(single file, index of several files) of each format, the preferred one first; the single file takes precedence."""

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.\w+)")
_FSDP = "pytorch_model_fsdp"
"""Beginning of the name of a file or directory."""
_WITHOUT_WEIGHTS: Sequence[tuple[Callable[[str], bool], str]] = (
    (
        lambda name: name in ("adapter_model.safetensors", "adapter_model.bin"),
        "a LoRA adapter ({}): merge it into its base model",
    ),
    (lambda name: name == "zero_to_fp32.py", "states of DeepSpeed: convert them with {}"),
    (
        lambda name: name.endswith(".distcp") or name.startswith(_FSDP),
        "states of FSDP ({}): convert them with `accelerate merge-weights`",
    ),
    (
        lambda name: name.lower().endswith(".gguf"),
        "GGUF ({}), which is not supported: serve the safetensors from which it was made",
    ),
)
"""What directories without weights have instead, by names of files, and what to do."""
_MAX_HEADER_BYTES = 100 * 2**20  # what the safetensors library itself permits
_DTYPES: Mapping[str, str] = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class WeightFileError(ValueError):
    """There are no weights, or a file of the weights is missing or damaged; the message names it."""


@dataclass(frozen=True, slots=True)
class StoredHeader:
    """A tensor as a safetensors header describes it.

    Attributes:
        dtype: By torch's name; the file's if it is not a dtype of unquantised weights.
        end: Offset in bytes of its end in the data of the file.
    """

    dtype: str
    end: int

    @property
    def is_plain(self) -> bool:
        """It is stored in a dtype of unquantised weights."""
        return self.dtype in DTYPE_BYTES


def choose_weight_files(
    names: Collection[str], shards_of: Callable[[str], Iterable[str]]
) -> tuple[str, ...]:
    """The files that contain the weights, as transformers chooses them, or else a complete set of shards.

    An index of which no shard is there is left from other files, and is ignored.

    Args:
        names: Names of all files beside config.json.
        shards_of: Reads the shards from an index; see `read_shards`.

    Raises:
        WeightFileError: There are no weights, or an index lists a file that is missing.
    """
    stale = None
    for single, index in FORMATS:
        if single in names:
            return (single,)
        if index in names:
            shards = sorted(set(shards_of(index)))
            missing = [name for name in shards if name not in names]
            if shards and not missing:
                return tuple(shards)
            gone = f"{missing[0]}, which is missing" if missing else "no files"
            stale = stale or f"{index} lists {gone}"
            if len(missing) < len(shards):
                break
        if found := _complete_set(single, names):
            return found
    raise WeightFileError(stale or _no_weights(names))


def weight_files(model_dir: Path) -> tuple[Path, ...]:
    """The files that contain the weights of a directory; raises as `choose_weight_files` and `read_shards`."""
    paths = sorted(model_dir.iterdir())
    for path in paths:
        if path.is_symlink() and not path.exists() and path.suffix in (".safetensors", ".bin"):
            raise WeightFileError(
                f"{path.name} is a link to {path.readlink()}, which does not exist: the cache was cleared, or the"
                " directory was moved"
            )
    names = {path.name for path in paths if path.is_file() or path.name.startswith(_FSDP)}
    chosen = choose_weight_files(names, lambda index: read_shards(model_dir / index))
    return tuple(model_dir / name for name in chosen)


def read_shards(index: Path) -> set[str]:
    """The names of the shards that an index lists.

    Raises:
        WeightFileError: It is not an index, or lists something that is not a file name in the same directory.
    """
    try:
        shards = read_config(index).section("weight_map").values.values()
    except SpecError as error:
        raise WeightFileError(f"{error}; it is not a valid index of shards") from error
    for name in shards:
        plain = isinstance(name, str) and Path(name).name == name and "\\" not in name
        if not plain or Path(name).suffix != Path(index.name.removesuffix(".index.json")).suffix:
            raise WeightFileError(
                f"{index.name} lists {name!r}, which is not a file name in the same directory"
            )
    return set(shards)


def read_header(path: Path) -> dict[str, StoredHeader]:
    """The tensors of a safetensors file by name.

    Raises:
        WeightFileError: The file is truncated or has no valid header.
        OSError: It cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _MAX_HEADER_BYTES
        if length >= min(size, _MAX_HEADER_BYTES):
            raise WeightFileError(what_is_wrong(path, "a whole safetensors file"))
        text = file.read(length)
    try:
        tensors = {
            str(name): StoredHeader(
                _DTYPES.get(entry.get("dtype"), str(entry.get("dtype"))), entry["data_offsets"][1]
            )
            for name, entry in json.loads(text).items()
            if name != "__metadata__"
        }
        whole = 8 + length + max((tensor.end for tensor in tensors.values()), default=0)
    except (ValueError, KeyError, IndexError, AttributeError, TypeError, RecursionError):
        raise WeightFileError(f"{path.name} has an invalid header") from None
    if size != whole:
        raise WeightFileError(f"{path.name} has {size} bytes, but its header requires {whole}")
    return tensors


def stored_headers(model_dir: Path) -> dict[str, StoredHeader] | None:
    """The tensors of a directory by their stored names; None = no weights here, or none that can be read so.

    Damaged files are for the loader to refuse: the configuration alone may be wanted.
    """
    stored: dict[str, StoredHeader] = {}
    try:
        for path in weight_files(model_dir):
            if path.suffix != ".safetensors":
                return None
            stored |= read_header(path)
    except (WeightFileError, OSError):
        return None
    return stored


def _complete_set(single: str, names: Collection[str]) -> tuple[str, ...]:
    """The shards `NAME-00001-of-0000N` to `NAME-0000N-of-0000N` if there is exactly one such set; else nothing."""
    stem, suffix = Path(single).stem, Path(single).suffix
    sets: dict[int, set[int]] = {}
    for name in names:
        match = _SHARD.fullmatch(name)
        if match and (match[1], match[4]) == (stem, suffix):
            sets.setdefault(int(match[3]), set()).add(int(match[2]))
    complete = [total for total, found in sets.items() if found == set(range(1, total + 1))]
    if len(complete) != 1:
        return ()
    total = complete[0]
    return tuple(f"{stem}-{i:05}-of-{total:05}{suffix}" for i in range(1, total + 1))


def _no_weights(names: Collection[str]) -> str:
    for is_there, why in _WITHOUT_WEIGHTS:
        if found := next(filter(is_there, sorted(names)), None):
            return f"there are no weights, only {why.format(found)}"
    listed = sorted(
        name for name in names if name.endswith(".safetensors") or _SHARD.fullmatch(name)
    )
    if listed:
        return (
            f"there are no complete weights: {listed[0]} is neither {FORMATS[0][0]} nor in an index"
            f" ({FORMATS[0][1]})"
        )
    return (
        f"there are no weights: neither {' nor '.join(name for pair in FORMATS for name in pair)}"
    )
