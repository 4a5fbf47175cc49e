"""Attention metadata from plain lists, for tests of kernels and models."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from inference_service.kernels.attention import AttentionMetadata


def attention_metadata(
    slot_mapping: torch.Tensor,
    page_table: torch.Tensor,
    query_start: Sequence[int],
    context_lens: Sequence[int],
) -> AttentionMetadata:
    """Metadata on the CPU: tensors [T] and [S, P], then S + 1 and S numbers."""
    starts, contexts = np.array(query_start, np.int32), np.array(context_lens, np.int32)
    return AttentionMetadata(
        slot_mapping=slot_mapping,
        page_table=page_table.int(),
        query_start=torch.from_numpy(starts),
        context_lens=torch.from_numpy(contexts),
        host_query_start=starts,
        host_context_lens=contexts,
        max_query_len=int(np.diff(starts).max()),
        max_context_len=int(contexts.max()),
    )
