"""Which block sizes of two kernels that bound decoding are the fastest: those of the module, and others in their place.

Each setting is a compilation of its own, so one or two constants change at a time. The results are checked, too: a size
that does not compile or computes something else is listed as wrong, and costs only itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor

from benchmarks.card import few_rows, kernels
from benchmarks.card.setting import Setting
from inference_service.engine.gpu_forms import captured_s, launched_s
from inference_service.kernels.skinny_linear import SPLITS


Constants = Mapping[str, int]

LINEAR: Final[Sequence[Constants]] = (
    {},
    *(
        {"_OUTPUTS": outputs, "_INPUTS": inputs}
        for outputs in (32, 64, 128)
        for inputs in (128, 256)
    ),
    {"_OUTPUTS": 128},
    {"_WARPS": 8},
    {"_STAGES": 3},
    {"_STAGES": 6},
)
"""Constants of `kernels.gpu.skinny_linear`; {} = as they are."""
ATTENTION: Final[Sequence[Constants]] = (
    {},
    {"_DECODE_KEYS": 64},
    {"_DECODE_KEYS": 128},
    {"_SPLIT_KEYS": 256},
    {"_SPLIT_KEYS": 1024},
    {"_BUSY_PROGRAMS": 512},
)
"""Constants of `kernels.gpu.attention`."""
BEST: Final = 3
LIMIT: Final = 2e-2


def measure(setting: Setting) -> dict[str, Any]:
    """The fastest settings for each shape, and all of them."""
    if setting.device.type != "cuda":
        return {"left_out": f"{setting.device} has no kernels to tune"}
    package = "inference_service.kernels.gpu"
    linear, attention = (
        import_module(f"{package}.{name}") for name in ("skinny_linear", "attention")
    )
    return tune(setting, linear, attention)


def tune(setting: Setting, linear: ModuleType, attention: ModuleType) -> dict[str, Any]:
    """As `measure`, with these modules of kernels."""
    rows = [*_linear(setting, linear), *_attention(setting, attention)]
    wrong = [row for row in rows if "us" not in row or not row["error"] <= LIMIT]
    right = [row for row in rows if row not in wrong]
    shapes = dict.fromkeys(row["shape"] for row in rows)
    ranked = {
        shape: sorted((row for row in right if row["shape"] == shape), key=lambda row: row["us"])
        for shape in shapes
    }
    best = {shape: found[:BEST] for shape, found in ranked.items()}
    return {"best": best, "wrong": wrong, "rows": rows}


@contextmanager
def changed(module: ModuleType, constants: Constants) -> Iterator[None]:
    """A module with other constants."""
    before = {name: getattr(module, name) for name in constants}
    vars(module).update(constants)
    try:
        yield
    finally:
        vars(module).update(before)


def _linear(setting: Setting, module: ModuleType) -> Iterator[dict[str, Any]]:
    shapes = {"tiny": (96, 64)} if setting.tiny else few_rows.SHAPES
    timed = captured_s if setting.device.type == "cuda" else launched_s
    for name, shape in shapes.items():
        weights = few_rows.cold_weights(setting, shape)
        one = weights[0].weight
        x = torch.randn(1, shape[1], device=setting.device, dtype=setting.dtype)
        exact = x.double() @ one.double().T
        for constants in LINEAR:
            row = {"shape": f"linear {name}", "constants": constants}
            with changed(module, constants):
                for splits in SPLITS[:2] if setting.tiny else SPLITS:
                    run = partial(_multiply, module, splits)
                    time = partial(timed, weights, 1, run)
                    found = _tried(exact, partial(run, x, one, None), time)
                    yield {**row, "splits": splits, **found}


def _multiply(
    module: ModuleType, splits: int, x: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    del bias
    result: Tensor = module.skinny_linear(x, weight, None, splits)
    return result


def _attention(setting: Setting, module: ModuleType) -> Iterator[dict[str, Any]]:
    heads, head_dim = ((4, 2), 64) if setting.tiny else ((28, 4), 128)
    tiny = {"one": (100,), "four": (30,) * 4}
    batches = tiny if setting.tiny else {"one": (1024,), "long": (32768,), "many": (1024,) * 64}
    for name, contexts in batches.items():
        batch = [(context, 1) for context in contexts]
        attend, exact = kernels.attention_call(setting, heads, head_dim, batch)
        run = partial(attend, module.paged_attention)
        for constants in ATTENTION:
            with changed(module, constants):
                found = _tried(exact, run, partial(setting.seconds, run))
            yield {"shape": f"attention {name}", "constants": constants, **found}


def _tried(
    exact: Tensor, run: Callable[[], Tensor], time: Callable[[], float]
) -> dict[str, float | str]:
    """Error and microseconds of a setting, or why there are none."""
    try:
        return {"error": kernels.error_of(run(), exact), "us": time() * 1e6}
    except Exception as error:  # noqa: BLE001 - of the compiler or the card; the others are tried all the same
        return {"error": float("nan"), "cause": f"{type(error).__name__}: {error}"[:300]}
