"""Cores, quota and instructions as files of the system tell them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from inference_service import processor
from inference_service.engine_client.child import _engine_environment


def test_one_logical_cpu_of_every_core() -> None:
    pairs = {cpu: frozenset({cpu % 4, cpu % 4 + 4}) for cpu in range(8)}
    assert processor.one_cpu_per_core(range(8), pairs.__getitem__) == [0, 1, 2, 3]
    assert processor.one_cpu_per_core([1, 5, 6, 7], pairs.__getitem__) == [1, 6, 7]
    assert processor.one_cpu_per_core([3], lambda cpu: frozenset({cpu})) == [3]


@pytest.mark.parametrize("text", ["0-1", "0,1", "0-0,1"])
def test_siblings_as_the_system_lists_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    for cpu in (0, 1):
        file = tmp_path / f"cpu{cpu}/topology/thread_siblings_list"
        file.parent.mkdir(parents=True)
        file.write_text(text + "\n")
    monkeypatch.setattr(processor, "_CPUS", tmp_path)
    assert processor.one_cpu_per_core([0, 1, 2]) == [0, 2]  # nothing is known about the last one


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_smallest_quota_of_a_group_and_those_above_it(tmp_path: Path) -> None:
    groups, root = tmp_path / "groups", tmp_path / "fs"
    groups.write_text("0::/slice/service\n")
    assert processor.cpu_quota(root, groups) is None
    write(root / "slice/service/cpu.max", "max 100000\n")
    assert processor.cpu_quota(root, groups) is None
    write(root / "slice/cpu.max", "250000 100000\n")
    assert processor.cpu_quota(root, groups) == 2.5
    write(root / "slice/service/cpu.max", "50000 100000\n")
    assert processor.cpu_quota(root, groups) == 0.5


def test_a_container_that_sees_its_group_as_the_root(tmp_path: Path) -> None:
    groups = tmp_path / "groups"
    groups.write_text("0::/kubepods/pod1/container\n")
    write(tmp_path / "fs/cpu.max", "300000 100000\n")
    assert processor.cpu_quota(tmp_path / "fs", groups) == 3


def test_the_quota_of_the_first_version_of_control_groups(tmp_path: Path) -> None:
    groups, root = tmp_path / "groups", tmp_path / "fs"
    groups.write_text("5:memory:/a\n4:cpu,cpuacct:/a\n0::/\n")
    write(root / "cpu/a/cpu.cfs_quota_us", "-1\n")
    write(root / "cpu/a/cpu.cfs_period_us", "100000\n")
    assert processor.cpu_quota(root, groups) is None
    write(root / "cpu/a/cpu.cfs_quota_us", "400000\n")
    assert processor.cpu_quota(root, groups) == 4


def test_threads_are_at_least_one_and_at_most_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(processor, "_siblings", lambda cpu: frozenset({cpu}))
    for quota, threads in ((None, 4), (8.0, 4), (2.5, 2), (0.5, 1)):
        monkeypatch.setattr(processor, "cpu_quota", lambda quota=quota: quota)
        assert processor.usable_cores() == threads


@pytest.mark.parametrize(
    ("flags", "fast"),
    [
        ("fpu avx2 avx512f", False),
        ("avx512f avx512_bf16 x", True),
        ("amx_tile amx_bf16", True),
        ("my_amx_bf16_x", False),
    ],
)
def test_instructions_for_bfloat16(tmp_path: Path, flags: str, fast: bool) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(f"model name : x\nflags\t\t: {flags}\n")
    assert processor.has_fast_bfloat16(info) == fast
    assert not processor.has_fast_bfloat16(tmp_path / "missing")


def test_threads_of_the_engine_wait_shortly_unless_the_operator_says_otherwise() -> None:
    assert _engine_environment({})["GOMP_SPINCOUNT"] == "20000"
    assert _engine_environment({"GOMP_SPINCOUNT": "7"})["GOMP_SPINCOUNT"] == "7"
    assert "GOMP_SPINCOUNT" not in _engine_environment({"OMP_WAIT_POLICY": "active"})
