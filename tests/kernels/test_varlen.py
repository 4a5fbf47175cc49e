"""Attention within segments, and what this project expects of torch's kernel for it, which runs on a GPU only."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from inference_service.kernels.varlen import Spans, flash_varlen_attention, varlen_attention


def starts(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def test_every_query_asks_its_segment_only() -> None:
    q, k, v = torch.randn(3, 12, 2, 8)
    spans = Spans(starts(0, 2, 3, 7), starts(0, 5, 6, 12), 4, 6)
    found = varlen_attention(q[:7], k, v, spans)
    of_query = torch.tensor([0, 0, 1, 2, 2, 2, 2])
    of_key = torch.tensor([0] * 5 + [1] + [2] * 6)
    mask = of_query[:, None] == of_key
    heads = [x.transpose(0, 1) for x in (q[:7], k, v)]
    expected = scaled_dot_product_attention(heads[0], heads[1], heads[2], attn_mask=mask)
    torch.testing.assert_close(found, expected.transpose(0, 1))


def test_torch_takes_the_same_arguments() -> None:
    names = list(inspect.signature(varlen_attn).parameters)
    assert names[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    # Without a mask, unless one is asked for.
    defaults = {
        name: one.default for name, one in inspect.signature(varlen_attn).parameters.items()
    }
    assert defaults.get("window_size", (-1, -1)) == (-1, -1)
    assert defaults.get("is_causal", False) is False


def test_torch_gives_the_same_shape() -> None:
    """Its own description of its kernel, for tensors without values."""
    fused = torch.empty(12, 6, 8, dtype=torch.bfloat16, device="meta")
    q, k, v = fused.split_with_sizes((2, 2, 2), dim=1)
    some = starts(0, 2, 7).to("meta")
    found = flash_varlen_attention(q[:7], k, v, Spans(some, some, 5, 5))
    assert (found.shape, found.dtype) == ((7, 2, 8), torch.bfloat16)


def test_torch_refuses_a_cpu() -> None:
    x = torch.zeros(3, 2, 8, dtype=torch.bfloat16)
    with pytest.raises(NotImplementedError, match="CPU"):
        flash_varlen_attention(x, x, x, Spans(starts(0, 3), starts(0, 3), 3, 3))
