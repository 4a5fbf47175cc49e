"""The operations of a model, with implementations that are chosen once, when the model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import wraps
from importlib.util import find_spec
import logging
from typing import Any, Protocol

import torch
from torch import Tensor

from inference_service.kernels.attention import AttentionMetadata, paged_attention
from inference_service.kernels.check_inputs import Inputs, Sizes
from inference_service.kernels.choice import choose_tokens
from inference_service.kernels.filters import lowest_kept
from inference_service.kernels.heads import HeadNorms, Rotation, rotate_and_write
from inference_service.kernels.penalties import Penalties, penalise, scaled_logits
from inference_service.kernels.rms_norm import add_rms_norm, rms_norm
from inference_service.kernels.rope import apply_rope
from inference_service.kernels.self_check import defect
from inference_service.kernels.silu_and_mul import silu_and_mul
from inference_service.kernels.skinny_linear import skinny_linear
from inference_service.kernels.slot_state import (
    SampledRows,
    SlotState,
    StateUpdate,
    record_tokens,
    update_slots,
)
from inference_service.kernels.varlen import Spans, flash_varlen_attention, varlen_attention


logger = logging.getLogger(__name__)


class ApplyRope(Protocol):
    """The signature of `kernels.rope.apply_rope`."""

    def __call__(
        self, x: Tensor, cos: Tensor, sin: Tensor, *, adjacent_pairs: bool = False
    ) -> Tensor:
        """Rotates the heads of `x`; see `kernels.rope.apply_rope`."""


class ChooseTokens(Protocol):
    """The signature of `kernels.choice.choose_tokens`."""

    def __call__(
        self,
        logits: Tensor,
        minimum: Tensor | None,
        low: Tensor,
        high: Tensor,
        drawn: Tensor | None = None,
    ) -> Tensor:
        """Draws tokens; see `kernels.choice.choose_tokens`."""


RotateAndWrite = Callable[
    [Tensor, HeadNorms | None, Rotation, tuple[Tensor, Tensor], Tensor], Tensor
]
"""The signature of `kernels.heads.rotate_and_write`."""


@dataclass(frozen=True, slots=True)
class Ops:
    """One implementation of each operation, with the arguments and results of its torch reference.

    Attributes:
        rotate_and_write: `kernels.heads.rotate_and_write`.
        paged_attention: `kernels.attention.paged_attention`.
        rms_norm: `kernels.rms_norm.rms_norm`.
        add_rms_norm: `kernels.rms_norm.add_rms_norm`.
        apply_rope: `kernels.rope.apply_rope`.
        silu_and_mul: `kernels.silu_and_mul.silu_and_mul`.
        skinny_linear: `kernels.skinny_linear.skinny_linear`.
        penalise: `kernels.penalties.penalise`.
        scaled_logits: `kernels.penalties.scaled_logits`.
        lowest_kept: `kernels.filters.lowest_kept`.
        choose_tokens: `kernels.choice.choose_tokens`.
        varlen_attention: `kernels.varlen.varlen_attention`.
        update_slots: `kernels.slot_state.update_slots`.
        record_tokens: `kernels.slot_state.record_tokens`.
    """

    rotate_and_write: RotateAndWrite = rotate_and_write
    paged_attention: Callable[[Tensor, Tensor, Tensor, AttentionMetadata, float], Tensor] = (
        paged_attention
    )
    rms_norm: Callable[[Tensor, Tensor, float], Tensor] = rms_norm
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]] = add_rms_norm
    apply_rope: ApplyRope = apply_rope
    silu_and_mul: Callable[[Tensor], Tensor] = silu_and_mul
    skinny_linear: Callable[[Tensor, Tensor, Tensor | None, int], Tensor] = skinny_linear
    penalise: Callable[[Tensor, Penalties, SlotState], None] = penalise
    scaled_logits: Callable[[Tensor, Tensor, Penalties, SlotState], Tensor] = scaled_logits
    lowest_kept: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = lowest_kept
    choose_tokens: ChooseTokens = choose_tokens
    varlen_attention: Callable[[Tensor, Tensor, Tensor, Spans], Tensor] = varlen_attention
    update_slots: Callable[[SlotState, StateUpdate], None] = update_slots
    record_tokens: Callable[[SlotState, Tensor, SampledRows], None] = record_tokens

    @property
    def packs(self) -> bool:
        """Whether attention within segments of different lengths is one launch, so that packing them pays."""
        return self.varlen_attention is not varlen_attention

    @property
    def samples_in_graphs(self) -> bool:
        """Whether every row can go through all operations of sampling: the references sort the vocabulary."""
        pairs = (
            (self.scaled_logits, scaled_logits),
            (self.lowest_kept, lowest_kept),
            (self.choose_tokens, choose_tokens),
        )
        return all(chosen is not reference for chosen, reference in pairs)


REFERENCE = Ops()
"""The torch reference of every operation, for all devices and dtypes."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """An implementation that is faster than the reference on some device.

    Attributes:
        op: The field of `Ops` that it implements.
        device_type: `cpu` or `cuda`.
        dtypes: Supported dtypes of activations.
        run: The implementation.
    """

    op: str
    device_type: str
    dtypes: frozenset[torch.dtype]
    run: Callable[..., object]

    def __post_init__(self) -> None:
        if self.op not in {field.name for field in fields(Ops)}:
            raise ValueError(f"{self.op!r} is not an operation of Ops")


_HALVES = frozenset({torch.float16, torch.bfloat16})
_GPU_DTYPES = _HALVES | {torch.float32}


def gpu_kernels() -> tuple[Kernel, ...]:
    """Triton kernels and some of torch; none where triton, which comes with torch for GPUs, is missing or broken."""
    if find_spec("triton") is None:
        return ()
    try:
        from inference_service.kernels.gpu import (  # noqa: PLC0415 - imports triton
            attention,
            choice,
            filters,
            heads,
            penalties,
            rows,
            skinny_linear,
            slot_state,
        )
    except Exception as error:  # noqa: BLE001 - the references work without it
        logger.warning("no GPU kernel can be imported, the torch references are used: %r", error)
        return ()

    implemented: dict[str, Callable[..., object]] = {
        "rotate_and_write": heads.rotate_and_write,
        "paged_attention": attention.paged_attention,
        "rms_norm": rows.rms_norm,
        "add_rms_norm": rows.add_rms_norm,
        "apply_rope": rows.apply_rope,
        "silu_and_mul": rows.silu_and_mul,
        "penalise": penalties.penalise,
        "scaled_logits": penalties.scaled_logits,
        "lowest_kept": filters.lowest_kept,
        "choose_tokens": choice.choose_tokens,
        "update_slots": slot_state.update_slots,
        "record_tokens": slot_state.record_tokens,
    }
    return (
        *(Kernel(op, "cuda", _GPU_DTYPES, _launched(run)) for op, run in implemented.items()),
        Kernel("skinny_linear", "cuda", _HALVES, _launched(skinny_linear.skinny_linear)),
        Kernel("varlen_attention", "cuda", _HALVES, flash_varlen_attention),
    )


def _launched(run: Callable[..., object]) -> Callable[..., object]:
    """Triton launches on the current GPU, wherever the tensors are; torch launches where they are."""

    @wraps(run)
    def launch(*args: Any, **kwargs: object) -> object:
        where = next(one.get_device() for one in args if hasattr(one, "get_device"))
        with torch.cuda.device(where):  # -1, of a CPU, changes nothing
            return run(*args, **kwargs)

    return launch


def choose_ops(
    devices: Sequence[torch.device],
    dtype: torch.dtype,
    kernels: Sequence[Kernel] | None = None,
    sizes: Sizes | None = None,
) -> Ops:
    """Chooses the operations for a model, after every kernel was compared with its reference on every device.

    A kernel that does not compile, raises or differs is left out, with a warning.

    Args:
        devices: The model's devices, all of one type.
        dtype: Dtype of its activations.
        kernels: The available kernels, of which the last suitable one for an operation is chosen; None = all.
        sizes: Sizes of its decoder; None = some.
    """
    if kernels is None:
        kernels = gpu_kernels() if devices[0].type == "cuda" else ()
    inputs = [Inputs(sizes or Sizes(), device, dtype) for device in devices]
    fitting = (k for k in kernels if k.device_type == devices[0].type and dtype in k.dtypes)
    chosen = {kernel.op: kernel.run for kernel in fitting if _works(kernel, inputs)}
    # mypy cannot check which field a kernel implements; the comparison with the reference does.
    return replace(REFERENCE, **chosen)  # type: ignore[arg-type]


def _works(kernel: Kernel, inputs: Sequence[Inputs]) -> bool:
    for on_device in inputs:
        if cause := defect(kernel.op, kernel.run, getattr(REFERENCE, kernel.op), on_device):
            logger.warning(
                "kernel %s is left out, its torch reference is used: on %s, %s",
                kernel.op,
                on_device.device,
                cause,
            )
            return False
    return True
