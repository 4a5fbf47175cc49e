"""A GPU takes every Triton kernel that there is and that gives the results of its reference, a CPU none."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from inference_service.kernels.check_inputs import Inputs, Sizes
from inference_service.kernels.ops import REFERENCE, Kernel, Ops, choose_ops, gpu_kernels
from inference_service.kernels.self_check import CASES, LIMITS, defect


CPU = torch.device("cpu")
OF_TORCH = {"varlen_attention"}
"""Operations whose kernel is that of torch, which runs on a GPU only."""


def interpreted() -> list[Kernel]:
    """The kernels as the interpreter runs them: on a CPU."""
    return [
        replace(kernel, device_type="cpu") for kernel in gpu_kernels() if kernel.op not in OF_TORCH
    ]


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
def test_a_gpu_takes_all_of_them(rows, heads, attention, dtype, caplog):
    kernels = [kernel for kernel in interpreted() if dtype in kernel.dtypes]
    if dtype == torch.bfloat16:
        # The interpreter multiplies the bits of bfloat16 matrices; on a CPU the check finds just that.
        kernels = [one for one in kernels if one.op not in {"paged_attention", "skinny_linear"}]
    chosen = choose_ops([CPU], dtype, kernels)
    assert caplog.messages == []
    names = {field.name for field in fields(Ops)}
    taken = {name for name in names if getattr(chosen, name) is not getattr(REFERENCE, name)}
    assert taken == {kernel.op for kernel in kernels}
    modules = {getattr(chosen, name).__module__ for name in taken}
    assert all(module.startswith("inference_service.kernels.gpu.") for module in modules)
    assert choose_ops([CPU], dtype) == REFERENCE


def test_every_kernel_has_a_check(rows, attention):
    kernels = {kernel.op for kernel in gpu_kernels()}
    assert kernels == set(CASES) == {field.name for field in fields(Ops)}
    assert {kernel.device_type for kernel in gpu_kernels()} == {"cuda"}


def test_sizes_of_a_model(rows, attention):
    sizes = Sizes(12, 2, 80, 100, 1100, vocab_size=1025, rotated=80)
    inputs = Inputs(sizes, CPU, torch.float16)
    for kernel in interpreted():
        assert defect(kernel.op, kernel.run, getattr(REFERENCE, kernel.op), inputs) == ""
