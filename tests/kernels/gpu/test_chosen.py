"""A GPU takes every Triton kernel that there is, a CPU none."""

from __future__ import annotations

from dataclasses import fields

import torch

from inference_service.kernels.ops import REFERENCE, Ops, choose_ops


WITHOUT_KERNEL = {"update_slots", "record_tokens"}
"""Operations of which there is only the reference."""


def test_a_gpu_takes_all_of_them(rows, attention):
    chosen = choose_ops(torch.device("cuda:0"), torch.bfloat16)
    names = {field.name for field in fields(Ops)}
    left = {name for name in names if getattr(chosen, name) is getattr(REFERENCE, name)}
    assert left == WITHOUT_KERNEL
    modules = {getattr(chosen, name).__module__ for name in names - left}
    assert modules == {rows.__name__, attention.__name__}
    assert choose_ops(torch.device("cpu"), torch.bfloat16) == REFERENCE
