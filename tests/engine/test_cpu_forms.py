"""The choice of dtype and form on a CPU from what was measured, and an engine with packed weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from inference_service.demo import MODEL_DIR
from inference_service.engine import assembly, cpu_forms
from inference_service.engine.core import EngineCore
from inference_service.engine.cpu_forms import (
    CpuForm,
    Layout,
    choose_form,
    measure_forms,
    pack_large,
    refuse_quantization,
    settle_form,
)
from inference_service.engine.loader import load_model
from inference_service.families.footprint import PACKED_VALUES, footprint
from inference_service.families.registry import load_spec
from inference_service.kernels.cpu_float16 import Float16Weight, holds_float16
from inference_service.kernels.cpu_int8 import computes_int8
from inference_service.kernels.cpu_linear import PackedWeight
from inference_service.kernels.layers import DenseWeight, Linear
from inference_service.model_spec import DTYPE_BYTES
from tests.support.conversations import GREEDY, Conversation, drain
from tests.support.published_configs import published_files, write_files


F32, BF16 = torch.float32, torch.bfloat16
DENSE, PACKED, HELD, HALF = (
    CpuForm(F32, Layout.PLAIN),
    CpuForm(F32, Layout.PACKED),
    CpuForm(F32, Layout.FLOAT16),
    CpuForm(BF16, Layout.PACKED),
)


needs_float16 = pytest.mark.skipif(
    not holds_float16(), reason="this build of torch does not compute with 16-bit weights"
)


@pytest.fixture(autouse=True)
def _all_can_be_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_forms, "can_pack", lambda dtype: dtype in (F32, BF16))
    monkeypatch.setattr(cpu_forms, "holds_float16", lambda: True)


def costing(**costs: float) -> Callable[[Sequence[CpuForm], int, int], list[float]]:
    by_form = {
        DENSE: costs["dense"],
        PACKED: costs["packed"],
        HELD: costs.get("held", 9.0),
        HALF: costs.get("half", 9.0),
    }
    return lambda forms, _outputs, _inputs: [by_form[form] for form in forms]


@pytest.mark.parametrize(
    ("costs", "chosen"),
    [
        ({"dense": 2.0, "packed": 1.0, "half": 0.5}, HALF),
        ({"dense": 2.0, "packed": 1.0, "half": 5.0}, PACKED),
        ({"dense": 1.0, "packed": 1.1, "half": 1.0}, PACKED),  # not clearly better
        ({"dense": 1.0, "packed": 2.0, "half": 0.9}, DENSE),
        ({"dense": 1.0, "packed": 2.0, "half": 0.8}, HALF),
    ],
)
def test_another_form_must_be_clearly_faster(costs: dict[str, float], chosen: CpuForm) -> None:
    assert choose_form((F32, BF16), 4096, 1024, costing(**costs)) == chosen


def test_a_named_dtype_is_kept() -> None:
    found = choose_form((F32,), 4096, 1024, costing(dense=2.0, packed=1.0, half=0.1))
    assert found == PACKED


@pytest.mark.parametrize(
    ("costs", "chosen"),
    [
        ({"dense": 1.0, "packed": 1.0, "held": 1.1, "half": 1.0}, HELD),  # half of the memory
        ({"dense": 1.1, "packed": 1.0, "held": 1.3, "half": 1.0}, PACKED),
        ({"dense": 2.0, "packed": 2.0, "held": 1.0, "half": 0.9}, HELD),
        ({"dense": 2.0, "packed": 2.0, "held": 1.0, "half": 0.5}, HALF),
    ],
)
def test_16_bits_of_a_checkpoint_are_held_in_16_bits(
    costs: dict[str, float], chosen: CpuForm
) -> None:
    found = choose_form((F32, BF16), 4096, 1024, costing(**costs), has_16_bits=True)
    assert found == chosen


def test_small_weights_and_other_dtypes_are_not_measured() -> None:
    def never(*_: Any) -> list[float]:
        raise AssertionError

    assert choose_form((F32, BF16), 512, PACKED_VALUES // 512 - 1, never) == DENSE
    assert choose_form((torch.float16,), 4096, 4096, never) == CpuForm(torch.float16)


def test_auto_measures_both_dtypes_of_a_checkpoint_in_bfloat16(demo_spec: Any) -> None:
    seen: list[Sequence[CpuForm]] = []

    def measure(forms: Sequence[CpuForm], _outputs: int, _inputs: int) -> list[float]:
        seen.append(forms)
        return [1.0] * len(forms)

    assert settle_form("auto", BF16, demo_spec, measure) == PACKED
    assert settle_form("auto", F32, demo_spec, measure) == PACKED
    assert settle_form("bfloat16", BF16, demo_spec, measure) == HALF
    assert [{form.dtype for form in forms} for forms in seen] == [{F32, BF16}, {F32}, {BF16}]


@pytest.mark.parametrize("checkpoint_dtype", ["bfloat16", "float16"])
def test_float32_is_held_in_the_16_bits_of_its_checkpoint(
    demo_spec: Any, checkpoint_dtype: str
) -> None:
    def measure(forms: Sequence[CpuForm], _outputs: int, _inputs: int) -> list[float]:
        return [1.0] * len(forms)

    spec = replace(demo_spec, checkpoint_dtype=checkpoint_dtype)
    assert settle_form("float32", F32, spec, measure) == HELD
    assert settle_form("auto", BF16, spec, measure) == HELD
    assert settle_form("bfloat16", BF16, spec, measure) == HALF


@pytest.fixture
def demo_spec(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(cpu_forms, "PACKED_VALUES", 1)
    return load_spec(MODEL_DIR)


def test_a_processor_that_refuses_what_is_measured_computes_without_packing(
    demo_spec: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def refusing(*_: object) -> list[float]:
        raise RuntimeError("could not create a primitive\n details")

    assert settle_form("float32", F32, demo_spec, refusing) == DENSE
    assert "cannot be packed: could not create a primitive" in caplog.text


def test_every_form_is_measured_and_the_threads_are_restored() -> None:
    threads = torch.get_num_threads()
    forms = [DENSE, PACKED, HELD] if holds_float16() else [DENSE, PACKED]
    costs = measure_forms(forms, 512, 64)
    assert len(costs) == len(forms)
    assert all(0 < cost < 10 for cost in costs)
    assert torch.get_num_threads() == threads


def test_an_engine_with_packed_weights_answers_as_transformers(
    make_core: Callable[[], EngineCore],
    prompts: list[Conversation],
    expected: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dense_bytes = make_core().ready.weight_bytes
    monkeypatch.setattr(cpu_forms, "PACKED_VALUES", 1)
    monkeypatch.setattr(assembly, "settle_form", lambda *_, **__: PACKED)
    loaded = []

    def load(*arguments: Any, **settings: Any) -> Any:
        loaded.append(load_model(*arguments, **settings))
        return loaded[0]

    monkeypatch.setattr(EngineCore.__init__, "__defaults__", (load,))
    core = make_core()
    linears = [module for module in loaded[0].modules() if isinstance(module, Linear)]
    assert all(isinstance(linear.form, PackedWeight) for linear in linears)
    # Blocks of 64 x 16 pad these small weights.
    assert dense_bytes < core.ready.weight_bytes < 2 * dense_bytes
    for number, prompt in enumerate(prompts):
        core.add(prompt.request(str(number), GREEDY), prompt.pixels)
    answers = drain(core)
    assert [answers[str(number)].token_ids for number in range(len(prompts))] == expected


def test_weights_that_are_small_stay_as_they_are() -> None:
    layers = nn.Sequential(Linear(8, 8), Linear(512, PACKED_VALUES // 512))
    for parameter in layers.parameters():
        parameter.data.zero_()
    pack_large(layers, Layout.PACKED)
    assert [type(layer.form) for layer in layers] == [DenseWeight, PackedWeight]


@needs_float16
def test_a_layer_with_more_than_16_bits_is_only_packed() -> None:
    layers = nn.Sequential(*(Linear(512, PACKED_VALUES // 512) for _ in range(2)))
    for parameter in layers.parameters():
        parameter.data.fill_(2.0**-8)
    layers[1].get_parameter("weight").data[3, 4] = 1 / 3
    pack_large(layers, Layout.FLOAT16)
    assert [type(layer.form) for layer in layers] == [Float16Weight, PackedWeight]


@needs_float16
def test_an_engine_with_weights_in_16_bits_answers_alone_as_in_a_batch(
    make_core: Callable[..., EngineCore],
    prompts: list[Conversation],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same answers as with dense weights that were rounded likewise."""

    def rounded(*arguments: Any, **settings: Any) -> Any:
        model = load_model(*arguments, **settings)
        for parameter in model.parameters():
            parameter.data = parameter.bfloat16().float()
        return model

    monkeypatch.setattr(EngineCore.__init__, "__defaults__", (rounded,))

    def answers(chosen: Sequence[Conversation]) -> tuple[list[tuple[int, ...]], int]:
        core = make_core()
        for number, prompt in enumerate(chosen):
            core.add(prompt.request(str(number), GREEDY), prompt.pixels)
        found = drain(core)
        tokens = [tuple(found[str(number)].token_ids) for number in range(len(chosen))]
        return tokens, core.ready.weight_bytes

    expected, dense_bytes = answers(prompts)
    monkeypatch.setattr(cpu_forms, "PACKED_VALUES", 1)
    monkeypatch.setattr(assembly, "settle_form", lambda *_, **__: HELD)
    found, held_bytes = answers(prompts)
    assert found == expected == [answers([prompt])[0][0] for prompt in prompts]
    assert held_bytes < dense_bytes


