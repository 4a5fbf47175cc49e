"""A model whose layers are on several devices answers as on one; here all of them are the CPU."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import torch

from inference_service.engine import memory
from inference_service.engine_protocol.messages import EngineConfig, SamplingParams
from inference_service.families.registry import load_spec
from inference_service.kernels.attention import AttentionMetadata
from inference_service.kernels.heads import Rotation
from tests.support.attention_metadata import attention_metadata
from tests.support.conversations import ask, drain


META = torch.device("meta")


@pytest.mark.parametrize("devices", ["cpu,cpu", "cpu,cpu,cpu"])
def test_answers_with_images(make_core, prompts, expected, devices) -> None:
    core = make_core(device=devices)
    assert ask(core, prompts) == expected
    assert core.ready.device == devices
    assert core.ready.slow_path.startswith("layers 0-")
    assert core.ready.slow_path.count("on cpu") == devices.count("cpu")
    assert len(core._runner._model.decoder.handovers) == devices.count("cpu")


def test_log_probabilities_are_the_same_to_the_bit(make_core, prompts) -> None:
    params = SamplingParams(max_tokens=3, temperature=0.0, logprobs=5, prompt_logprobs=5)
    found = []
    for device in ("cpu", "cpu,cpu"):
        core = make_core(device=device)
        core.add(prompts[-1].request("a", params), prompts[-1].pixels)
        [answer] = drain(core).values()
        found.append([(o.token_ids, o.logprobs, o.prompt_logprobs) for o in answer.outputs])
    assert found[0] == found[1]


def test_one_device_is_no_slow_path(make_core) -> None:
    core = make_core()
    assert core.ready.slow_path == ""
    assert core._runner._model.decoder.handovers == {}


def test_pages_are_counted_for_the_device_with_the_least_room(make_core, monkeypatch) -> None:
    model = make_core(device="cpu,cpu")._runner._model
    config = EngineConfig(model_dir="", num_kv_pages=None, max_num_seqs=10**6)
    page = memory._layer_page_bytes(config, model.spec, model.dtype)
    layers = [(torch.device("cuda:0"), 1), (torch.device("cuda:1"), 3)]
    free = {torch.device("cuda:0"): 40 * page, torch.device("cuda:1"): 63 * page}
    monkeypatch.setattr(memory, "_layers_on", lambda _: layers)
    monkeypatch.setattr(memory, "_free_bytes", lambda *_: free)
    assert memory.count_kv_pages(config, model) == 21


@pytest.mark.parametrize(
    ("gib", "layers"),
    [((12, 12), (10, 22)), ((24, 24), (14, 18)), ((7, 40), (0, 32)), ((12, 6), None)],
)
def test_qwen_vl_on_two_gpus(monkeypatch, gib, layers) -> None:
    """The released model in float16: 32 layers of 0.38 GiB, and on the first GPU 6.05 GiB of tower and vocabulary."""
    room = dict(zip(("cuda:0", "cuda:1"), gib, strict=True))
    monkeypatch.setattr(memory, "_room", lambda _, device: room[str(device)] * 2**30)
    spec = load_spec(Path("tests/golden/configs/Qwen-VL-Chat"))
    given = (EngineConfig(model_dir=""), spec, [torch.device(name) for name in room], torch.float16)
    if layers is None:
        with pytest.raises(ValueError, match="bytes on cuda:0, cuda:1"):
            memory.plan_placement(*given)
    else:
        placement = memory.plan_placement(*given)
        assert placement is not None
        assert placement.layers == layers


def test_every_step_is_handed_over(make_core, prompts, monkeypatch) -> None:
    moved: list[tuple[type, torch.device]] = []
    for kind in (AttentionMetadata, Rotation):

        def spy(self, device, real=kind.to):
            moved.append((type(self), device))
            return real(self, device)

        monkeypatch.setattr(kind, "to", spy)
    core = make_core(device="cpu,cpu")
    ask(core, prompts[:1])
    for kind in (AttentionMetadata, Rotation):
        assert moved.count((kind, torch.device("cpu"))) == 2 * core.stats.steps


def test_a_handover_takes_all_tensors_along() -> None:
    here = torch.zeros(2)
    attention = attention_metadata(here, here[None], [0, 2], [2])
    for moved in (attention.to(META), Rotation(here, here, here).to(META)):
        values = [getattr(moved, field.name) for field in fields(moved)]
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        assert tensors
        assert all(tensor.device.type == "meta" for tensor in tensors)
