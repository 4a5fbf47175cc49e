"""Resolves MODEL on the command line (absent, a directory, or a hub id) to a directory, fetching it if asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
import contextlib
from dataclasses import dataclass
import os
from pathlib import Path
import re
import shutil

from inference_service.any_model.choice import BackendKind, choose_backend
from inference_service.demo import MODEL_DIR
from inference_service.families.config_file import SpecError
from inference_service.families.copied_files import ADAPTER_FILE, refuse_adapter
from inference_service.families.registry import family_of, load_spec
from inference_service.hub import progress, snapshot
from inference_service.hub.clients import HUBS, Hub, HubError
from inference_service.hub.snapshot import RemoteFile, SnapshotError


DEMO_NAMES = ("qwen-vl-demo", "qwen-vl")
DEFAULT_HUB = "modelscope"
TITLES = {"modelscope": "ModelScope", "huggingface": "Hugging Face"}

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_SPARE_BYTES = 64 * 2**20


class ModelNotFound(Exception):  # noqa: N818 - names the condition
    """MODEL cannot be found or fetched; the message says what to do."""


class FetchFailed(ModelNotFound):
    """The hub cannot be asked, or a file cannot be written; a copy on this machine may do."""


def _silent(line: str) -> None:
    del line


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model on disk and the names it is served under, canonical name first."""

    directory: Path
    served_names: tuple[str, ...]


def is_hub_id(model: str | None) -> bool:
    """Whether MODEL is the id of a hub repository; an existing path of that name takes precedence."""
    return model is not None and not Path(model).exists() and bool(_HUB_ID.fullmatch(model))


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
    if directory.is_file():
        raise ModelNotFound(f"{model} is a file; name the directory of the model")
    if not is_hub_id(model):
        raise ModelNotFound(f"{model} is neither a directory nor a hub id")
    found = HUBS[hub].find(model, revision)
    if found is None or not (snapshot.is_verified(found) or snapshot.is_complete(found)):
        raise ModelNotFound(_not_here(model, hub, revision))
    return ResolvedModel(found, served_names or hub_names(model))


def hub_names(model: str) -> tuple[str, ...]:
    """The names under which a model of a hub is served: its id and the last part of it."""
    return (model, model.rpartition("/")[2])


def _not_here(model: str, hub: str, revision: str | None) -> str:
    """What to do about a model that is not on this machine, with the hub that is meant."""
    flags = f" --hub {hub}" + (f" --revision {revision}" if revision else "")
    fetch = f"fetch it with: qwenvl download {model}{flags}"
    return f"{model} is not in the cache of {TITLES[hub]}; {fetch}{_elsewhere(model, hub)}"


def _elsewhere(model: str, hub: str) -> str:
    """A remark about the cache of another hub that has the model, or nothing."""
    for other, source in HUBS.items():
        if other != hub and source.find(model, None) is not None:
            return f"; it is in the cache of {TITLES[other]}: use it with --hub {other}"
    return ""


def obtain_model(
    model: str,
    *,
    hub: str = DEFAULT_HUB,
    revision: str | None = None,
    tell: Callable[[str], None],
) -> Path:
    """Finds a model of a hub on this machine, or fetches it.

    A copy whose files have another time than when they were verified is used with a remark if the hub cannot be asked.

    Args:
        model: A hub id.
        hub: A key of `HUBS`.
        revision: Branch, tag or commit; None = the hub's default.
        tell: Called with lines about what is fetched.

    Raises:
        ModelNotFound: It is not here, and cannot be fetched.
    """
    with contextlib.suppress(ModelNotFound):
        return resolve_model(model, hub=hub, revision=revision).directory
    try:
        return fetch_model(model, hub=hub, revision=revision, tell=tell)
    except FetchFailed as error:
        found = HUBS[hub].find(model, revision)
        if found is None or not snapshot.is_verified(found, times=False):
            raise ModelNotFound(f"{error}{_elsewhere(model, hub)}") from error
        tell(f"{error}; using the copy in {found}, whose files have the sizes of the verified ones")
        return found


def fetch_model(
    model: str,
    *,
    hub: str = DEFAULT_HUB,
    revision: str | None = None,
    directory: Path | None = None,
    tell: Callable[[str], None] = _silent,
) -> Path:
    """Fetches a model and verifies it; files that are already complete are not fetched again.

    The configuration is fetched first, so that an unsupported model is refused before its weights are downloaded.

    Args:
        model: A hub id.
        hub: A key of `HUBS`.
        revision: Branch, tag or commit; None = the hub's default.
        directory: Target directory; None = the hub's cache.
        tell: Called with lines about what is fetched; the client libraries show its progress on standard error.

    Returns:
        The directory of the snapshot.

    Raises:
        FetchFailed: The hub cannot be asked, or a file cannot be written.
        ModelNotFound: The model does not exist, is not supported, or could not be fetched completely.
    """
    try:
        source = HUBS[hub]
        tell(f"asking {TITLES[hub]} for {model}")
        listed = source.files(model, revision)
        path = _fetch_configuration(source, model, revision, listed, directory)
        if not snapshot.is_verified(path):
            snapshot.write_note(path, ())
        pickled = _is_pickled(path)
        names = [
            *snapshot.configuration_files(listed),
            *snapshot.weight_files(listed, path, allow_pickles=pickled),
        ]
        wanted = {name: listed[name] for name in names}
        missing = _require_room(path, wanted)
        if missing:
            tell(f"fetching {missing / 2**30:.2f} GiB from {TITLES[hub]} to {path}")
        # In the cache of Hugging Face, the files of a snapshot are links to blobs beside it.
        root = path.parent.parent if directory is None and hub == "huggingface" else path
        with progress.told(root, missing, tell):
            path = source.fetch(model, revision, names, directory)
        snapshot.verify_files(path, wanted)
        snapshot.verify_weights(path)
        snapshot.write_note(path, names)
    except (HubError, OSError) as error:
        raise FetchFailed(f"{model}: {error}") from error
    except (SnapshotError, SpecError) as error:
        raise ModelNotFound(f"{model}: {error}") from error
    return path


def _is_pickled(path: Path) -> bool:
    """Whether the weights may be pickles; raises SpecError if no backend can serve the model.

    A repository with code is refused here for what its configuration names: its Python files are never fetched.
    """
    if choose_backend("auto", path) is BackendKind.TRANSFORMERS:
        return False
    return family_of(load_spec(path)).pickled_weights


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
    for name, what in (("config.json", "models"), (ADAPTER_FILE, "LoRA adapters")):
        # Trainers nest them: v0-20250101/checkpoint-500.
        found = (*directory.glob(f"*/{name}"), *directory.glob(f"*/*/{name}"))
        if inside := sorted(str(path.parent.relative_to(directory)) for path in found):
            return f"{text}; {what} in it: {', '.join(inside[:10])}"
    if any(directory.glob("*.gguf")):
        return f"{text}, and GGUF files are not read: name the directory with the model's safetensors files"
    if any(directory.glob("*.safetensors")):
        return f"{text}, only weights: copy the other files of the model that they were made from into it"
    return text


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


def _require_room(directory: Path, files: Mapping[str, RemoteFile]) -> int:
    """The bytes that remain to be fetched, for which there is room.

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
    return missing


def _still_to_fetch(directory: Path, files: Mapping[str, RemoteFile]) -> Iterable[int]:
    for name, file in files.items():
        path = directory / name
        there = path.stat().st_size if path.is_file() else 0
        yield max(0, (file.size or 0) - there)
