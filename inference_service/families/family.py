"""The interface of a family of models to the code that serves all families.

A family is a package with the modules `spec`, `text` and `vision`; its `__init__` holds the `Family` and imports
`spec`. `text` and `vision` are imported when used: the front loads `text`, the engine loads `vision`, which alone needs
torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from inference_service.families.config_file import Section
from inference_service.families.positions import PositionRule
from inference_service.model_spec import BoxNotation, ModelSpec


if TYPE_CHECKING:
    from inference_service.kernels.ops import Ops
    from inference_service.text.prompt import ChatFormat
    from inference_service.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a checkpoint.

    Attributes:
        name: Name in the checkpoint.
        shape: Shape in the checkpoint.
        parameter: Name of the model's parameter that takes it.
        part: `vision`, `adapter` or `language`.
        row: Its first row in the parameter: projections that share an input are fused along their rows.
    """

    name: str
    shape: tuple[int, ...]
    parameter: str
    part: str
    row: int = 0

    def with_bias(self) -> tuple[TensorEntry, TensorEntry]:
        """This weight, and the bias of `shape[0]` values beside it: `bias` in place of `weight` in both names."""
        bias = replace(
            self,
            name=f"{self.name.removesuffix('weight')}bias",
            shape=self.shape[:1],
            parameter=f"{self.parameter.removesuffix('weight')}bias",
        )
        return self, bias


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """The operator's options for the text processing of a model.

    Attributes:
        history_window: Maximum tokens of history; older turns are dropped. None = no limit.
    """

    history_window: int | None = None


class TextModule(Protocol):
    """The module `text` of a family."""

    def load_text(
        self, model_dir: Path, spec: ModelSpec, options: TextOptions
    ) -> tuple[Tokenizer, ChatFormat]:
        """Loads tokenizer and chat format; arguments and errors as `Family.load_text`."""


class VisionModule(Protocol):
    """The module `vision` of a family."""

    @property
    def VisionTower(self) -> Callable[[Any, Ops], Any]:  # noqa: N802 - the name of a class
        """The class of the vision tower, a `torch.nn.Module` constructed from `ModelSpec.vision` and the kernels.

        Called with patches (for each image [n, patch_values], in the order of `Patchifier`) and grids (for each image
        (times, rows, columns) in patches), it returns for each image [num_tokens, hidden * (1 + deepstack levels)] in
        the dtype of its weights. The results may be views of one tensor.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A family of models.

    Attributes:
        name: Name as `GetModel` returns it.
        model_type: `model_type` in config.json.
        package: Name of the package with the modules `text` and `vision`.
        read: Reads the specification from a checkpoint's directory and its config.json; raises `SpecError`.
        tensors: Lists every tensor that a checkpoint must have.
        positions: Computes the positions of a prompt's tokens.
        rebuilt: Tensors of a checkpoint that are ignored because they are recomputed: buffers of the original.
        current_name: Maps the tensor names of older checkpoints to those in `tensors`; keeps others.
        boxes: How its answers write bounding boxes.
        pickled_weights: It was released as `.bin` shards only; they are fetched, and read with `weights_only`.
        supports_history_window: Old turns can be dropped from a prompt.
        memory_remarks: Remarks on the total memory in reports, by dtype.
        refused_relatives: Messages for related models that are not supported, by `model_type`.
    """

    name: str
    model_type: str
    package: str
    read: Callable[[Path, Section], ModelSpec]
    tensors: Callable[[ModelSpec], Iterable[TensorEntry]]
    positions: PositionRule
    rebuilt: frozenset[str] = frozenset()
    current_name: Callable[[str], str] = str
    boxes: BoxNotation = BoxNotation.NONE
    pickled_weights: bool = False
    supports_history_window: bool = False
    memory_remarks: Mapping[str, str] = field(default_factory=dict)
    refused_relatives: Mapping[str, str] = field(default_factory=dict)

    def load_text(
        self, model_dir: Path, spec: ModelSpec, options: TextOptions | None = None
    ) -> tuple[Tokenizer, ChatFormat]:
        """Loads the tokenizer and the chat format of a model; torch-free.

        Args:
            model_dir: The model's directory.
            spec: The model.
            options: The operator's options; None = no options.

        Raises:
            OSError: A file cannot be read.
            ValueError: A file is malformed or does not match the model, or an option is not supported.
        """
        options = options or TextOptions()
        if options.history_window is not None and not self.supports_history_window:
            raise ValueError(f"--history-window is not supported by {self.name} models: remove it")
        module = cast("TextModule", import_module(f"{self.package}.text"))
        return module.load_text(model_dir, spec, options)

    def new_vision_tower(self, spec: ModelSpec, ops: Ops) -> Any:
        """The vision tower of a model, a `torch.nn.Module` with uninitialised parameters; imports torch."""
        module = cast("VisionModule", import_module(f"{self.package}.vision"))
        return module.VisionTower(spec.vision, ops)
