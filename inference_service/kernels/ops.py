"""The operations of a model, with implementations that are chosen once, when the model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from typing import Protocol

import torch
from torch import Tensor

from inference_service.kernels.attention import AttentionMetadata, paged_attention, write_kv
from inference_service.kernels.rms_norm import add_rms_norm, rms_norm
from inference_service.kernels.rope import apply_rope
from inference_service.kernels.silu_and_mul import silu_and_mul
from inference_service.kernels.slot_state import (
    SampledRows,
    SlotState,
    StateUpdate,
    record_tokens,
    update_slots,
)


class ApplyRope(Protocol):
    """The signature of `kernels.rope.apply_rope`."""

    def __call__(
        self, x: Tensor, cos: Tensor, sin: Tensor, *, adjacent_pairs: bool = False
    ) -> Tensor:
        """Rotates the heads of `x`; see `kernels.rope.apply_rope`."""


@dataclass(frozen=True, slots=True)
class Ops:
    """One implementation of each operation, with the arguments and results of its torch reference.

    Attributes:
        write_kv: `kernels.attention.write_kv`.
        paged_attention: `kernels.attention.paged_attention`.
        rms_norm: `kernels.rms_norm.rms_norm`.
        add_rms_norm: `kernels.rms_norm.add_rms_norm`.
        apply_rope: `kernels.rope.apply_rope`.
        silu_and_mul: `kernels.silu_and_mul.silu_and_mul`.
        update_slots: `kernels.slot_state.update_slots`.
        record_tokens: `kernels.slot_state.record_tokens`.
    """

    write_kv: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None] = write_kv
    paged_attention: Callable[[Tensor, Tensor, Tensor, AttentionMetadata, float], Tensor] = (
        paged_attention
    )
    rms_norm: Callable[[Tensor, Tensor, float], Tensor] = rms_norm
    add_rms_norm: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]] = add_rms_norm
    apply_rope: ApplyRope = apply_rope
    silu_and_mul: Callable[[Tensor], Tensor] = silu_and_mul
    update_slots: Callable[[SlotState, StateUpdate], None] = update_slots
    record_tokens: Callable[[SlotState, Tensor, SampledRows], None] = record_tokens


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


_GPU_DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})


def gpu_kernels() -> tuple[Kernel, ...]:
    """The Triton kernels; none where triton, which comes with torch for GPUs, is missing."""
    if find_spec("triton") is None:
        return ()
    from inference_service.kernels.gpu import attention, rows  # noqa: PLC0415 - imports triton

    implemented: dict[str, Callable[..., object]] = {
        "write_kv": attention.write_kv,
        "paged_attention": attention.paged_attention,
        "rms_norm": rows.rms_norm,
        "add_rms_norm": rows.add_rms_norm,
        "apply_rope": rows.apply_rope,
        "silu_and_mul": rows.silu_and_mul,
    }
    return tuple(Kernel(op, "cuda", _GPU_DTYPES, run) for op, run in implemented.items())


def choose_ops(
    device: torch.device, dtype: torch.dtype, kernels: Sequence[Kernel] | None = None
) -> Ops:
    """Chooses the operations for a model.

    Args:
        device: The model's device.
        dtype: Dtype of its activations.
        kernels: The available kernels, of which the last suitable one for an operation is chosen; None = all.
    """
    if kernels is None:
        kernels = gpu_kernels() if device.type == "cuda" else ()
    fitting = (k for k in kernels if k.device_type == device.type and dtype in k.dtypes)
    # mypy cannot check which field a kernel implements; its interpreter test compares it with the reference.
    return replace(REFERENCE, **{kernel.op: kernel.run for kernel in fitting})  # type: ignore[arg-type]
