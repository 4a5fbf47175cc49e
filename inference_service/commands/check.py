"""`qwenvl check`: describe a model and whether it fits a device, from its configuration files alone.

Exit status: 0 = it fits, 1 = it does not fit, 2 = invalid usage.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
import os
from pathlib import Path
import re
import sys

from inference_service.commands.devices import Device, find_device
from inference_service.commands.report import UNITS, report
from inference_service.families.registry import load_spec
from inference_service.hub.resolve import (
    ModelNotFound,
    fetch_configuration,
    is_hub_id,
    resolve_model,
)
from inference_service.settings import ServiceSettings
from qwenvl.interrupts import ending_at_once


FITS, DOES_NOT_FIT, USAGE = 0, 1, 2

_SETTINGS = {
    "hub",
    "revision",
    "dtype",
    "device",
    "max_model_len",
    "gpu_memory_utilization",
    "cpu_kv_cache_mib",
    "encoder_cache_tokens",
}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "check",
        help="describe a model and whether it fits the device",
        description="Print a model's family, parts and memory requirements, read from its configuration files, and "
        "whether it fits the device. Exit status: 0 = it fits, 1 = it does not fit, 2 = invalid usage.",
    )
    parser.add_argument(
        "model", nargs="?", help="model directory or hub id (default: the embedded demo model)"
    )
    parser.add_argument(
        "--gpu-memory",
        type=parse_size,
        metavar="SIZE",
        help="assume a GPU with this much memory, for example 24GiB, instead of this machine's device;"
        " if --device lists several GPUs, each has this much",
    )
    ServiceSettings.add_flags(parser, skip=ServiceSettings.model_fields.keys() - _SETTINGS)
    parser.set_defaults(run=run)


def parse_size(text: str) -> int:
    """Number of bytes in a size such as `24GiB`, `80 GB` or `1.5TiB`.

    Raises:
        argparse.ArgumentTypeError: The text is not a size.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?([KMGT]i?B)", text.strip())
    if match is None or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 24GiB or 24GB")
    return int(float(match[1]) * UNITS[match[2]])


def run(flags: Mapping[str, object]) -> int:
    """Runs the command; returns the exit status."""
    with ending_at_once():
        return _run(flags)


def _run(flags: Mapping[str, object]) -> int:
    try:
        settings = ServiceSettings.load(flags, os.environ)
    except SystemExit as error:
        return _usage(str(error))
    try:
        spec = load_spec(_directory(settings))
    except (ModelNotFound, ValueError, OSError) as error:
        return _usage(f"cannot check this model: {error}")
    window = spec.max_position_embeddings
    if settings.max_model_len is not None and settings.max_model_len > window:
        return _usage(
            f"--max-model-len: {settings.max_model_len} exceeds the model's context window of {window} tokens"
        )
    device = _device(flags.get("gpu_memory"), settings)
    if device is None:
        return _usage(f"--device: {settings.device} was not found on this machine")
    result = report(spec, device, settings)
    print(*result.lines, sep="\n")
    return FITS if result.fits else DOES_NOT_FIT


def _directory(settings: ServiceSettings) -> Path:
    """The model's directory; a model that is not on this machine gets a directory with its configuration only."""
    model, hub, revision = settings.model, settings.hub, settings.revision
    try:
        return resolve_model(model, hub=hub, revision=revision).directory
    except ModelNotFound:
        if model is None or not is_hub_id(model):
            raise
        return fetch_configuration(model, hub=hub, revision=revision)


def _device(gpu_memory: object, settings: ServiceSettings) -> Device | None:
    if isinstance(gpu_memory, int):
        count = len(settings.device.split(","))
        name = "GPU" if count == 1 else f"{count} GPUs"
        return Device(name=name, is_gpu=True, total_bytes=count * gpu_memory)
    return find_device(settings.device, os.environ)


def _usage(message: str) -> int:
    print(message, file=sys.stderr)
    return USAGE
