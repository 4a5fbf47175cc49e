"""The product with the demo model, started once for all tests of clients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
import sys

import pytest

from tests.e2e.conftest import Served, image_host, running


__all__ = ["image_host"]


def command(*flags: str) -> list[str]:
    serve = [sys.executable, "-m", "inference_service.cli", "serve", "--dtype", "float32"]
    return [*serve, "--cpu-threads", "1", *flags]


@pytest.fixture(scope="session")
def of_native(image_host: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with _storing(image_host, tmp_path_factory.mktemp("clients"), "native") as served:
        yield served


@pytest.fixture(scope="session")
def of_transformers(image_host: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with _storing(image_host, tmp_path_factory.mktemp("clients"), "transformers") as served:
        yield served


@pytest.fixture(scope="session")
def product(request: pytest.FixtureRequest) -> Served:
    """The product; tests that are marked `both_backends` say of which backend."""
    return request.getfixturevalue(f"of_{getattr(request, 'param', 'native')}")


def _storing(image_host: str, folder: Path, backend: str) -> AbstractContextManager[Served]:
    flags = ("--backend", backend, "--response-store", str(folder / "responses.sqlite"))
    return running(command(*flags), folder / "log.txt", QWENVL_ALLOWED_MEDIA_DOMAINS=image_host)


@pytest.fixture(scope="session")
def strict_product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    log = tmp_path_factory.mktemp("strict") / "log.txt"
    with running(command("--strict-max-tokens"), log, QWENVL_STRICT_FIELDS="true") as served:
        yield served
