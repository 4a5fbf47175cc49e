"""Selects the files of a model in a repository and verifies that a directory has them complete.

Only data is fetched: JSON, text, vocabularies, safetensors. Python files are neither fetched nor run, even if
a configuration has `auto_map`. `.bin` shards are pickles: they are fetched only for families that were released in
no other form (`Family.pickled_weights`), and are read with `weights_only`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import contextlib
from dataclasses import dataclass
import hashlib
import json
from pathlib import Path
import re
import struct


_NOTE = ".qwenvl-verified"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*", re.ASCII)
_CONFIGURATION = (".json", ".jinja", ".tiktoken", ".txt", ".model")
_SAFETENSORS = ".safetensors"
_PICKLE = re.compile(r"pytorch_model.*\.bin")
_MAX_HEADER_BYTES = 100 * 2**20  # what the safetensors library itself permits


class SnapshotError(Exception):
    """A model is incomplete or damaged; the message names the file."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as a hub lists it: size in bytes and SHA-256 in hexadecimal digits, None if not listed."""

    size: int | None
    sha256: str | None


def configuration_files(names: Iterable[str]) -> list[str]:
    """All files but weights: configurations, vocabularies, templates."""
    return sorted(name for name in names if _NAME.fullmatch(name) and name.endswith(_CONFIGURATION))


def model_files(names: Iterable[str]) -> list[str]:
    """All files of a model: configuration and weights in either form."""
    names = tuple(names)
    weights = [
        name
        for name in names
        if _NAME.fullmatch(name) and (name.endswith(_SAFETENSORS) or _PICKLE.fullmatch(name))
    ]
    return sorted([*configuration_files(names), *weights])


def weight_files(names: Iterable[str], *, allow_pickles: bool) -> list[str]:
    """The shards of the weights: safetensors if there are any, else pickles if they are allowed.

    Raises:
        SnapshotError: There are no weights, or only pickles that are not allowed.
    """
    plain = [name for name in names if _NAME.fullmatch(name)]
    safe = sorted(name for name in plain if name.endswith(_SAFETENSORS))
    if safe:
        return safe
    pickled = sorted(name for name in plain if _PICKLE.fullmatch(name))
    if not pickled:
        raise SnapshotError("the repository has no weights (*.safetensors)")
    if not allow_pickles:
        raise SnapshotError(
            f"the repository has its weights as pickles only ({pickled[0]}); reading them may run code, "
            "so only safetensors are supported"
        )
    return pickled


def verify_files(directory: Path, files: Mapping[str, RemoteFile]) -> None:
    """Compares files with the hub's listing.

    Raises:
        SnapshotError: A file is missing, or its size or SHA-256 differs.
    """
    for name, listed in files.items():
        path = directory / name
        if not path.is_file():
            raise SnapshotError(f"{name} is missing")
        size = path.stat().st_size
        if listed.size is not None and size != listed.size:
            raise SnapshotError(f"{name} has {size} bytes, but the hub lists {listed.size}")
        if listed.sha256 is not None and _sha256(path) != listed.sha256.lower():
            raise SnapshotError(
                f"{name} is damaged: its SHA-256 differs from the hash listed by the hub"
            )


def verify_weights(directory: Path) -> None:
    """Checks that every shard in an index exists, and that no safetensors file is truncated.

    Reads headers only.

    Raises:
        SnapshotError: A shard is missing or truncated, or there are no weights.
    """
    wanted = {path.name for path in directory.glob("*.safetensors")}
    wanted |= _shards_of(directory / "model.safetensors.index.json")
    if not wanted:
        wanted = {path.name for path in directory.glob("pytorch_model*.bin")}
        wanted |= _shards_of(directory / "pytorch_model.bin.index.json")
    if not wanted:
        raise SnapshotError("there are no weights (*.safetensors)")
    for name in sorted(wanted):
        if not (directory / name).is_file():
            raise SnapshotError(f"{name} is missing, but the index lists it")
        if name.endswith(".safetensors"):
            _verify_length(directory / name)


def write_note(directory: Path, names: Iterable[str]) -> None:
    """Records that these files were verified; no names = that a download has begun."""
    note = {name: _fingerprint(directory / name) for name in sorted(names)}
    with contextlib.suppress(OSError):  # a cache may be read-only; it is verified again next time
        (directory / _NOTE).write_text(json.dumps(note))


def is_verified(directory: Path, *, times: bool = True) -> bool:
    """Whether the files were verified and have not changed since; does not read them.

    Args:
        directory: The directory.
        times: Also compare the times of the files, which a copy may not have.
    """
    compared = slice(None if times else 1)
    try:
        note = json.loads((directory / _NOTE).read_text())
        return bool(note) and all(
            _fingerprint(directory / name)[compared] == seen[compared]
            for name, seen in note.items()
        )
    except (OSError, ValueError, AttributeError, TypeError):
        return False


def is_complete(directory: Path) -> bool:
    """Whether a directory that another tool has filled has a whole model, as far as its own files tell.

    A directory with a note was filled here: without verified files in it, its download was interrupted.
    """
    if not (directory / "config.json").is_file() or (directory / _NOTE).exists():
        return False
    try:
        verify_weights(directory)
    except (SnapshotError, OSError):
        return False
    return True


def _fingerprint(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _shards_of(index: Path) -> set[str]:
    if not index.is_file():
        return set()
    try:
        shards = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError):
        raise SnapshotError(f"{index.name} is not a valid index of shards") from None
    for shard in shards:
        if not isinstance(shard, str) or not _NAME.fullmatch(shard):
            raise SnapshotError(
                f"{index.name} lists {shard!r}, which is not a file name in the same directory"
            )
    return shards


def _verify_length(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _MAX_HEADER_BYTES
        if length >= min(size, _MAX_HEADER_BYTES):
            raise SnapshotError(f"{path.name} is truncated or not a safetensors file")
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for key, entry in header.items() if key[:2] != "__"]
            whole = 8 + length + max(ends, default=0)
        except (ValueError, KeyError, IndexError, AttributeError, TypeError):
            raise SnapshotError(f"{path.name} has an invalid header") from None
    if size != whole:
        raise SnapshotError(f"{path.name} has {size} bytes, but its header requires {whole}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
