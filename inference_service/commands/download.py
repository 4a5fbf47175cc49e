"""`qwenvl download [MODEL]`: fetch and verify a published model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
import os
from pathlib import Path
import sys

from inference_service.commands.devices import find_device
from inference_service.commands.report import assess
from inference_service.commands.subject import read_subject
from inference_service.hub.resolve import ModelNotFound, fetch_model, is_hub_id, obtain_model
from inference_service.settings import ServiceSettings
from qwenvl.interrupts import ending_at_once


_SETTINGS = {"hub", "revision"}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "download",
        help="fetch and verify a model",
        description="Fetch a model from ModelScope or Hugging Face: weights, configuration and vocabulary, but no "
        "code. Sizes and hashes are verified; an interrupted download resumes where it stopped.",
    )
    parser.add_argument(
        "model",
        nargs="?",
        help="hub id, for example Qwen/Qwen3-VL-4B-Instruct (default: QWENVL_MODEL)",
    )
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "--local-dir", type=Path, metavar="DIR", help="target directory (default: the hub's cache)"
    )
    target.add_argument(
        "--if-absent",
        action="store_true",
        help="do not ask the hub if the hub's cache has this revision complete: a pod starts without the hub",
    )
    ServiceSettings.add_flags(parser, skip=ServiceSettings.model_fields.keys() - _SETTINGS)
    parser.set_defaults(run=run)


def run(flags: Mapping[str, object]) -> int:
    """Runs the command; returns the exit status."""
    with ending_at_once():
        return _run(flags)


def _run(flags: Mapping[str, object]) -> int:
    # Without a MODEL, the variable counts.
    given = {name: value for name, value in flags.items() if name != "model" or value is not None}
    settings = ServiceSettings.load(given, os.environ)
    model = settings.model
    if model is None:
        print("no model: name one, or set QWENVL_MODEL", file=sys.stderr)
        return 2
    if not is_hub_id(model):
        print(f"{model} is not a hub id such as Qwen/Qwen3-VL-4B-Instruct", file=sys.stderr)
        return 2
    try:
        path = _fetch(model, settings, flags)
    except ModelNotFound as error:
        print(error, file=sys.stderr)
        return 1
    device = find_device("auto", os.environ)
    assert device is not None  # auto ends at the CPU
    print(*assess(read_subject(path, "auto"), device, settings).lines, sep="\n")
    print(f"directory   {path}")
    return 0


def _fetch(model: str, settings: ServiceSettings, flags: Mapping[str, object]) -> Path:
    """The directory of the model; raises ModelNotFound."""
    directory = flags["local_dir"]
    if flags["if_absent"]:
        return obtain_model(model, hub=settings.hub, revision=settings.revision, tell=_tell)
    return fetch_model(
        model,
        hub=settings.hub,
        revision=settings.revision,
        directory=directory if isinstance(directory, Path) else None,
        tell=_tell,
    )


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
