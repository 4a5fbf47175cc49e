"""The GPU kernels under triton's interpreter, which runs them on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
import sys
from types import ModuleType

import pytest

from tests.kernels.gpu.install_triton import FOLDER


@pytest.fixture(scope="session")
def _interpreter() -> Iterator[None]:
    """Triton, from the environment or from its folder; it decides when it is imported whether it interprets."""
    if "triton" in sys.modules:
        pytest.skip("triton was imported before, to compile")
    if not find_spec("triton"):
        if not (FOLDER / "triton").is_dir():
            pytest.skip(f"triton is neither installed nor in {FOLDER}")
        sys.path.append(str(FOLDER))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        import_module("triton")
        yield
    if str(FOLDER) in sys.path:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="session")
def rows(_interpreter: None) -> ModuleType:
    """`kernels.gpu.rows`, interpreted."""
    return import_module("inference_service.kernels.gpu.rows")


@pytest.fixture(scope="session")
def heads(_interpreter: None) -> ModuleType:
    """`kernels.gpu.heads`, interpreted."""
    return import_module("inference_service.kernels.gpu.heads")


@pytest.fixture(scope="session")
def attention(_interpreter: None) -> ModuleType:
    """`kernels.gpu.attention`, interpreted."""
    return import_module("inference_service.kernels.gpu.attention")


@pytest.fixture(scope="session")
def choice(_interpreter: None) -> ModuleType:
    """`kernels.gpu.choice`, interpreted."""
    return import_module("inference_service.kernels.gpu.choice")


@pytest.fixture(scope="session")
def filters(_interpreter: None) -> ModuleType:
    """`kernels.gpu.filters`, interpreted."""
    return import_module("inference_service.kernels.gpu.filters")


@pytest.fixture(scope="session")
def skinny_linear(_interpreter: None) -> ModuleType:
    """`kernels.gpu.skinny_linear`, interpreted."""
    return import_module("inference_service.kernels.gpu.skinny_linear")


@pytest.fixture(scope="session")
def slot_state(_interpreter: None) -> ModuleType:
    """`kernels.gpu.slot_state`, interpreted."""
    return import_module("inference_service.kernels.gpu.slot_state")


@pytest.fixture(scope="session")
def penalties(_interpreter: None) -> ModuleType:
    """`kernels.gpu.penalties`, interpreted."""
    return import_module("inference_service.kernels.gpu.penalties")
