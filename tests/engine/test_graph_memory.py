"""The memory that is kept for graphs is enough, and what is left is that of the KV cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
import weakref

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from inference_service.engine import memory
from inference_service.engine.core import EngineCore
from inference_service.engine.graphs import DecodeStep, Surroundings
from inference_service.engine.loader import load_model
from inference_service.engine_protocol.messages import EngineConfig
from inference_service.families.footprint import (
    GRAPH_BYTES,
    GRAPH_POOL_SLACK_BYTES,
    MAX_KEY_SPLITS,
    SEARCHED_VALUES,
    decode_bytes,
    graph_bytes,
    slots_bytes,
)
from inference_service.families.registry import load_spec
from inference_service.families.tables import kv_bytes_per_token
from inference_service.settings import ServiceSettings


Make = Callable[..., EngineCore]


class LiveBytes(TorchDispatchMode):
    """The most bytes that results of operations take at once, beside what was there before."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._fresh: set[int] = set()
        self._alive: list[tuple[Any, int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            place = storage.data_ptr()
            if place not in given:
                self._fresh.add(place)
            if place in self._fresh:  # views keep memory, too
                self._alive.append((weakref.ref(tensor), place, storage.nbytes()))
        self._alive = [entry for entry in self._alive if entry[0]() is not None]
        self.most = max(self.most, sum({place: size for _, place, size in self._alive}.values()))
        return out


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("rows", [1, 4, 8])
@torch.inference_mode()
def test_a_step_takes_less_memory_than_is_reserved(around: Surroundings, rows: int) -> None:
    """With attention that takes what the kernel takes: its result, and sums of at most so many parts."""
    spec = around.model.spec
    decoder = spec.decoder

    def attend(q: Tensor, *_: Any) -> Tensor:
        parts = torch.zeros(*q.shape[:2], MAX_KEY_SPLITS, decoder.head_dim + 2)
        return torch.zeros_like(q) + 0 * parts.sum()

    around.model.ops = replace(
        around.model.ops,
        scaled_logits=lambda logits, *_: logits + 0,
        lowest_kept=lambda logits, *_: logits.new_zeros(len(logits), SEARCHED_VALUES).amax(1, True),
        choose_tokens=lambda logits, *_: logits.argmax(-1),
    )
    layers: Any = around.model.decoder.layers
    for layer in layers:
        layer.self_attn._ops = replace(layer.self_attn._ops, paged_attention=attend)
    step = DecodeStep(rows, around)
    step.compute()
    with LiveBytes() as live:
        step.compute()
    reserved = graph_bytes(spec, (rows,), 4, around.max_model_len, around.page_size)
    outputs = rows * (decoder.vocab_size * 4 + 8) + step.words.nbytes
    tensors = reserved - GRAPH_BYTES - GRAPH_POOL_SLACK_BYTES
    assert tensors / 8 < live.most + outputs <= tensors


def test_the_cache_leaves_room_for_graphs(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(checkpoint, dtype=torch.float32, device=torch.device("cpu"))
    config = EngineConfig(model_dir=str(checkpoint), max_num_seqs=9)
    without = memory._decode_bytes(config, model, 2**40)
    monkeypatch.setattr(memory, "obstacle", lambda *_: "")
    spec = model.spec
    graphs = graph_bytes(spec, (1, 2, 4, 8, 9), 4, spec.max_position_embeddings, config.page_size)
    assert graphs > 5 * GRAPH_BYTES
    sizes = (spec.max_position_embeddings, config.page_size)
    assert without == slots_bytes(spec, 9, *sizes, grows=True)
    # One slot more; their memory is whole from the beginning.
    whole = slots_bytes(spec, 10, *sizes, grows=False)
    assert memory._decode_bytes(config, model, 2**40) == graphs + whole


@pytest.mark.parametrize("room", [2**26, 2**28, 2**30, 2**34])
@pytest.mark.parametrize("name", ["Qwen2-VL-2B-Instruct", "Qwen3-VL-8B-Instruct"])
def test_the_longest_sequence_is_what_the_cache_then_holds(name: str, room: int) -> None:
    """Sizing without a limit equals sizing with the limit to which it leads."""
    spec = load_spec(Path("tests/golden/configs") / name)
    sizes = ServiceSettings.load({}, {})
    taken = decode_bytes(spec, sizes, 2, room, graphs=True)
    token = kv_bytes_per_token(spec, 2)
    longest = max(0, min(spec.max_position_embeddings, (room - taken) // token))
    limited = sizes.model_copy(update={"max_model_len": longest})
    assert abs(decode_bytes(spec, limited, 2, room, graphs=True) - taken) < token
