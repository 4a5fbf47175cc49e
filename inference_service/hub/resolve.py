"""Resolves MODEL on the command line (absent, a directory, or a hub id) to a directory, fetching it if asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
import os
from pathlib import Path
import re
import shutil

from inference_service.demo import MODEL_DIR
from inference_service.families.config_file import SpecError
from inference_service.families.copied_files import ADAPTER_FILE, refuse_adapter
from inference_service.families.registry import family_of, load_spec
from inference_service.hub import snapshot
from inference_service.hub.clients import HUBS, Hub, HubError
from inference_service.hub.snapshot import RemoteFile, SnapshotError


DEMO_NAMES = ("qwen-vl-demo", "qwen-vl")
DEFAULT_HUB = "modelscope"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_SPARE_BYTES = 64 * 2**20


class ModelNotFound(Exception):  # noqa: N818 - names the condition
    """MODEL cannot be found or fetched; the message says what to do."""


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model on disk and the names it is served under, canonical name first."""

    directory: Path
    served_names: tuple[str, ...]


def is_hub_id(model: str | None) -> bool:
    """Whether MODEL is the id of a hub repository; an existing directory of that name takes precedence."""
    return model is not None and not Path(model).is_dir() and bool(_HUB_ID.fullmatch(model))


def resolve_model(
    model: str | None,
    served_names: tuple[str, ...] = (),
    *,
    hub: str = DEFAULT_HUB,
    revision: str | None = None,
) -> ResolvedModel:
    """Resolves MODEL to a directory on this machine, without network access.

    Args:
        model: A directory, a hub id that was fetched before, or None for the embedded demo model.
        served_names: Names chosen by the operator; empty = the demo's names, the directory's name, or the hub id and
            its last part.
        hub: A key of `HUBS`.
        revision: Branch, tag or commit of the hub's repository.

    Raises:
        ModelNotFound: The model is not on this machine.
    """
    if model is None:
        return ResolvedModel(MODEL_DIR, served_names or DEMO_NAMES)
    directory = Path(model)
    if (directory / "config.json").is_file():
        return ResolvedModel(directory, served_names or (directory.resolve().name,))
    if directory.is_dir():
        raise ModelNotFound(_without_configuration(directory))
    if not is_hub_id(model):
        raise ModelNotFound(f"{model} is neither a directory nor a hub id")
    found = HUBS[hub].find(model, revision)
    if found is None or not snapshot.is_verified(found):
        raise ModelNotFound(
            f"{model} is not on this machine; fetch it with: qwenvl download {model}"
        )
    return ResolvedModel(found, served_names or (model, model.rpartition("/")[2]))


def fetch_model(
    model: str,
    *,
    hub: str = DEFAULT_HUB,
    revision: str | None = None,
    directory: Path | None = None,
) -> Path:
    """Fetches a model and verifies it; files that are already complete are not fetched again.

    The configuration is fetched first, so that an unsupported model is refused before its weights are downloaded.

    Args:
        model: A hub id.
        hub: A key of `HUBS`.
        revision: Branch, tag or commit; None = the hub's default.
        directory: Target directory; None = the hub's cache.

    Returns:
        The directory of the snapshot.

    Raises:
        ModelNotFound: The model does not exist, is not supported, or could not be fetched completely.
    """
    try:
        source = HUBS[hub]
        listed = source.files(model, revision)
        path = _fetch_configuration(source, model, revision, listed, directory)
        family = family_of(load_spec(path))
        names = [
            *snapshot.configuration_files(listed),
            *snapshot.weight_files(listed, path, allow_pickles=family.pickled_weights),
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
    """Fetches everything but the weights, for `qwenvl check`; arguments and errors as in `fetch_model`."""
    try:
        source = HUBS[hub]
        return _fetch_configuration(
            source, model, revision, source.files(model, revision), directory
        )
    except (HubError, SnapshotError, SpecError, OSError) as error:
        raise ModelNotFound(f"{model}: {error}") from error


def _without_configuration(directory: Path) -> str:
    """Why a directory is no model: trainers write adapters, and checkpoints of several steps side by side."""
    try:
        refuse_adapter(directory)
    except SpecError as error:
        return str(error)
    text = f"{directory} is not a model directory: it has no config.json"
    inside = sorted(path.parent.name for path in directory.glob("*/config.json"))
    return f"{text}; models in it: {', '.join(inside[:10])}" if inside else text


def _fetch_configuration(
    source: Hub,
    model: str,
    revision: str | None,
    listed: Mapping[str, RemoteFile],
    directory: Path | None,
) -> Path:
    names = snapshot.configuration_files(listed)
    if ADAPTER_FILE in names:
        refuse_adapter(source.fetch(model, revision, [ADAPTER_FILE], directory))
    if "config.json" not in names:
        raise SnapshotError("the repository has no config.json, so it contains no supported model")
    path = source.fetch(model, revision, names, directory)
    snapshot.verify_files(path, {name: listed[name] for name in names})
    return path


def _require_room(directory: Path, files: Mapping[str, RemoteFile]) -> None:
    """Checks the free disk space before a download.

    Raises:
        SnapshotError: The disk has less free space than the remaining files need.
    """
    missing = sum(_still_to_fetch(directory, files))
    free = shutil.disk_usage(directory).free
    if missing and missing + _SPARE_BYTES > free:
        raise SnapshotError(
            f"not enough disk space: {missing / 2**30:.2f} GiB remain to be fetched to {os.fspath(directory)}, "
            f"{free / 2**30:.2f} GiB are free"
        )


def _still_to_fetch(directory: Path, files: Mapping[str, RemoteFile]) -> Iterable[int]:
    for name, file in files.items():
        path = directory / name
        there = path.stat().st_size if path.is_file() else 0
        yield max(0, (file.size or 0) - there)
