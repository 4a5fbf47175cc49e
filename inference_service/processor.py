"""The processor as this process may use it: its cores, the quota of the container, its instructions. Linux."""

from __future__ import annotations

from collections.abc import Callable, Iterable
import os
from pathlib import Path


_CGROUPS = Path("/sys/fs/cgroup")
_CPUS = Path("/sys/devices/system/cpu")
_FAST_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16"})
"""Flags of processors that multiply bfloat16 faster than float32; others only convert it."""


def has_fast_bfloat16(info: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor has instructions that multiply bfloat16 matrices."""
    try:
        lines = info.read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith("flags")), "")
    return not _FAST_BFLOAT16.isdisjoint(flags.split())


def one_cpu_per_core(
    allowed: Iterable[int], siblings: Callable[[int], frozenset[int]] | None = None
) -> list[int]:
    """The first allowed logical CPU of every core: hyperthreads of one core share its arithmetic units.

    Args:
        allowed: The logical CPUs that the process may use.
        siblings: The logical CPUs of the core of one; None = as the system says.
    """
    siblings = siblings or _siblings
    chosen: list[int] = []
    taken: set[int] = set()
    for cpu in sorted(allowed):
        if cpu not in taken:
            chosen.append(cpu)
            taken |= siblings(cpu)
    return chosen


def _siblings(cpu: int) -> frozenset[int]:
    try:
        text = (_CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text(encoding="ascii")
    except OSError:
        return frozenset({cpu})
    found = {cpu}
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def cpu_quota(root: Path = _CGROUPS, cgroup: Path = Path("/proc/self/cgroup")) -> float | None:
    """The cores' worth of time that the control group of this process, or one above it, may use; None = no limit.

    Args:
        root: Where control groups are mounted.
        cgroup: The groups of this process.
    """
    try:
        lines = cgroup.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            read, base = _quota_of_v2, root
        elif "cpu" in controllers.split(","):
            read, base = _quota_of_v1, root / "cpu"
        else:
            continue
        group = base / path.lstrip("/")
        # In a container, the path may be that of the host; the group is then mounted at the root.
        quotas += [
            quota
            for folder in (group, *group.parents)
            if folder.is_relative_to(base) and (quota := read(folder)) is not None
        ]
    return min(quotas, default=None)


def _quota_of_v2(folder: Path) -> float | None:
    words = _words(folder / "cpu.max")
    if len(words) != 2 or words[0] == "max":
        return None
    return int(words[0]) / int(words[1])


def _quota_of_v1(folder: Path) -> float | None:
    quota, period = (_words(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    if not quota or not period or int(quota[0]) <= 0:
        return None
    return int(quota[0]) / int(period[0])


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except OSError:
        return []


def usable_cores() -> int:
    """The number of threads that compute without sharing a core or exceeding the quota; at least 1."""
    cores = len(one_cpu_per_core(os.sched_getaffinity(0)))
    quota = cpu_quota()
    return max(1, cores if quota is None else min(cores, int(quota)))
