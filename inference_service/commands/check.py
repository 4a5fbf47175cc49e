"""`qwenvl check`: describe a model, whether it fits a device, and how to serve it, from its configuration files alone.

Exit status: 0 = it fits, 1 = it does not fit, 2 = invalid usage.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
import json
import os
from pathlib import Path
import re
import shlex
import sys

from inference_service.commands.cards import parse_card
from inference_service.commands.devices import Device, find_device
from inference_service.commands.report import UNITS, Assessment, assess
from inference_service.commands.subject import read_subject, remark_about
from inference_service.hub.resolve import (
    ModelNotFound,
    fetch_configuration,
    is_hub_id,
    resolve_model,
)
from inference_service.settings import ServiceSettings
from qwenvl.command_line import EXAMPLES
from qwenvl.interrupts import ending_at_once


FITS, DOES_NOT_FIT, USAGE = 0, 1, 2

_MAX_GPUS = 8
_EXAMPLES = (
    EXAMPLES
    + """\
  qwenvl check Qwen/Qwen3-VL-4B-Instruct             on this machine's device
  qwenvl check Qwen/Qwen2.5-VL-72B-Instruct --gpu h100
  qwenvl check ./my-model --gpu-memory 24GiB --max-model-len 32768 --json"""
)

_SETTINGS = {
    "backend",
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
        "whether it fits the device. If it fits one or several such GPUs, the last line is the command that serves it: "
        "on the smallest number of GPUs, with the longest context that fits. Exit status: 0 = it fits, 1 = it does not "
        "fit the given device, 2 = invalid usage.",
        epilog=_EXAMPLES,
    )
    parser.add_argument(
        "model", nargs="?", help="model directory or hub id (default: the embedded demo model)"
    )
    assumed = parser.add_mutually_exclusive_group()
    assumed.add_argument(
        "--gpu",
        type=parse_card,
        metavar="NAME",
        help="assume a GPU with this name, for example h100, a100-40gb or rtx-4090; as --gpu-memory",
    )
    assumed.add_argument(
        "--gpu-memory",
        type=parse_size,
        metavar="SIZE",
        help="assume a GPU with this much memory, for example 24GiB, instead of this machine's device;"
        " if --device lists several GPUs, each has this much",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, with sizes in bytes"
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
        directory = _directory(settings)
        spec = read_subject(directory, settings.backend)
        remark = remark_about(directory, spec)
    except (ModelNotFound, ValueError, OSError) as error:
        return _usage(f"cannot check this model: {error}")
    window = spec.max_position_embeddings
    if settings.max_model_len is not None and settings.max_model_len > window:
        return _usage(
            settings.problem(
                "max_model_len",
                settings.max_model_len,
                f"exceeds the model's context window of {window} tokens",
            )
        )
    is_assumed = bool(flags["gpu"] or flags["gpu_memory"])
    if settings.device == "cpu" and is_assumed:
        text = "is no GPU, but --gpu or --gpu-memory assumes one; leave one of them out"
        return _usage(settings.problem("device", "cpu", text))
    devices = _Devices.of(flags, settings)
    device = devices.asked
    if device is None:
        return _usage(settings.problem("device", settings.device, "was not found on this machine"))
    asked = assess(spec, device, settings)
    fitting = (found for other in devices if (found := assess(spec, other, settings)).fits)
    best = asked if asked.fits and devices.fixed else next(fitting, None)
    command = None if best is None else _command(best, settings, flags)
    if flags["json"]:
        print(json.dumps(asked.as_json() | {"remark": remark, "command": command}))
    else:
        print(*filter(None, (remark, *asked.lines)), sep="\n")
        if best is None and is_assumed and not devices.fixed:
            print(f"nor does it fit on {_MAX_GPUS} such GPUs")
        if best is not None and command is not None:
            if not asked.fits:
                print(f"it fits on {best.device.count} such GPUs:")
            print(command)
    return FITS if asked.fits else DOES_NOT_FIT


def _command(best: Assessment, settings: ServiceSettings, flags: Mapping[str, object]) -> str:
    """The command that serves the model."""
    words = ["qwenvl", "serve", *([settings.model] if settings.model else [])]
    room, window = best.room, best.model.window_tokens
    length = room.context_tokens
    if settings.max_model_len is None and length < window:
        length -= length % settings.kv_page_size  # a page that is not whole holds nothing
    device = "cpu"
    if best.device.is_gpu:
        one_by_name = settings.device not in ("auto", "cuda")
        numbers = range(best.device.count)
        device = settings.device if one_by_name else ",".join(f"cuda:{n}" for n in numbers)
    words += ["--device", device, "--dtype", best.model.dtype, "--max-model-len", str(length)]
    for name in sorted(_SETTINGS - {"device", "dtype", "max_model_len"}):
        if name in flags:
            words += ["--" + name.replace("_", "-"), str(flags[name])]
    return shlex.join(words)


@dataclass(frozen=True, slots=True)
class _Devices:
    """The devices on which the model may be served, from one GPU to several.

    Attributes:
        asked: The device that was asked about; None = it is not there.
        fixed: Only this one: it was named, or there is no GPU.
        more: The device with so many GPUs; None = there are not so many.
    """

    asked: Device | None
    fixed: bool
    more: Callable[[int], Device | None]

    @classmethod
    def of(cls, flags: Mapping[str, object], settings: ServiceSettings) -> _Devices:
        """The devices of this machine, or those to assume."""
        named = settings.device not in ("auto", "cuda")
        card, size = flags["gpu"], flags["gpu_memory"]
        if isinstance(card, tuple):
            name, size = card
        else:
            name = "GPU"
        if isinstance(size, int):
            count = len(settings.device.split(","))

            def assumed(count: int) -> Device:
                one = Device(name=name, is_gpu=True, total_bytes=size)
                return Device.together([one] * count, f"{count} {name}s")

            return cls(assumed(count), named, assumed)

        def present(count: int) -> Device | None:
            return find_device(",".join(f"cuda:{n}" for n in range(count)), os.environ)

        asked = find_device(settings.device, os.environ)
        return cls(asked, named or asked is None or not asked.is_gpu, present)

    def __iter__(self) -> Iterator[Device]:
        if self.asked is not None and self.fixed:
            yield self.asked
            return
        for count in range(1, _MAX_GPUS + 1):
            if (device := self.more(count)) is None:
                return
            yield device


def _directory(settings: ServiceSettings) -> Path:
    """The model's directory; a model that is not on this machine gets a directory with its configuration only."""
    model, hub, revision = settings.model, settings.hub, settings.revision
    try:
        return resolve_model(model, hub=hub, revision=revision).directory
    except ModelNotFound:
        if model is None or not is_hub_id(model):
            raise
        return fetch_configuration(model, hub=hub, revision=revision)


def _usage(message: str) -> int:
    print(message, file=sys.stderr)
    return USAGE
