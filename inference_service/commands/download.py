"""`qwenvl download MODEL`: fetch and verify a published model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
import os
from pathlib import Path
import sys

from inference_service.commands.devices import find_device
from inference_service.commands.report import assess
from inference_service.families.registry import load_spec
from inference_service.hub.resolve import ModelNotFound, fetch_model, is_hub_id
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
    parser.add_argument("model", help="hub id, for example Qwen/Qwen3-VL-4B-Instruct")
    parser.add_argument(
        "--local-dir", type=Path, metavar="DIR", help="target directory (default: the hub's cache)"
    )
    ServiceSettings.add_flags(parser, skip=ServiceSettings.model_fields.keys() - _SETTINGS)
    parser.set_defaults(run=run)


def run(flags: Mapping[str, object]) -> int:
    """Runs the command; returns the exit status."""
    with ending_at_once():
        return _run(flags)


def _run(flags: Mapping[str, object]) -> int:
    settings = ServiceSettings.load(flags, os.environ)
    model, directory = str(flags["model"]), flags["local_dir"]
    if not is_hub_id(model):
        print(f"{model} is not a hub id such as Qwen/Qwen3-VL-4B-Instruct", file=sys.stderr)
        return 2
    try:
        path = fetch_model(
            model,
            hub=settings.hub,
            revision=settings.revision,
            directory=directory if isinstance(directory, Path) else None,
            tell=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except ModelNotFound as error:
        print(error, file=sys.stderr)
        return 1
    device = find_device("auto", os.environ)
    assert device is not None  # auto ends at the CPU
    print(*assess(load_spec(path), device, settings).lines, sep="\n")
    print(f"directory   {path}")
    return 0
