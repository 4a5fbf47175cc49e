"""What decoding alone does, attention apart: products of few rows and the choice of tokens, beside those of torch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from benchmarks.card.setting import Setting
from inference_service.engine.gpu_forms import captured_s, launched_s
from inference_service.kernels.layers import DenseWeight, Linear
from inference_service.kernels.ops import REFERENCE, Ops
from inference_service.kernels.penalties import Penalties
from inference_service.kernels.skinny_linear import SPLITS
from inference_service.kernels.slot_state import SlotState, StateUpdate


SHAPES = {
    "qkv": (4608, 3584),
    "o": (3584, 3584),
    "gate_up": (37888, 3584),
    "down": (3584, 18944),
    "head": (152064, 3584),
}
"""(outputs, inputs) of a 7B model."""
COLD_BYTES = 2**28
"""Weights that are read in turn, so that none is in the card's cache."""


def rows(setting: Setting, ops: Ops) -> Iterator[dict[str, Any]]:
    """Errors and microseconds."""
    shapes = {"tiny": (96, 64)} if setting.tiny else SHAPES
    for name, shape in shapes.items():
        yield from _products(setting, ops, name, shape)
    vocab_size = 1000 if setting.tiny else 152064
    for count in (1, 4) if setting.tiny else (1, 64):
        yield _choice(setting, ops, count, vocab_size)
        yield _filters(setting, ops, count, vocab_size)
        yield _penalties(setting, ops, count, vocab_size)
        yield _update(setting, ops, count, vocab_size)


