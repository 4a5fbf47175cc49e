"""A model that is already in the cache of a hub is served without the hub, whoever put it there."""

from __future__ import annotations

from collections.abc import Iterator
import os
from pathlib import Path
import shutil
import subprocess
import sys
import tempfile

import pytest

from tests.support.hub_stand_in import SHARDS, StandIn, serving


HUBS = ("modelscope", "huggingface")
# ModelScope's library asks an unreachable hub for seconds.
SLOW = [pytest.param("modelscope", marks=pytest.mark.full), "huggingface"]
# Also as root: drops CAP_DAC_OVERRIDE, which takes effect with the next program.
OBEY_PERMISSIONS = """
import ctypes, os, sys
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE = 24, 1
ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
RESOLVE = """
import sys
from inference_service.hub.resolve import obtain_model, resolve_model, ModelNotFound
step, hub = sys.argv[1:]
try:
    if step == "resolve":
        print(resolve_model("org/model", hub=hub).directory)
    else:
        print(obtain_model("org/model", hub=hub, tell=lambda line: print(line, file=sys.stderr)))
except ModelNotFound as error:
    sys.exit(f"refused: {error}")
"""


class Cache:
    """Caches of both hubs on this machine, and the hubs while there is a network."""

    def __init__(self, root: Path, hub: StandIn) -> None:
        self.root = root
        self.hub = hub

    def call(self, step: str, name: str, *, online: bool) -> subprocess.CompletedProcess[str]:
        endpoint = self.hub.endpoint if online else "http://127.0.0.1:9"
        environment = {
            "MODELSCOPE_ENDPOINT": endpoint,
            "MODELSCOPE_CACHE": str(self.root / "modelscope"),
            "MODELSCOPE_HOME": str(self.root / "home"),
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(self.root / "huggingface"),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        return subprocess.run(
            [sys.executable, "-c", OBEY_PERMISSIONS, "-c", RESOLVE, step, name],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def fill(self, name: str) -> Path:
        result = self.call("obtain", name, online=True)
        assert result.returncode == 0, result.stderr
        return Path(result.stdout.splitlines()[-1])

    def protect(self, *, writable: bool) -> None:
        for directory, _, files in os.walk(self.root):
            for file in files:
                path = Path(directory, file)
                if not path.is_symlink():
                    path.chmod(0o644 if writable else 0o444)
            Path(directory).chmod(0o755 if writable else 0o555)


@pytest.fixture
def cache() -> Iterator[Cache]:
    root = Path(tempfile.mkdtemp())
    with serving(StandIn()) as hub:
        made = Cache(root, hub)
        yield made
        made.protect(writable=True)
        shutil.rmtree(root)


@pytest.mark.parametrize("name", HUBS)
def test_a_snapshot_of_ours_needs_no_hub_and_may_be_read_only(cache: Cache, name: str) -> None:
    directory = cache.fill(name)
    cache.protect(writable=False)
    for step in ("resolve", "obtain"):
        result = cache.call(step, name, online=False)
        assert (result.returncode, result.stdout) == (0, f"{directory}\n"), result.stderr


@pytest.mark.parametrize("writable", [True, False])
@pytest.mark.parametrize("name", HUBS)
def test_a_snapshot_of_the_hubs_own_tool_needs_no_hub(
    cache: Cache, name: str, writable: bool
) -> None:
    directory = cache.fill(name)
    (directory / ".qwenvl-verified").unlink()
    cache.protect(writable=writable)
    for online in (False, True):
        result = cache.call("obtain", name, online=online)
        assert (result.returncode, result.stdout) == (0, f"{directory}\n"), result.stderr


@pytest.mark.parametrize("name", SLOW)
def test_half_a_snapshot_of_another_tool_is_fetched(cache: Cache, name: str) -> None:
    directory = cache.fill(name)
    (directory / ".qwenvl-verified").unlink()
    (directory / SHARDS[1]).unlink()
    refused = cache.call("obtain", name, online=False)
    assert "is unreachable" in refused.stderr
    assert cache.fill(name) == directory
    assert (directory / SHARDS[1]).is_file()


@pytest.mark.parametrize("name", HUBS)
def test_a_copied_cache_needs_no_hub(cache: Cache, name: str) -> None:
    """Copies have other times than the files that were verified."""
    directory = cache.fill(name)
    for path in directory.iterdir():
        os.utime(path, (1, 1))
    result = cache.call("obtain", name, online=False)
    assert (result.returncode, result.stdout) == (0, f"{directory}\n"), result.stderr
    assert "is unreachable" in result.stderr
    assert f"using the copy in {directory}" in result.stderr


@pytest.mark.parametrize(
    ("name", "other"), [pytest.param(*HUBS, marks=pytest.mark.full), HUBS[::-1]]
)
def test_hints_name_the_hub(cache: Cache, name: str, other: str) -> None:
    missing = cache.call("resolve", name, online=False)
    assert f"fetch it with: qwenvl download org/model --hub {name}" in missing.stderr
    cache.fill(other)
    for step in ("resolve", "obtain"):
        refused = cache.call(step, name, online=False)
        assert refused.returncode == 1
        assert f"use it with --hub {other}" in refused.stderr
        assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "nonsense", "http://[", "ftp://x"])
@pytest.mark.parametrize("name", SLOW)
def test_a_useless_proxy_is_told_in_a_line(
    cache: Cache, name: str, proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(variable, proxy)
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    refused = cache.call("obtain", name, online=True)
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    assert refused.stderr.splitlines()[-1].startswith("refused: org/model: ")


def test_the_libraries_write_no_lines_of_their_own(cache: Cache) -> None:
    for name in HUBS:
        result = cache.call("obtain", name, online=True)
        told = result.stderr.splitlines()
        title = {"modelscope": "ModelScope", "huggingface": "Hugging Face"}[name]
        assert told[0] == f"asking {title} for org/model"
        assert told[1].startswith(f"fetching 0.00 GiB from {title} to ")
        assert told[2:] == []
