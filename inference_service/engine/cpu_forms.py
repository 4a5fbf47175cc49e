"""Chooses dtype and form of the weights on a CPU by measuring a layer of the model for some milliseconds.

Which is fastest depends on processor and library: bfloat16 is three times faster than float32 with AMX and five times
slower on a processor that only converts it, and packing may or may not pay for float32. Few rows cost what their weight
costs to read, so float32 whose weights are held in the 16 bits of the checkpoint is often fastest. One thread measures,
so that other processes do not make a barrier between threads the thing that is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
import logging
import math
import time

import torch
from torch import nn

from inference_service.families.footprint import PACKED_VALUES
from inference_service.kernels.cpu_float16 import Float16Weight, holds_float16
from inference_service.kernels.cpu_int8 import Int8Weight, computes_int8
from inference_service.kernels.cpu_linear import PackedWeight, can_pack
from inference_service.kernels.layers import DenseWeight, Linear, WeightForm, convert_linears
from inference_service.model_spec import DTYPE_BYTES, ModelSpec


logger = logging.getLogger(__name__)

_BYTES_OF_16_BITS = 2
_ROWS = (1, 4, 16, 64)
"""Rows of the measured products: sequences that decode, a piece of a prompt."""
_MEASURED_VALUES = 2**19
"""Maximum values of the measured weight."""
_MEASURED_VALUE = 2.0**-8
"""Of every weight; any that 16 bits hold."""
_ROUNDS, _LIMIT_S = 12, 0.5
_MARGIN = 0.85
"""What another form must cost at most, relative to the one before it: noise does not change the choice."""


class Layout(Enum):
    """How the large weights of a model are held; the values are for the log."""

    PLAIN = "as in the checkpoint"
    PACKED = "packed"
    FLOAT16 = "packed in 16 bits"


@dataclass(frozen=True, slots=True)
class CpuForm:
    """How weights are held: what they are in products, and in which layout."""

    dtype: torch.dtype
    layout: Layout = Layout.PLAIN


Measure = Callable[[Sequence[CpuForm], int, int], list[float]]


def measure_forms(forms: Sequence[CpuForm], outputs: int, inputs: int) -> list[float]:
    """The geometric mean of the shortest times over the numbers of rows, in seconds, for each form.

    Args:
        forms: The forms.
        outputs: Rows of the weight.
        inputs: Columns of the weight.
    """
    works: dict[tuple[int, int], tuple[WeightForm, torch.Tensor]] = {}
    for index, form in enumerate(forms):
        layer = Linear(inputs, outputs, bias=False).to(form.dtype)
        nn.init.constant_(layer.get_parameter("weight"), _MEASURED_VALUE)
        dense = DenseWeight(layer)
        weight = _converted(dense, form.layout)
        for rows in _ROWS:
            works[index, rows] = (weight, torch.ones(rows, inputs, dtype=form.dtype))
    best = dict.fromkeys(works, math.inf)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        end = time.perf_counter() + _LIMIT_S
        # In turns, so that other load on the machine affects all; the first round only fills caches.
        for number in range(_ROUNDS):
            for key, (weight, x) in works.items():
                begin = time.perf_counter()
                weight.apply(x)
                if number:
                    best[key] = min(best[key], time.perf_counter() - begin)
            if number and time.perf_counter() > end:
                break
    finally:
        torch.set_num_threads(threads)
    return [
        math.prod(best[index, rows] for rows in _ROWS) ** (1 / len(_ROWS))
        for index, _ in enumerate(forms)
    ]


def choose_form(
    dtypes: Sequence[torch.dtype],
    outputs: int,
    inputs: int,
    measure: Measure = measure_forms,
    *,
    has_16_bits: bool = False,
) -> CpuForm:
    """The fastest form of a weight [outputs, inputs].

    Args:
        dtypes: The dtypes to choose from; the first one is kept unless another is clearly faster.
        outputs: Rows of the weight.
        inputs: Columns of the weight.
        measure: For tests.
        has_16_bits: The checkpoint has weights of 16 bits, which float32 need not be given more.
    """
    first = dtypes[0]
    forms = [CpuForm(dtype, Layout.PACKED) for dtype in dtypes if can_pack(dtype)]
    if has_16_bits and first == torch.float32 and holds_float16():
        forms.insert(0, CpuForm(first, Layout.FLOAT16))
    plain = CpuForm(first)
    if outputs * inputs < PACKED_VALUES or not forms:
        return plain
    forms.insert(sum(form.dtype == first for form in forms), plain)
    rows = max(1, min(outputs, _MEASURED_VALUES // inputs))
    with torch.inference_mode():
        costs = measure(forms, rows, inputs)
    best = 0
    for index, cost in enumerate(costs):
        if cost < _MARGIN * costs[best]:
            best = index
    return forms[best]


def settle_form(
    name: str,
    dtype: torch.dtype,
    spec: ModelSpec,
    measure: Measure = measure_forms,
    *,
    whose: str = "weights",
) -> CpuForm:
    """The form of a model's weights on a CPU.

    Args:
        name: The operator's dtype, which is kept unless it is `auto`.
        dtype: The dtype for which it stands.
        spec: The model; the widest layer of its language model is measured.
        measure: For tests.
        whose: For the log: which weights have it.
    """
    dtypes = (torch.float32, dtype) if name == "auto" else (dtype,)
    outputs, inputs = 2 * spec.decoder.intermediate_size, spec.decoder.hidden_size
    has_16_bits = DTYPE_BYTES[spec.checkpoint_dtype] == _BYTES_OF_16_BITS
    try:
        form = choose_form(
            tuple(dict.fromkeys(dtypes)), outputs, inputs, measure, has_16_bits=has_16_bits
        )
    except RuntimeError as error:  # oneDNN refuses on a processor what this build of torch has
        logger.warning("weights cannot be packed: %s", str(error).splitlines()[0])
        form = CpuForm(dtypes[0])
    logger.info(
        "%s are held as %s, %s", whose, str(form.dtype).removeprefix("torch."), form.layout.value
    )
    return form


def refuse_quantization(name: str, devices: Sequence[torch.device]) -> None:
    """Refuses quantised weights where they cannot be computed.

    Raises:
        ValueError: The device is a GPU, or a CPU without the instructions; the message is for the operator.
    """
    wanted = f"quantization is {name} (--quantization), but"
    if any(device.type != "cpu" for device in devices):
        names = ", ".join(map(str, devices))
        raise ValueError(f"{wanted} it is computed on a CPU only, and the device is {names}")
    if not computes_int8():
        raise ValueError(
            f"{wanted} this processor has no instructions for exact products of 8-bit integers (AVX-VNNI, AVX512-VNNI"
            " or AMX); without them it would be slower too"
        )


def quantise_large(model: nn.Module) -> None:
    """Quantises the weights of all large linear layers; an embedding keeps its rows beside the quantised head."""
    count = 0

    @torch.inference_mode()
    def convert(dense: DenseWeight) -> WeightForm:
        nonlocal count
        if dense.weight.numel() < PACKED_VALUES:
            return dense
        count += 1
        return Int8Weight.of(dense)

    convert_linears(model, convert)
    logger.info("%d linear layers of the language model are held as int8", count)


def pack_large(model: nn.Module, layout: Layout) -> None:
    """Packs the weights of all large linear layers; an embedding keeps its rows beside the packed head."""

    def convert(dense: DenseWeight) -> WeightForm:
        return _converted(dense, layout) if dense.weight.numel() >= PACKED_VALUES else dense

    convert_linears(model, convert, threads=torch.get_num_threads())


@torch.inference_mode()
def _converted(dense: DenseWeight, layout: Layout) -> WeightForm:
    """The weight in a layout; one with more than 16 bits, beside others, is only packed."""
    if layout is Layout.PLAIN:
        return dense
    if layout is Layout.FLOAT16 and (held := Float16Weight.of(dense)) is not None:
        return held
    return PackedWeight.of(dense) if can_pack(dense.weight.dtype) else dense
