"""The memory of GPUs by their names, for `qwenvl check --gpu`."""

from __future__ import annotations

import argparse
import difflib
import re


_MIB = {
    "t4": 15360,
    "l4": 23034,
    "a10": 23028,
    "a10g": 23028,
    "a30": 24576,
    "a40": 46068,
    "l40": 46068,
    "l40s": 46068,
    "v100": 16384,
    "v100-32gb": 32768,
    "a100": 81920,
    "a100-40gb": 40960,
    "a800": 81920,
    "h20": 97871,
    "h100": 81559,
    "h100-nvl": 95830,
    "h800": 81559,
    "h200": 143771,
    "b200": 183359,
    "rtx-3060": 12288,
    "rtx-3080": 10240,
    "rtx-3090": 24576,
    "rtx-4080": 16376,
    "rtx-4090": 24564,
    "rtx-5080": 16303,
    "rtx-5090": 32607,
    "rtx-a6000": 49140,
    "rtx-6000-ada": 49140,
    "rtx-pro-6000": 97887,
}
"""`memory.total` of nvidia-smi in MiB, as drivers since 470 report it; CUDA has some hundred MiB less.

Compared with published output of nvidia-smi: T4, L4, A10, L40S, A100 and H100 in github.com/modal-labs/modal-client,
pull request 2797; A800 in github.com/vllm-project/vllm, issue 41519; RTX 4090 in github.com/RLinf/RLinf, issue 255; RTX
5090 in github.com/noonghunna/club-3090, issue 1261; RTX 3060 in github.com/geerlingguy/raspberry-pi-pcie-devices, issue
790; the others in logs in public repositories. Data-centre cards have ECC on, which takes a part of GDDR memory; RTX
A6000 and RTX 6000 Ada have it off, and 46068 MiB with it. The RTX 3080 is the one with 10 GB.
"""
_NOISE = re.compile(r"nvidia|geforce|tesla|sxm\d?|pcie|hbm\d?e?|[\s_-]+")
_NAMES = {_NOISE.sub("", name): name for name in _MIB} | {
    # Names with the size that the plain name already means.
    **{f"{name}80gb": name for name in ("a100", "a800", "h100", "h800")},
    "v10016gb": "v100",
    "h200141gb": "h200",
    "h100nvl94gb": "h100-nvl",
    "h2096gb": "h20",
    **{name: f"rtx-{name}" for name in ("3060", "3080", "3090", "4080", "4090", "5080", "5090")},
    "a6000": "rtx-a6000",
    "6000ada": "rtx-6000-ada",
}


def parse_card(text: str) -> tuple[str, int]:
    """Name and memory in bytes of a GPU such as `h100`, `A100-40GB` or `NVIDIA GeForce RTX 4090`.

    Raises:
        argparse.ArgumentTypeError: The name is not known.
    """
    plain = _NOISE.sub("", text.lower())
    name = _NAMES.get(plain)
    if name is None:
        close = difflib.get_close_matches(plain, _NAMES, n=1, cutoff=0.6)
        hint = f"did you mean {_NAMES[close[0]]}? " if close else ""
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a known GPU; {hint}known: {', '.join(_MIB)}; for others: --gpu-memory SIZE"
        )
    return name, _MIB[name] * 2**20
