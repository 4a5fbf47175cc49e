"""Finds the directory that MODEL means on the command line (none, a directory, a hub id); fetches it if needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
import os
from pathlib import Path
import re
import shutil

from inference_service.demo import MODEL_DIR
from inference_service.families.config_file import SpecError
from inference_service.families.registry import family_of, load_spec
from inference_service.hub import snapshot
from inference_service.hub.clients import HUBS, Hub, HubError
from inference_service.hub.snapshot import RemoteFile, SnapshotError


DEMO_NAMES = ("qwen-vl-demo", "qwen-vl")
DEFAULT_HUB = "modelscope"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_SPARE_BYTES = 64 * 2**20


class ModelNotFound(Exception):  # noqa: N818 - it names what happened
    """MODEL names no model that is on this machine, or that can be had; the message says what to do."""


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model on disk and the names it answers to, canonical name first."""

    directory: Path
    served_names: tuple[str, ...]


def is_hub_id(model: str | None) -> bool:
    """Whether MODEL names a repository of a hub; a directory of that name comes first."""
    return model is not None and not Path(model).is_dir() and bool(_HUB_ID.fullmatch(model))


def resolve_model(
    model: str | None,
    served_names: tuple[str, ...] = (),
    *,
    hub: str = DEFAULT_HUB,
    revision: str | None = None,
) -> ResolvedModel:
    """Turns MODEL into a directory on this machine; asks nobody.

    Args:
        model: A directory, a hub id that was fetched before, or None for the embedded demo model.
        served_names: Names that the operator chose; empty = the demo's names, the directory's own name, or the hub
            id and its last part.
        hub: A key of `HUBS`.
        revision: Of the hub's repository.

    Raises:
        ModelNotFound: Nothing on this machine fits.
    """
    if model is None:
        return ResolvedModel(MODEL_DIR, served_names or DEMO_NAMES)
    directory = Path(model)
    if (directory / "config.json").is_file():
        return ResolvedModel(directory, served_names or (directory.resolve().name,))
    if directory.is_dir():
        raise ModelNotFound(f"{model} has no config.json: it is not a model directory")
    if not is_hub_id(model):
        raise ModelNotFound(f"{model} is neither a directory nor a hub id")
    found = HUBS[hub].find(model, revision)
    if found is None or not snapshot.is_verified(found):
        raise ModelNotFound(f"{model} is not on this machine. Fetch it: qwenvl download {model}")
    return ResolvedModel(found, served_names or (model, model.rpartition("/")[2]))


def fetch_model(
    model: str,
    *,
    hub: str = DEFAULT_HUB,
    revision: str | None = None,
    directory: Path | None = None,
) -> Path:
    """Fetches a model and verifies it; what is there and right is not fetched again.

    The configuration comes first, so that a model that cannot be served costs no gigabytes.

    Args:
        model: A hub id.
        hub: A key of `HUBS`.
        revision: Branch, tag or commit; None = the hub's default.
        directory: Where to; None = the hub's cache.

    Returns:
        The directory of the snapshot.

    Raises:
        ModelNotFound: There is no such model, it cannot be served, or it did not arrive whole.
    """
    try:
        source = HUBS[hub]
        listed = source.files(model, revision)
        path = _fetch_configuration(source, model, revision, listed, directory)
        family = family_of(load_spec(path))
        names = [
            *snapshot.configuration_files(listed),
            *snapshot.weight_files(listed, allow_pickles=family.pickled_weights),
        ]
        wanted = {name: listed[name] for name in names}
        _require_room(path, wanted)
        path = source.fetch(model, revision, names, directory)
        snapshot.verify_files(path, wanted)
        snapshot.verify_weights(path)
        snapshot.write_note(path, names)
    except (HubError, SnapshotError, SpecError, OSError) as error:
        raise ModelNotFound(f"{model}: {error}") from error
    return path


def fetch_configuration(
    model: str,
    *,
    hub: str = DEFAULT_HUB,
    revision: str | None = None,
    directory: Path | None = None,
) -> Path:
    """Fetches what `qwenvl check` reads: everything but the weights; arguments and errors as `fetch_model`."""
    try:
        source = HUBS[hub]
        return _fetch_configuration(
            source, model, revision, source.files(model, revision), directory
        )
    except (HubError, SnapshotError, OSError) as error:
        raise ModelNotFound(f"{model}: {error}") from error


def _fetch_configuration(
    source: Hub,
    model: str,
    revision: str | None,
    listed: Mapping[str, RemoteFile],
    directory: Path | None,
) -> Path:
    names = snapshot.configuration_files(listed)
    if "config.json" not in names:
        raise SnapshotError("the repository has no config.json: it holds no model")
    path = source.fetch(model, revision, names, directory)
    snapshot.verify_files(path, {name: listed[name] for name in names})
    return path


def _require_room(directory: Path, files: Mapping[str, RemoteFile]) -> None:
    """Refuses to begin what cannot end.

    Raises:
        SnapshotError: The disk has too little room for what is still to be fetched.
    """
    missing = sum(_still_to_fetch(directory, files))
    free = shutil.disk_usage(directory).free
    if missing and missing + _SPARE_BYTES > free:
        raise SnapshotError(
            f"the disk has too little room: {missing / 2**30:.2f} GiB are to be fetched to "
            f"{os.fspath(directory)}, {free / 2**30:.2f} GiB are free"
        )


def _still_to_fetch(directory: Path, files: Mapping[str, RemoteFile]) -> Iterable[int]:
    for name, told in files.items():
        path = directory / name
        there = path.stat().st_size if path.is_file() else 0
        yield max(0, (told.size or 0) - there)
