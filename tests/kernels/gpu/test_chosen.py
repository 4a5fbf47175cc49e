"""A GPU takes every Triton kernel that there is, a CPU none."""

from __future__ import annotations

from dataclasses import fields

import torch

from inference_service.kernels.ops import REFERENCE, Ops, choose_ops


def test_a_gpu_takes_all_of_them(rows, attention):
    chosen = choose_ops(torch.device("cuda:0"), torch.bfloat16)
    modules = {getattr(chosen, field.name).__module__ for field in fields(Ops)}
    assert modules == {rows.__name__, attention.__name__}
    assert choose_ops(torch.device("cpu"), torch.bfloat16) == REFERENCE
