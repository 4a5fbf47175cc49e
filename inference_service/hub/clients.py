"""ModelScope and Hugging Face behind one interface: list a repository, fetch its files, find earlier downloads.

The client libraries are imported on first use because importing them takes half a second.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import errno
import logging
import os
from pathlib import Path
import re
from typing import Any, Protocol

from inference_service.hub.progress import has_bars
from inference_service.hub.snapshot import RemoteFile


class HubError(Exception):
    """A repository could not be fetched; the message says what to do."""


class Hub(Protocol):
    """A host of model repositories."""

    def files(self, model: str, revision: str | None) -> dict[str, RemoteFile]:
        """The files of a repository, by path.

        Raises:
            HubError: No such model or revision, no permission, no network.
        """

    def fetch(
        self, model: str, revision: str | None, names: Sequence[str], directory: Path | None
    ) -> Path:
        """Fetches files, resuming an earlier attempt, and shows progress on stderr.

        Args:
            model: The repository.
            revision: Branch, tag or commit; None = the hub's default.
            names: Paths of the files.
            directory: Target directory; None = the library's cache.

        Returns:
            The directory that contains them.

        Raises:
            HubError: A file could not be fetched completely.
        """

    def find(self, model: str, revision: str | None) -> Path | None:
        """The directory of an earlier `fetch` into the cache, without network access; None = not found."""


class ModelScope:
    """modelscope.cn, or the host that `MODELSCOPE_ENDPOINT` names.

    Uses the library below `modelscope.snapshot_download`, which itself imports torch.
    """

    def files(self, model: str, revision: str | None) -> dict[str, RemoteFile]:
        """See `Hub.files`."""
        with _modelscope_errors(model, revision):
            listed = self._api(model).list_repo_files(model, "model", revision=revision)
        return {
            # A missing size is also listed as 0.
            file.path: RemoteFile(file.size or None, file.sha256)
            for file in listed
            if not file.is_dir
        }

    def fetch(
        self, model: str, revision: str | None, names: Sequence[str], directory: Path | None
    ) -> Path:
        """See `Hub.fetch`."""
        with _modelscope_errors(model, revision):
            path = self._api(model).download_repo(
                model, "model", revision=revision, local_dir=directory, allow_patterns=list(names)
            )
        return Path(path)

    def find(self, model: str, revision: str | None) -> Path | None:
        """See `Hub.find`."""
        library = _modelscope()
        try:
            api = library.HubApi(library.HubConfig())
            return Path(api.download_repo(model, "model", revision=revision, local_files_only=True))
        # OSError: the library also creates its cache, where that may be impossible.
        except (library.CacheNotFound, OSError):
            return None

    @staticmethod
    def _api(model: str) -> Any:
        """A client of the site that has the model: the Chinese one, else the international one."""
        library = _modelscope()
        # A new configuration: the library creates its default once and ignores later changes of the environment.
        endpoint = library.HubApi(library.HubConfig()).resolve_endpoint_for_read(model)
        return library.HubApi(library.HubConfig(endpoint=endpoint))


class HuggingFace:
    """huggingface.co, or the host that `HF_ENDPOINT` names."""

    def files(self, model: str, revision: str | None) -> dict[str, RemoteFile]:
        """See `Hub.files`."""
        with _huggingface_errors(model, revision):
            info = _huggingface().HfApi().model_info(model, revision=revision, files_metadata=True)
        return {
            file.rfilename: RemoteFile(file.size, file.lfs.sha256 if file.lfs else None)
            for file in info.siblings or ()
        }

    def fetch(
        self, model: str, revision: str | None, names: Sequence[str], directory: Path | None
    ) -> Path:
        """See `Hub.fetch`."""
        with _huggingface_errors(model, revision):
            path = _huggingface().snapshot_download(
                model, revision=revision, local_dir=directory, allow_patterns=list(names)
            )
        return Path(path)

    def find(self, model: str, revision: str | None) -> Path | None:
        """See `Hub.find`."""
        try:
            path = _huggingface().snapshot_download(
                model, revision=revision, local_files_only=True, allow_patterns="config.json"
            )
        except OSError:  # covers everything that is missing from the cache
            return None
        return Path(path)


def _modelscope() -> Any:
    """The library of ModelScope, which logs as everything else does."""
    _leave_out_bars()
    library_logger = logging.getLogger("modelscope_hub")
    # Else it adds a handler with a format of its own.
    library_logger.handlers[:] = [logging.NullHandler()]
    library_logger.propagate = True
    import modelscope_hub as library

    library_logger.setLevel(logging.WARNING)  # the import has set another one
    return library


def _huggingface() -> Any:
    """The library of Hugging Face."""
    _leave_out_bars()
    import huggingface_hub as library

    return library


def _leave_out_bars() -> None:
    """Keeps progress bars out of log files; has an effect before their library is imported."""
    if not has_bars():
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


HUBS: Mapping[str, Hub] = {"modelscope": ModelScope(), "huggingface": HuggingFace()}


@contextlib.contextmanager
def _modelscope_errors(model: str, revision: str | None) -> Iterator[None]:
    library = _modelscope()
    try:
        yield
    except library.FileDownloadError as error:
        name, cause = next(iter(error.failed_files.items()))
        raise HubError(f"{name} could not be fetched: {_modelscope_cause(cause)}") from error
    except library.NotExistError as error:
        raise HubError(_unknown("ModelScope", model, revision)) from error
    except (library.AuthenticationError, library.PermissionDeniedError) as error:
        raise HubError(
            f"ModelScope denies access to {model}; set MODELSCOPE_API_TOKEN to the token of an account with access"
        ) from error
    except library.NetworkError as error:
        raise HubError("ModelScope is unreachable; run the command again to resume") from error
    except (library.HubError, OSError) as error:
        raise HubError(f"ModelScope: {_modelscope_cause(error)}") from error


def _modelscope_cause(error: BaseException) -> str:
    library = _modelscope()
    if isinstance(error, library.FileSizeMismatchError):
        return "its size differs from the size listed by the hub"
    if isinstance(error, library.FileIntegrityError):
        return "its SHA-256 differs from the hash listed by the hub"
    if isinstance(error, library.NetworkError):
        return "the connection was lost; run the command again to resume"
    return _system_cause(error)


@contextlib.contextmanager
def _huggingface_errors(model: str, revision: str | None) -> Iterator[None]:
    import httpx2  # the transport of huggingface_hub, whose errors pass through it
    from huggingface_hub import errors as library

    try:
        yield
    except library.GatedRepoError as error:
        raise HubError(
            f"{model} is a gated model on Hugging Face; set HF_TOKEN to the token of an account with access"
        ) from error
    except (
        library.RepositoryNotFoundError,
        library.RevisionNotFoundError,
        library.HFValidationError,
    ) as error:
        raise HubError(_unknown("Hugging Face", model, revision)) from error
    except (library.LocalEntryNotFoundError, ConnectionError, httpx2.TransportError) as error:
        raise HubError("Hugging Face is unreachable; run the command again to resume") from error
    except (OSError, httpx2.HTTPError) as error:
        raise HubError(f"Hugging Face: {_system_cause(error)}") from error
    except (ImportError, ValueError, httpx2.InvalidURL) as error:
        # Raised when the client is made: a SOCKS proxy without its library, a proxy or endpoint that is no URL.
        raise HubError(
            f"Hugging Face cannot be called with the proxy or endpoint in the environment: {_system_cause(error)}"
        ) from error


def _unknown(hub: str, model: str, revision: str | None) -> str:
    at_revision = f" with revision {revision}" if revision else ""
    return (
        f"{hub} has no model {model}{at_revision}, and there is no local directory with that name"
    )


def _system_cause(error: BaseException) -> str:
    """The reason of a failure: the system's, or the first line of the library's message."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full"
    text = str(error).partition("\n")[0]
    return re.sub(r"^(\[\w+\] *)+", "", text) or type(error).__name__
