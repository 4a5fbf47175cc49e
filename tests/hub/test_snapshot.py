"""Which files make a model, and whether a directory holds them whole."""

from __future__ import annotations

import json
from pathlib import Path
import struct

import numpy as np
import pytest
from safetensors.numpy import save_file

from inference_service.families.weight_files import weight_files
from inference_service.hub import snapshot
from inference_service.hub.snapshot import RemoteFile, SnapshotError


FILE = "model.safetensors"


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    save_file({"x": np.arange(6, dtype=np.float32)}, tmp_path / FILE)
    return tmp_path


SHARD = "model-{:05}-of-{:05}.safetensors"
INDEX = "model.safetensors.index.json"


def index_of(directory: Path, *shards: str) -> None:
    (directory / INDEX).write_text(json.dumps({"weight_map": dict(enumerate(shards))}))


@pytest.mark.parametrize(
    ("names", "listed", "chosen"),
    [
        ([FILE, "pytorch_model.bin", "adapter_model.safetensors"], None, [FILE]),
        ([FILE, INDEX, SHARD.format(1, 1)], [SHARD.format(1, 1)], [FILE]),  # as in transformers
        ([INDEX, "b.safetensors", "a.safetensors", "c.safetensors"], ["b.safetensors", "a.safetensors"],
         ["a.safetensors", "b.safetensors"]),
        ([SHARD.format(2, 2), SHARD.format(1, 2), "optimizer.pt"], None,
         [SHARD.format(1, 2), SHARD.format(2, 2)]),  # the index is lost
        ([INDEX, SHARD.format(1, 1)], [SHARD.format(i, 3) for i in (1, 2, 3)],
         [SHARD.format(1, 1)]),  # the index is of another run
        ([INDEX, "pytorch_model.bin"], [SHARD.format(1, 1)], ["pytorch_model.bin"]),
        (["pytorch_model.bin", "training_args.bin"], None, ["pytorch_model.bin"]),
    ],
)  # fmt: skip
def test_the_files_with_the_weights(
    names: list[str], listed: list[str] | None, chosen: list[str], tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"")
    if listed is not None:
        index_of(tmp_path, *listed)
    assert list(snapshot.weight_files(names, tmp_path, allow_pickles=True)) == chosen
    assert [path.name for path in weight_files(tmp_path)] == chosen


@pytest.mark.parametrize(
    ("names", "listed", "words"),
    [
        ([], None, "no weights: neither model.safetensors nor"),
        (["config.json", "sub/model.safetensors"], None, "no weights"),
        (["adapter_model.safetensors"], None, "only a LoRA adapter"),
        (["zero_to_fp32.py", "latest"], None, r"convert them with zero_to_fp32\.py"),
        (["consolidated.safetensors"], None, "consolidated.safetensors is neither"),
        ([SHARD.format(1, 2)], None, "no complete weights"),
        ([SHARD.format(1, 1), SHARD.format(1, 2), SHARD.format(2, 2)], None, "no complete weights"),
        ([INDEX, SHARD.format(1, 2)], [SHARD.format(i, 2) for i in (1, 2)],
         "lists model-00002-of-00002.safetensors, which is missing"),
        ([INDEX], [SHARD.format(1, 1)], "which is missing"),
        ([INDEX], [], "lists no files"),
    ],
)  # fmt: skip
def test_weights_that_are_not_whole(
    names: list[str], listed: list[str] | None, words: str, tmp_path: Path
) -> None:
    if listed is not None:
        index_of(tmp_path, *listed)
    with pytest.raises(SnapshotError, match=words):
        snapshot.weight_files(names, tmp_path, allow_pickles=True)


def test_pickles_only_where_they_are_allowed(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="only safetensors are supported"):
        snapshot.weight_files(["pytorch_model.bin"], tmp_path, allow_pickles=False)


def test_configuration_is_never_code() -> None:
    names = ["config.json", "tokenization_qwen.py", "qwen.tiktoken", "SimSun.ttf", "x/config.json"]
    assert snapshot.configuration_files(names) == ["config.json", "qwen.tiktoken"]


def test_files_of_a_model_are_configuration_and_weights_in_either_form() -> None:
    weights = ["model.safetensors", "pytorch_model-1.bin"]
    others = ["training_args.bin", "modeling.py", ".qwenvl-verified", "README.md"]
    names = [*weights, *others, "tokenizer.model", "merges.txt", "config.json"]
    assert snapshot.model_files(iter(names)) == [
        "config.json",
        "merges.txt",
        "model.safetensors",
        "pytorch_model-1.bin",
        "tokenizer.model",
    ]


def test_a_whole_file_passes(whole: Path) -> None:
    snapshot.verify_weights(whole)


@pytest.mark.parametrize("kept", [0, 4, 8, 20, -1])
def test_a_file_cut_short_is_found(whole: Path, kept: int) -> None:
    data = (whole / FILE).read_bytes()
    (whole / FILE).write_bytes(data[:kept])
    with pytest.raises(SnapshotError, match=FILE):
        snapshot.verify_weights(whole)


@pytest.mark.parametrize(
    "header", [b"[]", b"{", b'{"x": {}}', b'{"x": {"data_offsets": [0, "a"]}}']
)
def test_a_broken_header_is_found(whole: Path, header: bytes) -> None:
    (whole / FILE).write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 24)
    with pytest.raises(SnapshotError, match="invalid header"):
        snapshot.verify_weights(whole)


@pytest.mark.parametrize(
    "index", ["[]", "{", '{"weight_map": []}', '{"weight_map": {"x": 1}}', '{"weight_map": {"x": "../x"}}']
)  # fmt: skip
def test_an_index_that_is_none(whole: Path, index: str) -> None:
    (whole / FILE).rename(whole / "shard.safetensors")
    (whole / INDEX).write_text(index)
    with pytest.raises(SnapshotError, match="index"):
        snapshot.verify_weights(whole)


def test_pickled_shards_are_counted_only_without_safetensors(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError, match="no weights"):
        snapshot.verify_weights(tmp_path)
    weight_map = {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}
    index = json.dumps({"weight_map": weight_map})
    (tmp_path / "pytorch_model.bin.index.json").write_text(index)
    (tmp_path / "pytorch_model-1.bin").write_bytes(b"x")
    with pytest.raises(SnapshotError, match=r"lists pytorch_model-2\.bin, which is missing"):
        snapshot.verify_weights(tmp_path)
    save_file({"x": np.zeros(1)}, tmp_path / FILE)
    snapshot.verify_weights(tmp_path)


@pytest.mark.parametrize(
    ("told", "says"),
    [
        (RemoteFile(5, None), "has 3 bytes, but the hub lists 5"),
        (RemoteFile(3, "0" * 64), "is damaged"),
    ],
)
def test_what_the_hub_told_is_compared(tmp_path: Path, told: RemoteFile, says: str) -> None:
    with pytest.raises(SnapshotError, match=r"a\.json is missing"):
        snapshot.verify_files(tmp_path, {"a.json": told})
    (tmp_path / "a.json").write_bytes(b"abc")
    with pytest.raises(SnapshotError, match=says):
        snapshot.verify_files(tmp_path, {"a.json": told})
    snapshot.verify_files(tmp_path, {"a.json": RemoteFile(None, None)})


def test_a_verified_snapshot_that_changed_is_not_verified(whole: Path) -> None:
    assert not snapshot.is_verified(whole)
    snapshot.write_note(whole, [FILE])
    assert snapshot.is_verified(whole)
    (whole / FILE).write_bytes(b"x")
    assert not snapshot.is_verified(whole)
    (whole / FILE).unlink()
    assert not snapshot.is_verified(whole)
