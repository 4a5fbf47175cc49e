"""Finds the directory of a model.

Owns the meaning of MODEL on the command line: absent, a directory, a hub id. Must not know what is in a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
import re

from inference_service.demo import MODEL_DIR


DEMO_NAMES = ("qwen-vl-demo", "qwen-vl")

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class ModelNotFound(Exception):  # noqa: N818 - it names what happened
    """MODEL names no model that is on this machine; the message says what to do."""


@dataclass(frozen=True, slots=True)
class ResolvedModel:
    """A model on disk and the names it answers to, canonical name first."""

    directory: Path
    served_names: tuple[str, ...]


def resolve_model(model: str | None, served_names: tuple[str, ...] = ()) -> ResolvedModel:
    """Turns MODEL into a directory.

    Args:
        model: A directory, a hub id, or None for the embedded demo model.
        served_names: Names that the operator chose; empty = the demo's names or the directory's own name.

    Raises:
        ModelNotFound: Nothing on this machine fits.
    """
    if model is None:
        return ResolvedModel(MODEL_DIR, served_names or DEMO_NAMES)
    directory = Path(model)
    if (directory / "config.json").is_file():
        return ResolvedModel(directory, served_names or (directory.resolve().name,))
    if directory.is_dir():
        raise ModelNotFound(f"{model} has no config.json: it is no model directory")
    if _HUB_ID.fullmatch(model):
        local = f"models/{directory.name}"
        raise ModelNotFound(
            f"{model} is not a directory. Download it first:\n"
            f"  modelscope download {model} --local-dir {local}\n"
            f"  qwenvl serve {local}"
        )
    raise ModelNotFound(f"{model} is neither a directory nor a hub id")
