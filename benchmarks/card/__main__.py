"""Runs one phase and writes its figures: `python -m benchmarks.card PHASE --device cuda --out DIR`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import datetime as dt
from importlib import import_module, metadata
import json
from pathlib import Path
import platform
import time
from typing import Any

import torch

from benchmarks.card.setting import Setting


PHASES = {
    "rates": "rates.measure",
    "kernels": "kernels.measure",
    "tuning": "tuning.measure",
    "families": "families.measure",
    "decode": "steps.decode",
    "ladder": "steps.ladder",
    "first_token": "steps.first_token",
    "profile": "steps.profiled",
    "streams": "streams.measure",
    "peer": "peer.measure",
}
"""Module and function of every phase; a module is imported for its phase only, as the card may lack a package."""


def environment(setting: Setting) -> dict[str, Any]:
    """When, where and with what a phase ran."""
    cuda = setting.device.type == "cuda"
    versions: dict[str, str | None] = {}
    for name in ("torch", "triton", "transformers", "numpy"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(setting.device) if cuda else platform.machine(),
        "cuda": torch.version.cuda if cuda else None,
        "python": platform.python_version(),
        "versions": versions,
        "tiny": setting.tiny,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a phase; the status is 1 if it shows a wrong result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("phase", choices=PHASES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="sizes for a rehearsal on a CPU")
    parser.add_argument("--out", type=Path, required=True, help="directory for PHASE.json")
    options = parser.parse_args(argv)
    setting = Setting(torch.device(options.device), options.tiny)
    module, _, function = PHASES[options.phase].partition(".")
    measure = getattr(import_module(f"benchmarks.card.{module}"), function)
    begin = time.monotonic()
    figures: dict[str, Any] = measure(setting)
    seconds = time.monotonic() - begin
    document = {"environment": environment(setting), "seconds": seconds, "figures": figures}
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{options.phase}.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"{options.phase}: {seconds:.0f} s, {path}")
    return 1 if figures.get("wrong") or figures.get("status") else 0


if __name__ == "__main__":
    raise SystemExit(main())
