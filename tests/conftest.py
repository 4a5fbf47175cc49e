"""What the tests of all packages share: no fonts of this machine, and the two golden checkpoints of Qwen-VL v1.

The checkpoints are built once and deleted with the session.
"""

from __future__ import annotations

from collections.abc import Iterator
import faulthandler
import os
from pathlib import Path
import shutil
import signal

from hypothesis import settings
import pytest

from tests.support.examples import try_few


_EXIT_S = 300


def pytest_configure(config: pytest.Config) -> None:
    """Prepares what the commands under test inherit.

    They ask fontconfig, and find no fonts of this machine. They are interrupted, also where a shell has started the
    tests in the background, and so with SIGINT ignored. A fork does not stop gRPC's threads, which it would fail to
    start again. A generated example may take any time: how long it takes is the machine's. The short tests generate the
    same examples every time, so that they judge the change and not the draw; the full ones look for new ones.
    """
    short = "not full" in config.option.markexpr
    settings.register_profile("any machine", deadline=None, derandomize=short)
    settings.load_profile("any machine")
    if short:
        try_few()
    os.environ["FONTCONFIG_FILE"] = str(Path(__file__).parent / "support" / "no_fonts.conf")
    os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs what is marked `both_backends` over both: its fixture `served`, or the one that the mark names."""
    mark = metafunc.definition.get_closest_marker("both_backends")
    if mark is not None:
        marks = () if mark.kwargs.get("sample") else pytest.mark.full
        backends = ["native", pytest.param("transformers", marks=marks)]
        metafunc.parametrize(mark.args[0] if mark.args else "served", backends, indirect=True)


def pytest_unconfigure() -> None:
    """Ends the process also if a thread that a test has left behind does not, and shows every thread."""
    faulthandler.dump_traceback_later(_EXIT_S, exit=True)


@pytest.fixture(scope="session")
def qwen_vl_a(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Trained length 2048, images of 448 pixels; 320 MB."""
    yield from _built(tmp_path_factory, "A")


@pytest.fixture(scope="session")
def qwen_vl_b(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Trained length 512, images of 224 pixels; 160 MB."""
    yield from _built(tmp_path_factory, "B")


def _built(tmp_path_factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    from tests.support.qwen_vl_v1 import build_checkpoint  # not for every test run

    directory = build_checkpoint(tmp_path_factory.mktemp("qwen_vl") / name, name)
    yield directory
    shutil.rmtree(directory)
