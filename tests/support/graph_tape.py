"""What a CUDA graph is, on a CPU: the operations of a capture with the tensors and numbers that they had.

A replay runs these operations again, in order, over the same memory; no Python of what was captured runs. So a number
that the host computed stays as it was, and an input that is not in the memory that was captured is not seen. As in a
pool of memory that graphs share, nothing is left of earlier results at the beginning of a replay.

A capture refuses what CUDA refuses: reading results on the host, sizes that depend on them, and data of the host. All
tensors must come from operations of the capture, or be named before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from inference_service.engine import assembly, loader, step_results
from inference_service.engine.graphs import DecodeStep
from inference_service.engine_protocol.messages import EngineConfig
from inference_service.kernels.attention import AttentionMetadata, paged_attention
from inference_service.kernels.ops import REFERENCE


_SYNCHRONOUS: Final = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::is_nonzero",
    "aten::_unique2",
    "aten::bincount",
}
_READ_BY_HOST: Final = {
    torch.Tensor.tolist,
    torch.Tensor.item,
    torch.Tensor.numpy,
    torch.Tensor.cpu,
    torch.Tensor.__bool__,
    torch.Tensor.__int__,
    torch.Tensor.__float__,
    torch.Tensor.__index__,
    torch.tensor,
    torch.as_tensor,
    torch.from_numpy,
}


class NotPermittedError(RuntimeError):
    """CUDA would refuse this in a capture, or read stale memory in a replay."""


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(*values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


@dataclass(slots=True)
class _Entry:
    func: Any
    args: Any
    kwargs: Any
    results: list[Tensor]
    fresh: bool


@dataclass(slots=True)
class Tape:
    """The operations of one capture."""

    entries: list[_Entry] = field(default_factory=list)
    num_replays: int = 0

    def replay(self) -> None:
        """Runs all operations again."""
        self.num_replays += 1
        with torch.inference_mode():
            self._forget()
            for entry in self.entries:
                if not entry.fresh and not entry.func._schema.is_mutable:
                    continue  # a view of memory that is still there
                again = _tensors(entry.func(*entry.args, **entry.kwargs))
                if entry.fresh and entry.func._schema.name != "aten::empty":
                    for result, value in zip(entry.results, again, strict=True):
                        result.copy_(value)

    def _forget(self) -> None:
        for entry in self.entries:
            for result in entry.results if entry.fresh else ():
                kind = result.dtype
                worst = torch.nan if kind.is_floating_point else kind != torch.bool and -(2**30)
                result.fill_(worst)


class _Recording(TorchDispatchMode):
    def __init__(self, tape: Tape, known: Iterable[Tensor]) -> None:
        super().__init__()
        self._tape = tape
        self._kept = list(known)  # so that no address is used again
        self._known = {_storage(tensor) for tensor in self._kept}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        given = _tensors(args, kwargs)
        if name in _SYNCHRONOUS or (name.startswith("aten::index") and _by_flags(args)):
            raise NotPermittedError(f"operation not permitted when stream is capturing: {name}")
        for tensor in given:
            if tensor.numel() and _storage(tensor) not in self._known:
                raise NotPermittedError(f"{name} reads a tensor of unknown origin")
        out = func(*args, **kwargs)
        results = _tensors(out)
        inputs = {_storage(tensor) for tensor in given}
        fresh = not any(_storage(result) in inputs for result in results)
        self._kept += results
        self._known |= {_storage(result) for result in results}
        self._tape.entries.append(_Entry(func, args, kwargs, results, fresh))
        return out


def _by_flags(args: Any) -> bool:
    places = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else ()
    return any(place is not None and place.dtype == torch.bool for place in places)


class _NoReads(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READ_BY_HOST:
            raise NotPermittedError(f"operation not permitted when stream is capturing: {func}")
        return func(*args, **(kwargs or {}))


class TapeCapture:
    """What `CudaCapture` is, on a CPU.

    Attributes:
        tapes: All captures, in order.
        count: Number of captures, with those that ended with an error.
        breaks: By the number of a capture, the error with which it ends.
        is_lost: The device has failed for good.
    """

    def __init__(self) -> None:
        self.tapes: list[Tape] = []
        self.breaks: dict[int, Exception] = {}
        self.is_lost = False
        self.count = 0

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        count, self.count = self.count, self.count + 1
        work()
        if count in self.breaks:
            raise self.breaks[count]
        tape = Tape()
        with _NoReads(), _Recording(tape, _fixed(work)):
            work()
        self.tapes.append(tape)
        return tape.replay

    def settle(self) -> None:
        if self.is_lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def trim(self) -> None:
        pass


def _fixed(work: Any) -> list[Tensor]:
    """What stays at its address, for the step whose `compute` this is."""
    step: DecodeStep = work.__self__
    around = step._around
    decoder = around.model.decoder
    return [
        *_tensors(vars(step), decoder._rope, around.kv_cache),
        *around.model.parameters(),
        around.state.last_tokens,
        around.state.page_table,
        around.state.history,
        around.state.counts,
    ]


def attend(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, meta: AttentionMetadata, scale: float
) -> Tensor:
    """`paged_attention`; for a graph from what is on the device alone, as the Triton kernel computes it."""
    if len(meta.host_query_start):
        return paged_attention(q, k_cache, v_cache, meta, scale)
    assert meta.max_query_len == 1
    pages = meta.page_table[:, : -(-meta.max_context_len // k_cache.shape[1])]
    k, v = (cache[pages].flatten(1, 2) for cache in (k_cache, v_cache))
    unseen = torch.arange(k.shape[1]) >= meta.context_lens[:, None]
    grouped = q.unflatten(1, (k.shape[2], -1))
    scores = torch.einsum("shgd,skhd->shgk", grouped, k) * scale
    weights = scores.masked_fill(unseen[:, None, None], -torch.inf).softmax(-1)
    v = v.masked_fill(unseen[:, :, None, None], 0)
    return torch.einsum("shgk,skhd->shgd", weights, v).flatten(1, 2)


def install(monkeypatch: pytest.MonkeyPatch, *, samples: bool = True) -> TapeCapture:
    """Lets engines that are made from now on use graphs on a CPU; returns what captures them.

    Args:
        monkeypatch: Of the test.
        samples: The graphs sample, too.
    """
    capture = TapeCapture()
    # As kernels beside the references, so that graphs sample.
    names = ("scaled_logits", "lowest_kept", "choose_tokens") if samples else ()
    ops = replace(
        REFERENCE,
        paged_attention=attend,
        **{name: partial(getattr(REFERENCE, name)) for name in names},
    )

    def capture_for(config: EngineConfig, model: Any) -> TapeCapture | None:
        return capture if config.cuda_graphs == "auto" else None

    def copied(tensor: Tensor) -> Tensor:
        return tensor.clone()  # a GPU copies, too

    monkeypatch.setattr(loader, "ops_for", lambda *_: ops)
    monkeypatch.setattr(assembly, "_capture_for", capture_for)
    monkeypatch.setattr(step_results, "to_host", copied)
    return capture
