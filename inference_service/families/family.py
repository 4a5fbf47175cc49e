"""What a family of models brings: the plug between its own module and everything that serves all families alike.

Owns the shape of the plug and of the entries of a tensor table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from inference_service.families.config_file import Section
from inference_service.model_spec import BoxNotation, ModelSpec


LM_HEAD = "lm_head.weight"
EMBEDDING = "model.language_model.embed_tokens.weight"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a checkpoint.

    Attributes:
        name: In the checkpoint.
        shape: In the checkpoint.
        parameter: Our parameter that holds it.
        part: `vision`, `adapter` or `language`.
        row: First row of it there: projections that share an input are fused, one below the other.
    """

    name: str
    shape: tuple[int, ...]
    parameter: str
    part: str
    row: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A family of models.

    Attributes:
        name: What `GetModel` tells.
        model_type: As config.json writes it.
        read: From a checkpoint's directory and its config.json to what the checkpoint is; raises `SpecError`.
        tensors: Every tensor that a checkpoint must have.
        rebuilt: Tensors that a checkpoint may have and that are computed anew: buffers of the original.
        current_name: From a name in an older checkpoint to the one in `tensors`; others stay as they are.
        boxes: How its answers name places in an image.
    """

    name: str
    model_type: str
    read: Callable[[Path, Section], ModelSpec]
    tensors: Callable[[ModelSpec], Iterable[TensorEntry]]
    rebuilt: frozenset[str] = frozenset()
    current_name: Callable[[str], str] = str
    boxes: BoxNotation = BoxNotation.NONE