@pytest.mark.parametrize(("dtype", "copies"), [("float32", 1), ("bfloat16", 1), ("float16", 0)])
def test_a_tied_head_counts_twice_on_a_cpu(tmp_path: Path, dtype: str, copies: int) -> None:
    spec = load_spec(write_files(tmp_path, published_files()))
    assert spec.decoder.tie_word_embeddings
    on_gpu, on_cpu = footprint(spec, dtype), footprint(spec, dtype, on_gpu=False)
    head = spec.decoder.vocab_size * spec.decoder.hidden_size * DTYPE_BYTES[dtype]
    assert on_cpu.weight_bytes - on_gpu.weight_bytes == copies * head == on_cpu.copied_bytes
    untied = replace(spec, decoder=replace(spec.decoder, tie_word_embeddings=False))
    assert footprint(untied, dtype, on_gpu=False).copied_bytes == 0


def test_a_quantised_engine_answers_alone_as_in_a_batch(
    make_core: Callable[..., EngineCore],
    prompts: list[Conversation],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if not computes_int8():
        pytest.skip("this processor has no instructions for products of 8-bit integers")
    monkeypatch.setattr(cpu_forms, "PACKED_VALUES", 1)
    caplog.set_level("INFO")
    dense_bytes = make_core().ready.weight_bytes

    def answers(chosen: Sequence[Conversation]) -> list[list[int]]:
        core = make_core(quantization="int8")
        assert core.ready.weight_bytes < dense_bytes
        for number, prompt in enumerate(chosen):
            core.add(prompt.request(str(number), GREEDY), prompt.pixels)
        found = drain(core)
        return [list(found[str(number)].token_ids) for number in range(len(chosen))]

    assert answers(prompts) == [answers([prompt])[0] for prompt in prompts]
    assert "linear layers of the language model are held as int8" in caplog.text


def test_where_quantised_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"--quantization.* CPU only, and the device is cuda:1"):
        refuse_quantization("int8", [torch.device("cuda:1")])
    monkeypatch.setattr(cpu_forms, "computes_int8", lambda: False)
    with pytest.raises(ValueError, match=r"quantization is int8 .* no instructions"):
        refuse_quantization("int8", [torch.device("cpu")])