def cold_weights(setting: Setting, shape: tuple[int, int]) -> list[DenseWeight]:
    """Weights [out, in] with biases on the device, so many that they are not in its cache when their turn comes."""
    copies = 1 if setting.tiny else max(1, COLD_BYTES // (2 * shape[0] * shape[1]))
    weights = []
    for _ in range(copies):
        with torch.device(setting.device):
            layer = Linear(shape[1], shape[0]).to(setting.dtype)
        nn.init.normal_(layer.get_parameter("weight"), std=shape[1] ** -0.5)
        nn.init.normal_(layer.get_parameter("bias"))
        weights.append(DenseWeight(layer))
    return weights


def _products(
    setting: Setting, ops: Ops, name: str, shape: tuple[int, int]
) -> Iterator[dict[str, Any]]:
    weights = cold_weights(setting, shape)
    measure = captured_s if setting.device.type == "cuda" else launched_s
    one = weights[0]
    for count in (1, 4, 16):
        x = torch.randn(count, shape[1], device=setting.device, dtype=setting.dtype)
        assert one.bias is not None
        exact = x.double() @ one.weight.double().T + one.bias.double()
        errors, times = [], {}
        for splits in SPLITS:
            result = ops.skinny_linear(x, one.weight, one.bias, splits)
            errors.append(float((result.double() - exact).abs().max() / exact.abs().max()))

            def multiply(x: Any, weight: Any, bias: Any, splits: int = splits) -> torch.Tensor:
                return ops.skinny_linear(x, weight, bias, splits)

            times[splits] = measure(weights, count, multiply) / len(weights) * 1e6
        yield {
            "op": "skinny_linear",
            "layer": name,
            "rows": count,
            "error": max(errors),
            "us": min(times.values()),
            "us_by_splits": times,
            "torch_us": measure(weights, count, linear) / len(weights) * 1e6,
            "bytes_per_s": one.weight.nbytes / min(times.values()) * 1e6,
        }


def _choice(setting: Setting, ops: Ops, count: int, vocab_size: int) -> dict[str, Any]:
    """`error` is the share of tokens that the reference draws otherwise."""
    logits = 3 * torch.randn(count, vocab_size, device=setting.device)
    minimum = logits.amax(-1, keepdim=True) - 12
    keys = torch.randint(-(2**31), 2**31, (2, count), device=setting.device).int()
    arguments = (minimum, keys[0], keys[1])
    found = ops.choose_tokens(logits.clone(), *arguments)
    expected = REFERENCE.choose_tokens(logits.clone(), *arguments)
    return {
        "op": "choose_tokens",
        "rows": count,
        "error": float((found != expected).double().mean()),
        "us": setting.seconds(lambda: ops.choose_tokens(logits, *arguments)) * 1e6,
        "torch_us": setting.seconds(lambda: REFERENCE.choose_tokens(logits, *arguments)) * 1e6,
    }


def _filters(setting: Setting, ops: Ops, count: int, vocab_size: int) -> dict[str, Any]:
    """`error` is the share of tokens that the reference, which sorts them, keeps or cuts otherwise."""
    logits = 3 * torch.randn(count, vocab_size, device=setting.device)
    times = {}
    errors = []
    for name, (top_k, top_p) in {"both": (20, 0.8), "top_p": (vocab_size, 0.9)}.items():
        given = [
            torch.full((count,), value, dtype=dtype, device=setting.device)
            for value, dtype in (
                (float("-inf"), torch.float32),
                (top_k, torch.int64),
                (top_p, torch.float32),
            )
        ]
        found, expected = (run(logits, *given) for run in (ops.lowest_kept, REFERENCE.lowest_kept))
        errors.append(float(((logits >= found) != (logits >= expected)).double().mean()))
        times[name] = setting.seconds(partial(ops.lowest_kept, logits, *given)) * 1e6
        times[f"{name} by torch"] = (
            setting.seconds(partial(REFERENCE.lowest_kept, logits, *given)) * 1e6
        )
    return {"op": "lowest_kept", "rows": count, "error": max(errors), "us": times}


def _penalties(setting: Setting, ops: Ops, count: int, vocab_size: int) -> dict[str, Any]:
    """All rows with all penalties, over a history of 1,000 tokens."""
    device = setting.device
    generator = torch.Generator().manual_seed(count)
    history = torch.randint(0, vocab_size, (count, 1000), generator=generator).int()
    state = SlotState(
        last_tokens=torch.zeros(count, dtype=torch.int64, device=device),
        page_table=torch.zeros(count, 64, dtype=torch.int32, device=device),
        history=history.to(device),
        counts=torch.ones(count + 1, vocab_size, dtype=torch.int32, device=device),
    )
    rows = torch.arange(count, device=device)
    each = torch.linspace(0.5, 1.5, count, device=device)
    lengths = torch.full((count,), 1000, dtype=torch.int32, device=device)
    penalties = Penalties(
        *(rows, rows, vocab_size * (rows + 1), each, each / 4, each / 8, 1000),
        counts=True,
        lengths=lengths,
    )
    logits = torch.randn(count, vocab_size, device=device)
    given = (logits, each, penalties, state)
    expected = REFERENCE.scaled_logits(*given)
    error = (ops.scaled_logits(*given) - expected).abs().max() / expected.abs().max()
    return {
        "op": "scaled_logits",
        "rows": count,
        "error": float(error),
        "us": setting.seconds(lambda: ops.scaled_logits(*given)) * 1e6,
        "torch_us": setting.seconds(lambda: REFERENCE.scaled_logits(*given)) * 1e6,
    }


def _update(setting: Setting, ops: Ops, count: int, vocab_size: int) -> dict[str, Any]:
    """A new page for every sequence, and a new tenant with all penalties; `error` counts entries that differ."""
    device, length, pages = setting.device, 4096, 256
    slots = torch.arange(count)
    lists = [
        (slots * pages + 3, torch.int64),
        (slots + 7, torch.int32),
        (slots[:1], torch.int64),
        (slots[:1] + 5, torch.int32),
        (torch.arange(1000), torch.int64),
        (torch.arange(1000) % vocab_size, torch.int32),
        (slots[:1] + 1, torch.int64),
        (vocab_size + torch.arange(10), torch.int64),
        (torch.arange(10), torch.int32),
    ]
    update = StateUpdate(*(values.to(device, dtype) for values, dtype in lists))
    states = [
        SlotState(
            last_tokens=torch.zeros(count, dtype=torch.int64, device=device),
            page_table=torch.zeros(count, pages, dtype=torch.int32, device=device),
            history=torch.zeros(count, length, dtype=torch.int32, device=device),
            counts=torch.ones(count + 1, vocab_size, dtype=torch.int32, device=device),
        )
        for _ in range(2)
    ]
    ops.update_slots(states[0], update)
    REFERENCE.update_slots(states[1], update)
    names = ("page_table", "history", "counts")
    wrong = sum(int((getattr(states[0], n) != getattr(states[1], n)).sum()) for n in names)
    return {
        "op": "update_slots",
        "rows": count,
        "error": wrong,
        "us": setting.seconds(lambda: ops.update_slots(states[0], update)) * 1e6,
        "torch_us": setting.seconds(lambda: REFERENCE.update_slots(states[1], update)) * 1e6,
    }
