"""Operations are chosen once; without a kernel that fits and works it is the torch reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
import logging
from pathlib import Path
import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inference_service.kernels import gpu, ops
from inference_service.kernels.ops import REFERENCE, Kernel, Ops, choose_ops
from inference_service.kernels.rms_norm import rms_norm
from inference_service.kernels.self_check import CASES, LIMITS


CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
BF16 = torch.bfloat16


def another_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return rms_norm(x, weight, eps)


def yet_another_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return rms_norm(x, weight, eps)


def kernel(run: Callable[..., object], op: str = "rms_norm", device_type: str = "cpu") -> Kernel:
    return Kernel(op, device_type, frozenset({BF16}), run)


KERNEL = kernel(another_rms_norm)
GPU_MODULES = [path.stem for path in Path(gpu.__file__).parent.glob("[a-z]*.py")]


@pytest.mark.parametrize("kernel_device", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BF16])
def test_every_operation_without_a_fitting_kernel_is_the_reference(
    kernel_device: str, dtype: torch.dtype
) -> None:
    one = kernel(another_rms_norm, device_type=kernel_device)
    fitting = {"rms_norm"} if kernel_device == "cpu" and dtype == BF16 else set()
    chosen = choose_ops([CPU], dtype, [one])
    replaced = {
        field.name
        for field in fields(Ops)
        if getattr(chosen, field.name) is not getattr(REFERENCE, field.name)
    }
    assert replaced == fitting


def test_the_last_of_several_kernels_is_chosen() -> None:
    better = kernel(yet_another_rms_norm)
    assert choose_ops([CPU], BF16, [KERNEL, better]).rms_norm is yet_another_rms_norm


def test_a_kernel_of_an_unknown_operation_is_refused() -> None:
    with pytest.raises(ValueError, match="'softmax' is not an operation"):
        Kernel("softmax", "cuda", frozenset(), another_rms_norm)


def test_without_triton_a_gpu_has_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "find_spec", lambda _: None)
    assert choose_ops([CUDA], BF16) == REFERENCE
    assert choose_ops([CPU], torch.float32) == REFERENCE


def test_a_triton_that_cannot_be_imported_costs_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ops, "find_spec", lambda _: True)
    for name in GPU_MODULES:
        monkeypatch.setitem(sys.modules, f"inference_service.kernels.gpu.{name}", None)
        monkeypatch.delattr(f"inference_service.kernels.gpu.{name}", raising=False)
    assert choose_ops([CUDA], BF16) == REFERENCE
    assert "no GPU kernel can be imported" in caplog.text
    assert len(caplog.records) == 1


def not_compiling(*_: Any) -> torch.Tensor:
    raise RuntimeError(
        "at 5:10:\n    x = tl.load(p)\n        ^\nFailed to find a compiler" + 999 * "!"
    )


def raising_later(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """As a launch without an error, whose result cannot be read."""
    return rms_norm(x, weight, eps).to("meta")


def adding(value: float) -> Callable[..., torch.Tensor]:
    """Differs in one value."""

    def run(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        result = rms_norm(x, weight, eps)
        result.view(-1)[-1] += value
        return result

    return run


BROKEN: dict[str, tuple[Callable[..., object], str]] = {
    "compiler": (not_compiling, r"RuntimeError: at 5:10: x = tl.load\(p\) \^ Failed"),
    "result": (raising_later, "Error: "),
    "value": (adding(1.0), "it differs from its reference by 0.* of the largest value"),
    "nan": (adding(torch.nan), "it differs from its reference by nan"),
    "infinity": (adding(torch.inf), "it differs from its reference by inf"),
    "shape": (lambda x, *_: x[:1], r"torch.bfloat16 \[1, 96\] instead of torch.bfloat16 \[3, 96\]"),
    "dtype": (lambda x, *_: x.float(), "torch.float32 .* instead of torch.bfloat16"),
    "nothing": (lambda *_: None, "AttributeError: "),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_kernel_that_does_not_work_is_left_out_with_one_warning(
    broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    run, cause = BROKEN[broken]
    gate = kernel(lambda x: REFERENCE.silu_and_mul(x) + 0, "silu_and_mul")
    chosen = choose_ops([CPU], BF16, [kernel(run), gate])
    assert chosen.rms_norm is REFERENCE.rms_norm
    assert chosen.silu_and_mul is gate.run
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert message.startswith("kernel rms_norm is left out, its torch reference is used: on cpu, ")
    assert re.search(cause, message)
    assert "\n" not in message
    assert len(message) < 600


def test_a_kernel_must_work_on_every_device(caplog: pytest.LogCaptureFixture) -> None:
    """Here the devices are one, and the kernel works once."""
    calls = []

    def run(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        calls.append(x.shape)
        return rms_norm(x, weight, eps) * (1 if len(calls) <= 2 else 2)

    assert choose_ops([CPU], BF16, [kernel(run)]).rms_norm is run
    calls.clear()
    assert choose_ops([CPU, CPU], BF16, [kernel(run)]).rms_norm is rms_norm
    assert len(caplog.records) == 1


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("op", CASES)
def test_the_check_of_every_operation_notices_one_wrong_result(
    op: str, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    reference = getattr(REFERENCE, op)

    def run(*args: Any, **kwargs: Any) -> Any:
        result = reference(*args, **kwargs)
        in_place = {
            "rotate_and_write": lambda: args[3],
            "update_slots": lambda: args[0].counts,
            "record_tokens": lambda: args[0].counts,
            "penalise": lambda: args[0],
        }
        changed = in_place.get(op, lambda: result)()
        changed = changed[-1] if isinstance(changed, tuple) else changed
        more = 10 * LIMITS[dtype] * changed.abs().max() if changed.is_floating_point() else 1
        changed.view(-1)[-1] += more
        return result

    for implementation, name in ((reference, "reference"), (run, "mutant")):
        one = Kernel(op, "cpu", frozenset(LIMITS), implementation)
        chosen = getattr(choose_ops([CPU], dtype, [one]), op)
        assert chosen is reference, name
        assert len(caplog.records) == (name == "mutant")


@pytest.mark.parametrize("index", [0, 1])
def test_a_triton_kernel_is_launched_on_the_gpu_of_its_input(
    index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    current: list[int] = []

    @contextmanager
    def device(number: int) -> Iterator[None]:
        current.append(number)
        yield
        current.pop()

    @ops._launched
    def run(_: Any, more: int, *, name: int) -> tuple[int, int, int]:
        return current[-1], more, name

    monkeypatch.setattr(torch.cuda, "device", device)
    tensor = SimpleNamespace(get_device=lambda: index)
    assert run(tensor, 5, name=7) == (index, 5, 7)
    assert current == []
