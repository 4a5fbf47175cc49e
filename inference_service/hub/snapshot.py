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

from inference_service.families import weight_files as stored
from inference_service.families.weight_files import WeightFileError, read_header, read_shards


_NOTE = ".qwenvl-verified"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*", re.ASCII)
_CONFIGURATION = (".json", ".jinja", ".tiktoken", ".txt", ".model")
_SAFETENSORS = ".safetensors"
_PICKLE = re.compile(r"pytorch_model.*\.bin")


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


def weight_files(names: Iterable[str], directory: Path, *, allow_pickles: bool) -> tuple[str, ...]:
    """The files with the weights: what else a repository holds, adapters or copies in other forms, is not fetched.

    Args:
        names: All files of the repository.
        directory: Where its configuration files are, an index among them.
        allow_pickles: The family was released as `.bin` shards.

    Raises:
        SnapshotError: There are no complete weights, or only pickles that are not allowed.
    """
    plain = {name for name in names if _NAME.fullmatch(name)}
    try:
        chosen = stored.choose_weight_files(plain, lambda index: read_shards(directory / index))
    except WeightFileError as error:
        raise SnapshotError(str(error)) from error
    if not allow_pickles and not chosen[0].endswith(_SAFETENSORS):
        raise SnapshotError(
            f"the repository has its weights as pickles only ({chosen[0]}); reading them may run code, "
            "so only safetensors are supported"
        )
    return chosen


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
    """Checks that the weights are complete, and that no safetensors file is truncated.

    Reads headers only.

    Raises:
        SnapshotError: A shard is missing or truncated, or there are no weights.
    """
    try:
        for path in stored.weight_files(directory):
            if path.suffix == _SAFETENSORS:
                read_header(path)
    except WeightFileError as error:
        raise SnapshotError(str(error)) from error


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
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
