"""Operations are chosen once for a device and dtype; without a fitting kernel it is the torch reference."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from inference_service.kernels import ops
from inference_service.kernels.ops import REFERENCE, Kernel, Ops, choose_ops
from inference_service.kernels.rms_norm import rms_norm


CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


def another_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return rms_norm(x, weight, eps)


def yet_another_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return rms_norm(x, weight, eps)


KERNEL = Kernel("rms_norm", "cuda", frozenset({torch.bfloat16}), another_rms_norm)


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_operation_without_a_fitting_kernel_is_the_reference(
    device: torch.device, dtype: torch.dtype
) -> None:
    fitting = {k.op for k in [KERNEL] if k.device_type == device.type and dtype in k.dtypes}
    chosen = choose_ops(device, dtype, [KERNEL])
    replaced = {
        field.name
        for field in fields(Ops)
        if getattr(chosen, field.name) is not getattr(REFERENCE, field.name)
    }
    assert replaced == fitting


def test_a_kernel_is_chosen_where_it_runs() -> None:
    chosen = choose_ops(CUDA, torch.bfloat16, [KERNEL])
    assert chosen.rms_norm is another_rms_norm
    assert chosen.add_rms_norm is REFERENCE.add_rms_norm
    assert choose_ops(CUDA, torch.float32, [KERNEL]) == REFERENCE
    assert choose_ops(CPU, torch.bfloat16, [KERNEL]) == REFERENCE


def test_the_last_of_several_kernels_is_chosen() -> None:
    better = Kernel("rms_norm", "cuda", frozenset({torch.bfloat16}), yet_another_rms_norm)
    assert choose_ops(CUDA, torch.bfloat16, [KERNEL, better]).rms_norm is yet_another_rms_norm


def test_a_kernel_of_an_unknown_operation_is_refused() -> None:
    with pytest.raises(ValueError, match="'softmax' is not an operation"):
        Kernel("softmax", "cuda", frozenset(), another_rms_norm)


def test_without_triton_a_gpu_has_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "find_spec", lambda _: None)
    assert choose_ops(CUDA, torch.bfloat16) == REFERENCE
    assert choose_ops(CPU, torch.float32) == REFERENCE
