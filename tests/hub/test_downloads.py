"""From a hub id to a verified snapshot: the real client libraries against a stand-in of the hubs on loopback."""

from __future__ import annotations

from collections.abc import Iterator
import errno
import json
import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
import threading
from typing import Any

import huggingface_hub.constants
import huggingface_hub.file_download
import modelscope_hub._download
import modelscope_hub._legacy_api
import pytest

from inference_service.cli import main
from inference_service.hub.resolve import ModelNotFound, fetch_model, resolve_model
from tests.support.hub_stand_in import SHARDS, StandIn, serving


HUBS = ("modelscope", "huggingface")
UNWANTED = {"modeling_qwen.py", "original/consolidated.safetensors", "README.md"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with serving(StandIn()) as hub:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "modelscope"))
        monkeypatch.setenv("MODELSCOPE_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr(modelscope_hub._legacy_api, "REPO_TREE_PAGE_MAX_ATTEMPTS", 1)
        monkeypatch.setattr(modelscope_hub._download, "DOWNLOAD_RETRY_TIMES", 1)
        monkeypatch.setattr(modelscope_hub._download, "DOWNLOAD_INTEGRITY_RETRY_BACKOFF", 0.0)
        yield hub


@pytest.mark.parametrize("name", HUBS)
def test_a_model_arrives_whole_and_without_code(hub: StandIn, name: str) -> None:
    with pytest.raises(ModelNotFound, match="qwenvl download org/model"):
        resolve_model("org/model", hub=name)
    directory = fetch_model("org/model", hub=name)
    assert hub.fetched() == set(hub.files) - UNWANTED
    for file in hub.fetched():
        assert (directory / file).read_bytes() == hub.files[file]
    assert [*directory.rglob("*.py")] == []
    resolved = resolve_model("org/model", hub=name)
    assert resolved.directory == directory
    assert resolved.served_names == ("org/model", "model")


@pytest.mark.parametrize("name", HUBS)
def test_a_second_call_fetches_nothing(hub: StandIn, name: str) -> None:
    fetch_model("org/model", hub=name)
    hub.ranges.clear()
    fetch_model("org/model", hub=name)
    assert hub.ranges == []


@pytest.mark.parametrize("name", HUBS)
def test_a_directory_of_ones_own_and_a_revision(hub: StandIn, name: str, tmp_path: Path) -> None:
    directory = tmp_path / "here"
    assert fetch_model("org/model", hub=name, revision="v1", directory=directory) == directory
    assert resolve_model(str(directory)).served_names == ("here",)


@pytest.mark.parametrize("name", HUBS)
@pytest.mark.parametrize(
    ("model", "revision", "says"),
    [
        ("org/other", None, "has no model org/other"),
        ("org/model", "no-such", "has no model org/model with revision no-such"),
    ],
)
def test_what_the_hub_does_not_have(
    hub: StandIn, name: str, model: str, revision: str | None, says: str
) -> None:
    with pytest.raises(ModelNotFound, match=says):
        fetch_model(model, hub=name, revision=revision)
    assert hub.ranges == []


@pytest.mark.parametrize("name", HUBS)
def test_no_network(hub: StandIn, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelNotFound, match="is unreachable"):
        fetch_model("org/model", hub=name)


@pytest.mark.parametrize("name", HUBS)
def test_no_permission(hub: StandIn, name: str) -> None:
    hub.denied = True
    with pytest.raises(ModelNotFound, match=r"org/model: .*(API_TOKEN|403)"):
        fetch_model("org/model", hub=name)


def test_a_broken_connection_is_resumed(hub: StandIn) -> None:
    hub.break_after[SHARDS[0]] = [70_000]
    directory = fetch_model("org/model")
    asked = [header for name, header in hub.ranges if name == SHARDS[0]]
    assert asked[0] == ""
    assert 0 < int(asked[1].removeprefix("bytes=").removesuffix("-")) <= 70_000
    assert (directory / SHARDS[0]).read_bytes() == hub.files[SHARDS[0]]


def test_a_later_call_goes_on_where_a_broken_one_stopped(
    hub: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modelscope_hub._download, "DOWNLOAD_RETRY_TIMES", 0)
    hub.break_after[SHARDS[1]] = [70_000]
    with pytest.raises(ModelNotFound, match=rf"{SHARDS[1]} could not be fetched: the connection"):
        fetch_model("org/model")
    with pytest.raises(ModelNotFound):
        resolve_model("org/model")  # half a model is none
    hub.ranges.clear()
    fetch_model("org/model")
    [(name, header)] = hub.ranges
    assert name == SHARDS[1]
    assert header.startswith("bytes=")


@pytest.mark.parametrize("name", HUBS)
def test_other_bytes_than_listed_are_refused(hub: StandIn, name: str) -> None:
    damaged = bytearray(hub.files[SHARDS[0]])
    damaged[-1] ^= 1
    hub.listed[SHARDS[0]] = hub.files[SHARDS[0]]
    hub.files[SHARDS[0]] = bytes(damaged)
    with pytest.raises(ModelNotFound, match=rf"{SHARDS[0]}.*SHA-256"):
        fetch_model("org/model", hub=name)
    with pytest.raises(ModelNotFound):
        resolve_model("org/model", hub=name)


def test_another_size_than_listed_is_refused(hub: StandIn) -> None:
    hub.listed[SHARDS[0]] = hub.files[SHARDS[0]] + b"more"
    with pytest.raises(ModelNotFound, match=rf"{SHARDS[0]} could not be fetched: its size"):
        fetch_model("org/model")


def test_a_disk_that_is_full_before(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ModelNotFound, match="not enough disk space"):
        fetch_model("org/model")
    assert hub.fetched().isdisjoint(SHARDS)


def test_a_disk_that_becomes_full(hub: StandIn, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / f"{SHARDS[0]}.incomplete").symlink_to("/dev/full")
    with pytest.raises(ModelNotFound, match=rf"{SHARDS[0]} could not be fetched: the disk is full"):
        fetch_model("org/model", directory=tmp_path / "here")


def test_a_disk_that_becomes_full_under_hugging_face(
    hub: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its library writes to files of random names; here writing itself fails."""

    def full(*_: object, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(huggingface_hub.file_download, "http_get", full)
    with pytest.raises(ModelNotFound, match="Hugging Face: the disk is full"):
        fetch_model("org/model", hub="huggingface")


def test_a_shard_named_in_the_index_is_missing(hub: StandIn) -> None:
    del hub.files[SHARDS[1]]
    with pytest.raises(ModelNotFound, match=rf"index\.json lists {SHARDS[1]}, which is missing"):
        fetch_model("org/model")
    assert hub.fetched().isdisjoint(SHARDS)


def test_pickles_of_a_family_that_needs_none_are_refused(hub: StandIn) -> None:
    for shard in SHARDS:
        del hub.files[shard]
    hub.files["pytorch_model.bin"] = b"\x80\x02."
    with pytest.raises(ModelNotFound, match="only safetensors are supported"):
        fetch_model("org/model")
    assert "pytorch_model.bin" not in hub.fetched()


def test_qwen_vl_of_2023_comes_in_its_released_shards(hub: StandIn) -> None:
    config = Path(__file__).parents[1] / "golden" / "qwen_vl_v1" / "configs" / "A"
    hub.files = {path.name: path.read_bytes() for path in config.iterdir()}
    assert b"auto_map" in hub.files["config.json"]  # names code, which nobody fetches or runs
    shards = {f"pytorch_model-0000{i}-of-00002.bin": b"x" * i for i in (1, 2)}
    index = {"weight_map": {f"tensor{i}": name for i, name in enumerate(shards)}}
    hub.files |= {"pytorch_model.bin.index.json": json.dumps(index).encode()} | shards
    hub.files |= {"qwen.tiktoken": b"IQ== 0\n", "modeling_qwen.py": b"code", "SimSun.ttf": b"font"}
    directory = fetch_model("org/model")
    assert hub.fetched() >= {*shards, "qwen.tiktoken", "config.json"}
    assert hub.fetched().isdisjoint({"modeling_qwen.py", "SimSun.ttf"})
    assert resolve_model("org/model").directory == directory


def test_a_model_that_cannot_be_served_costs_no_weights(hub: StandIn) -> None:
    hub.files["config.json"] = json.dumps({"model_type": "bert", "auto_map": {}}).encode()
    with pytest.raises(ModelNotFound, match="'bert' is not supported"):
        fetch_model("org/model")
    assert hub.fetched().isdisjoint(SHARDS)


def test_a_repository_without_a_model(hub: StandIn) -> None:
    del hub.files["config.json"]
    with pytest.raises(ModelNotFound, match=r"has no config\.json"):
        fetch_model("org/model")
    assert hub.ranges == []


def test_names_that_leave_the_directory_are_not_fetched(hub: StandIn) -> None:
    hub.files["../escape.json"] = b"{}"
    hub.files["a*.json"] = b"{}"
    fetch_model("org/model")
    assert hub.fetched().isdisjoint({"../escape.json", "a*.json"})


def test_the_command_prints_what_it_downloaded(
    hub: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = str(tmp_path / "here")
    assert main(["download", "org/model", "--local-dir", directory, "--hub", "modelscope"]) == 0
    text = capsys.readouterr().out
    assert "language   4.02 B" in text  # what `qwenvl check` says
    assert text.endswith(f"\ndirectory   {directory}\n")
    assert main(["download", "org/other"]) == 1
    assert "org/other: ModelScope has no model org/other" in capsys.readouterr().err
    assert main(["download", "/no/hub/id"]) == 2


@pytest.mark.parametrize("name", HUBS)
def test_a_pod_starts_without_the_hub_once_it_has_the_model(
    hub: StandIn, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable, value in (("MODEL", "org/model"), ("REVISION", "v1"), ("HUB", name)):
        monkeypatch.setenv(f"QWENVL_{variable}", value)
    assert main(["download", "--if-absent"]) == 0
    first = capsys.readouterr().out
    hub.denied = True
    assert main(["download", "--if-absent"]) == 0
    assert capsys.readouterr().out == first
    monkeypatch.setenv("QWENVL_REVISION", "main")  # another one is asked for
    assert main(["download", "--if-absent"]) == 1


def test_a_download_needs_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["download"]) == 2
    assert "name one, or set QWENVL_MODEL" in capsys.readouterr().err


def test_check_reads_the_configuration_only(
    hub: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "org/model", "--gpu-memory", "24GiB"]) == 0
    assert hub.fetched() == {
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "merges.txt",
        "model.safetensors.index.json",
    }
    assert main(["check", "org/other"]) == 2
    assert "has no model org/other" in capsys.readouterr().err


def test_serve_downloads_before_it_listens(hub: StandIn) -> None:
    hub.files[SHARDS[1]] = hub.files[SHARDS[1]][:-100]
    with pytest.raises(
        SystemExit, match=rf"cannot serve this model: org/model: {SHARDS[1]} has \d+ bytes"
    ):
        main(["serve", "org/model"])
    assert set(SHARDS) <= hub.fetched()


def test_only_the_weights_of_the_model_are_fetched(hub: StandIn) -> None:
    """Not an adapter, another form of the weights, or shards of which the index knows nothing."""
    extra = {"adapter_model.safetensors", "consolidated.safetensors", "pytorch_model.bin"}
    extra |= {"model-00003-of-00003.safetensors", "optimizer.pt", "training_args.bin"}
    hub.files |= dict.fromkeys(extra, b"other")
    fetch_model("org/model")
    assert hub.fetched().isdisjoint(extra)
    assert set(SHARDS) <= hub.fetched()


def test_an_adapter_is_refused_before_its_weights_are_fetched(hub: StandIn) -> None:
    base = {"base_model_name_or_path": "Qwen/Qwen3-VL-4B-Instruct"}
    hub.files["adapter_config.json"] = json.dumps(base).encode()
    hub.files["adapter_model.safetensors"] = b"adapter"
    with pytest.raises(
        ModelNotFound, match=r"LoRA adapter.* merge it into Qwen/Qwen3-VL-4B-Instruct"
    ):
        fetch_model("org/model")
    del hub.files["config.json"]
    with pytest.raises(
        ModelNotFound, match=r"LoRA adapter.* merge it into Qwen/Qwen3-VL-4B-Instruct"
    ):
        fetch_model("org/model")
    assert hub.fetched().isdisjoint({*SHARDS, "adapter_model.safetensors"})


def test_modelscopes_own_command_finds_the_same_snapshot(hub: StandIn, tmp_path: Path) -> None:
    """The stand-in is what the package `modelscope` expects, and both use one cache."""
    code = "from modelscope import snapshot_download; print(snapshot_download('org/model'))"
    program = [sys.executable, "-W", "ignore", "-c", code]
    result = subprocess.run(
        program, capture_output=True, text=True, timeout=120, check=True, env=os.environ
    )
    assert Path(result.stdout.strip().splitlines()[-1]) == fetch_model("org/model")


@pytest.mark.parametrize("name", HUBS)
def test_a_long_download_is_told_in_lines(
    hub: StandIn, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where standard error is no terminal, and progress bars would fill a log."""
    monkeypatch.setattr("inference_service.hub.progress.INTERVAL_S", 0.02)
    hub.stall = threading.Event()
    told: list[str] = []

    def tell(line: str) -> None:
        told.append(line)
        if line.startswith("fetched") and hub.stall is not None:
            hub.stall.set()

    fetch_model("org/model", hub=name, tell=tell)
    assert told[0].startswith("asking ")
    assert told[1].startswith("fetching 0.00 GiB from ")
    assert re.fullmatch(r"fetched 0\.00 of 0\.00 GiB \(\d+ %\)", told[-1])
