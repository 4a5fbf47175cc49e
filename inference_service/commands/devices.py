"""The devices of this machine and their memory, found without loading torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
import shutil
import subprocess

from inference_service.process_memory import machine_bytes


_QUERY = ("--query-gpu=name,memory.total,memory.used", "--format=csv,noheader,nounits")
_TIMEOUT_S = 20.0
# Device files of drivers that have no nvidia-smi: of NVIDIA's small boards, of WSL, of AMD.
_OTHER_DRIVERS = ("nvidiactl", "nvmap", "dxg", "kfd")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device and its memory in bytes; `used_bytes` is in use by other processes.

    Several GPUs are one device, with their memory together; `gpus` has each of them.
    """

    name: str
    is_gpu: bool
    total_bytes: int
    used_bytes: int = 0
    gpus: tuple[Device, ...] = ()

    @property
    def count(self) -> int:
        """The number of GPUs that it is; 1 for a CPU."""
        return max(1, len(self.gpus))

    @classmethod
    def together(cls, gpus: Sequence[Device], name: str | None = None) -> Device:
        """Several GPUs as one device, or one as itself."""
        if len(gpus) == 1:
            return gpus[0]
        return cls(
            name=name or " + ".join(gpu.name for gpu in gpus),
            is_gpu=True,
            total_bytes=sum(gpu.total_bytes for gpu in gpus),
            used_bytes=sum(gpu.used_bytes for gpu in gpus),
            gpus=tuple(gpus),
        )


def find_device(wanted: str, environ: Mapping[str, str]) -> Device | None:
    """Finds the device for a value of `--device`; None = a GPU in it does not exist.

    Args:
        wanted: `auto` (the first GPU, else the CPU), `cpu`, `cuda`, `cuda:N`, or several GPUs. Several GPUs share a
            model and are reported as one device with their total memory.
        environ: `CUDA_VISIBLE_DEVICES` is honoured, as in the engine.
    """
    if wanted == "cpu":
        return _cpu()
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    gpus = [_gpu(int(name.partition(":")[2] or 0), visible) for name in wanted.split(",")]
    found = [gpu for gpu in gpus if gpu is not None]
    if len(found) < len(gpus):
        return _cpu() if wanted == "auto" else None
    return Device.together(found)


def may_exist(wanted: str, environ: Mapping[str, str]) -> bool:
    """Whether the engine may find a GPU that `find_device` does not: a part of one, or one without nvidia-smi."""
    if wanted in ("auto", "cpu") or "MIG-" in environ.get("CUDA_VISIBLE_DEVICES", ""):
        return True
    return shutil.which("nvidia-smi") is None and any(
        Path("/dev", name).exists() for name in _OTHER_DRIVERS
    )


def _gpu(index: int, visible: str | None) -> Device | None:
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    identity = str(index)
    if visible is not None:
        identities = [word.strip() for word in visible.split(",") if word.strip()]
        if index >= len(identities):
            return None
        identity = identities[index]
    try:
        result = subprocess.run(
            [command, f"--id={identity}", *_QUERY],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=True,
        )
        name, total_mib, used_mib = result.stdout.strip().splitlines()[0].rsplit(",", 2)
        total, used = int(total_mib) * 2**20, int(used_mib) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None
    return Device(name=f"cuda:{index} {name}", is_gpu=True, total_bytes=total, used_bytes=used)


def _cpu() -> Device:
    return Device(name="cpu", is_gpu=False, total_bytes=machine_bytes())
