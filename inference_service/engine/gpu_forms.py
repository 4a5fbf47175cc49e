"""Chooses, by measuring the weights of a model on its GPU, which of them a kernel for few rows multiplies.

Reading a weight is the cost of a decode step. Which kernel reads it faster depends on its shape, the number of rows and
the card. The weights of several layers are read in turn, so that none is found in the card's cache.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
import logging
import time
from typing import Final

import torch
from torch import nn
from torch.nn.functional import linear

from inference_service.kernels.layers import DenseWeight, Linear
from inference_service.kernels.ops import REFERENCE, Ops
from inference_service.kernels.self_check import in_one_line
from inference_service.kernels.skinny_linear import MAX_ROWS, SPLITS, SkinnyWeight


_MARGIN: Final = 0.97
"""What the kernel must cost at most, relative to torch's product: noise does not change the choice."""
_ROWS: Final = (1, 4, MAX_ROWS)
_MEASURED_BYTES: Final = 2**28
"""Weights that are read in one measurement, more than a card's cache."""
_REPEATS: Final = 3
_MAX_PARTS: Final = 2**18
"""Outputs times splits: more need much memory (16 rows of them are 16 MiB), and their programs fill a card anyway."""

logger = logging.getLogger(__name__)

Multiply = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
Measure = Callable[[Sequence[DenseWeight], int, Multiply], float]


def multiply_skinny(model: nn.Module, ops: Ops, measure: Measure | None = None) -> None:
    """Gives linear layers of a loaded model that form where it is faster.

    Args:
        model: Changed in place; on one GPU or several.
        ops: Its operations; without a kernel for few rows, nothing is changed.
        measure: The seconds that it takes to multiply some rows by all weights, one after the other; None =
            `launched_s`.
    """
    if ops.skinny_linear is REFERENCE.skinny_linear:
        return
    begin = time.monotonic()
    shapes: dict[object, list[Linear]] = defaultdict(list)
    for module in model.modules():
        if isinstance(module, Linear) and isinstance(module.form, DenseWeight):
            weight = module.form.weight
            shapes[weight.shape, weight.device, module.form.bias is None].append(module)
    changed = 0
    with torch.inference_mode():
        for layers in shapes.values():
            splits, max_rows = _choose_safely(layers, ops, measure or launched_s)
            if max_rows:
                changed += len(layers)
                for layer in layers:
                    layer.hold(_form_of(layer, ops, splits, max_rows))
    logger.info(
        "%d of %d linear layers are multiplied by a kernel for few rows; measured in %.2f s",
        changed,
        sum(map(len, shapes.values())),
        time.monotonic() - begin,
    )


def _choose_safely(layers: Sequence[Linear], ops: Ops, measure: Measure) -> tuple[int, int]:
    """As `_choose`; what cannot be measured stays as it is."""
    try:
        return _choose(layers, ops, measure)
    except RuntimeError as error:  # of CUDA, among them that no memory is left
        logger.warning("a kernel for few rows cannot be measured: %s", in_one_line(error))
        return 1, 0


def _choose(layers: Sequence[Linear], ops: Ops, measure: Measure) -> tuple[int, int]:
    """The best number of splits, and up to how many rows the kernel is faster; 0 = it never is."""
    weights: list[DenseWeight] = []
    for layer in layers:
        assert isinstance(layer.form, DenseWeight)
        weights.append(layer.form)
        if sum(one.weight.nbytes for one in weights) >= _MEASURED_BYTES:
            break
    outputs = len(weights[0].weight)
    possible = [splits for splits in SPLITS if splits == 1 or splits * outputs <= _MAX_PARTS]
    times = {splits: measure(weights, 1, _with(ops, splits)) for splits in possible}
    best = min(times, key=lambda splits: times[splits])
    max_rows = 0
    for rows in _ROWS:
        own = times[best] if rows == 1 else measure(weights, rows, _with(ops, best))
        if own > _MARGIN * measure(weights, rows, linear):
            break
        max_rows = rows
    return best, max_rows


def _with(ops: Ops, splits: int) -> Multiply:
    return lambda x, weight, bias: ops.skinny_linear(x, weight, bias, splits)


def _form_of(layer: Linear, ops: Ops, splits: int, max_rows: int) -> SkinnyWeight:
    dense = layer.form
    assert isinstance(dense, DenseWeight)
    bias = None if dense.bias is None else dense.bias.detach()
    return SkinnyWeight(
        dense.weight.detach(),
        bias,
        ops.skinny_linear,
        splits,
        max_rows,
        is_shared=dense.module is not layer,
    )


def launched_s(weights: Sequence[DenseWeight], rows: int, multiply: Multiply) -> float:
    """Seconds of the products with all weights, with the time to launch them; the shortest of some."""
    return _shortest_s(weights[0].weight, rows, lambda x: partial(_run, weights, x, multiply))


def captured_s(weights: Sequence[DenseWeight], rows: int, multiply: Multiply) -> float:
    """The same on a GPU without the time to launch them, as in a captured step."""

    def record(x: torch.Tensor) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream(x.device)  # type: ignore[no-untyped-call]
        with torch.cuda.device(x.device), torch.cuda.stream(stream):
            torch.cuda.synchronize(x.device)
            _run(weights, x, multiply)  # compiles, which a capture does not permit
            torch.cuda.synchronize(x.device)
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                _run(weights, x, multiply)
            finally:
                graph.capture_end()
        return graph.replay

    return _shortest_s(weights[0].weight, rows, record)


def _run(weights: Sequence[DenseWeight], x: torch.Tensor, multiply: Multiply) -> None:
    for one in weights:
        multiply(x, one.weight, one.bias)


def _shortest_s(
    some: torch.Tensor, rows: int, prepare: Callable[[torch.Tensor], Callable[[], None]]
) -> float:
    """The shortest time of work that is prepared with some rows of a weight's width."""
    work = prepare(torch.ones(rows, some.shape[1], dtype=some.dtype, device=some.device))
    times = []
    for _ in range(_REPEATS + 1):  # the first one compiles and fills caches
        _wait(some.device)
        begin = time.perf_counter()
        work()
        _wait(some.device)
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
