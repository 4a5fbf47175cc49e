"""A loaded model takes other operations and other weight forms, in the decoder and in every vision tower."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields
import functools

import pytest
import torch
from torch.nn import ModuleList

from inference_service.engine import loader
from inference_service.engine.loader import load_model
from inference_service.families.qwen_common.config import QwenVisionSpec
from inference_service.families.registry import load_spec
from inference_service.kernels.check_inputs import Sizes
from inference_service.kernels.layers import DenseWeight, Linear, convert_linears
from inference_service.kernels.ops import REFERENCE, Ops
from inference_service.models.vision_language import VisionLanguageModel
from tests.support.paged_forward import PagedForward
from tests.support.tiny_qwen_vl import FAMILIES, build_checkpoint, image, prompt


IMAGES = [image(2, 3, 1), image(3, 7, 3)]
IDS, SPANS = prompt([5, IMAGES[0], 4, IMAGES[1], 8])
CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory):
    return build_checkpoint(tmp_path_factory.mktemp(request.param), family=request.param)


def logits_of(model: VisionLanguageModel) -> torch.Tensor:
    return PagedForward(model).logits(IDS, SPANS, IMAGES)


def spy_ops(calls: Counter[str]) -> Ops:
    def counted(name: str):
        real = getattr(REFERENCE, name)

        @functools.wraps(real)
        def run(*args, **kwargs):
            calls[name] += 1
            return real(*args, **kwargs)

        return run

    # With any other attention of segments than the reference, a tower packs its images: see `Ops.packs`.
    names = {field.name for field in fields(Ops)} - {"varlen_attention"}
    return Ops(**{name: counted(name) for name in names})


def test_a_forward_pass_calls_every_operation_of_its_model(checkpoint, monkeypatch) -> None:
    expected = logits_of(load_model(checkpoint, dtype=torch.float32, device=CPU))
    calls: Counter[str] = Counter()
    monkeypatch.setattr(loader, "choose_ops", lambda *_, **__: spy_ops(calls))
    model = load_model(checkpoint, dtype=torch.float32, device=CPU)
    assert torch.equal(logits_of(model), expected)
    decoder = model.spec.decoder
    assert isinstance(model.visual.blocks, ModuleList)
    layers, blocks = decoder.num_layers, len(model.visual.blocks)
    in_tower = model.spec.family == "qwen2_5_vl"
    # A block of the tower ends in pieces: one for each length of its windows, at least.
    pieces = calls["silu_and_mul"] - layers if in_tower else 0
    assert pieces >= blocks * in_tower
    assert calls == {
        "rotate_and_write": layers,
        "paged_attention": layers,
        "add_rms_norm": 2 * layers + 1,
        "apply_rope": 2 * blocks,
        "silu_and_mul": layers + pieces,
        **({"rms_norm": blocks + pieces + 1} if in_tower else {}),
    }


@dataclass(frozen=True)
class ScaledHalf:
    """A float16 weight [out, in] and one float32 scale."""

    weight: torch.Tensor
    scale: float
    bias: torch.Tensor | None

    @classmethod
    def of(cls, dense: DenseWeight) -> ScaledHalf:
        scale = dense.weight.abs().max().item()
        bias = None if dense.bias is None else dense.bias.clone()
        return cls((dense.weight / scale).half(), scale, bias)

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + (0 if self.bias is None else self.bias.nbytes)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        out = x @ (self.weight.to(x.dtype) * self.scale).T
        return out if self.bias is None else out + self.bias


def test_weights_in_another_form_after_loading(checkpoint) -> None:
    model = load_model(checkpoint, dtype=torch.float32, device=CPU)
    expected, before = logits_of(model), model.weight_bytes
    convert_linears(model, ScaledHalf.of)
    linears = [module for module in model.modules() if isinstance(module, Linear)]
    assert all(isinstance(module.form, ScaledHalf) for module in linears)
    assert 0.5 * before < model.weight_bytes < 0.7 * before
    found = logits_of(model)
    assert 0 < (found - expected).std() < 0.01 * expected.std()


def test_when_a_model_takes_the_references(checkpoint, monkeypatch) -> None:
    spy = spy_ops(Counter())
    monkeypatch.setattr(loader, "choose_ops", lambda *_, **__: spy)
    gpu, other = torch.device("cuda:0"), torch.device("cuda:1")
    spec = load_spec(checkpoint)

    def chosen(devices: list[torch.device], gpu_kernels: str = "auto") -> Ops:
        return loader.ops_for(spec, devices, torch.float32, gpu_kernels)

    assert chosen([gpu]) is spy
    assert chosen([gpu, other]) is spy
    assert chosen([gpu, CPU]) is REFERENCE
    assert chosen([gpu], "off") is REFERENCE


def test_kernels_are_compared_with_the_sizes_of_the_model(checkpoint, monkeypatch) -> None:
    """And on its device: parameters are made without values, on a device of which kernels know nothing."""
    seen = []

    def choose(devices, dtype, *, sizes) -> Ops:
        seen.append((devices, dtype, sizes, torch.empty(0).device))
        return REFERENCE

    monkeypatch.setattr(loader, "choose_ops", choose)
    spec = load_model(checkpoint, dtype=torch.float32, device=CPU).spec
    decoder, vision = spec.decoder, spec.vision
    assert isinstance(vision, QwenVisionSpec)
    sizes = Sizes(
        num_heads=decoder.num_heads,
        num_kv_heads=decoder.num_kv_heads,
        head_dim=decoder.head_dim,
        hidden_size=decoder.hidden_size,
        intermediate_size=decoder.intermediate_size,
        vocab_size=decoder.vocab_size,
        rotated=decoder.rope.dim,
        adjacent_pairs=decoder.rope.adjacent_pairs,
        qk_norm=decoder.qk_norm,
        scaled_queries=decoder.logn_length is not None,
        vision_heads=(vision.num_heads, vision.head_dim),
    )
    assert seen == [([CPU], torch.float32, sizes, CPU)]
