"""Between launch and collect, a decode step neither waits for the device nor makes tensors of lists."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from inference_service.engine import step_sampler
from inference_service.engine.core import EngineCore
from inference_service.engine.sampler import sample_
from inference_service.models.batch import ForwardBatch
from tests.support.conversations import GREEDY, conversation


PROMPTS = [conversation([text]) for text in ("Tell me a story.", "Hi", "Name three rivers.")]
SETTINGS = [
    GREEDY,
    replace(GREEDY, repetition_penalty=1.2),
    replace(
        GREEDY,
        temperature=0.8,
        top_k=20,
        top_p=0.9,
        min_p=0.01,
        repetition_penalty=1.05,
        frequency_penalty=0.2,
        min_tokens=30,
        logit_bias=((3, 1.0),),
        logprobs=2,
    ),
    replace(GREEDY, temperature=1.0, top_p=0.9),
    replace(GREEDY, temperature=1.0),
]

_FORBIDDEN_CALLS: Final = {
    torch.tensor,
    torch.as_tensor,
    torch.Tensor.tolist,
    torch.Tensor.item,
    torch.Tensor.numpy,
    torch.Tensor.__bool__,
    torch.Tensor.__int__,
    torch.Tensor.__float__,
    torch.Tensor.__index__,
}
_FORBIDDEN_OPS: Final = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"}


class WaitError(AssertionError):
    """The host would wait for a GPU here."""


class NoCalls(TorchFunctionMode):
    """Refuses what reads a tensor on the host, and what makes one of a list."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _FORBIDDEN_CALLS:
            raise WaitError(str(func))
        return func(*args, **(kwargs or {}))


class NoOps(TorchDispatchMode):
    """Refuses operations whose results have to be read before they can go on."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name in _FORBIDDEN_OPS or (name.startswith("aten::index") and _by_flags(args)):
            raise WaitError(name)
        return func(*args, **(kwargs or {}))


def _by_flags(args: Any) -> bool:
    """Whether places are selected by booleans, which are counted first."""
    places = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else ()
    return any(place is not None and place.dtype == torch.bool for place in places)


@pytest.fixture
def core(make_core, monkeypatch: pytest.MonkeyPatch) -> EngineCore:
    """A core whose sampler takes a CPU for a GPU, and whose decoder has no attention.

    The torch reference of attention reads lengths from the host by design.
    """
    core: EngineCore = make_core()
    monkeypatch.setattr(step_sampler, "sample_", partial(sample_, looks=False))
    decoder = core._runner._model.decoder

    def forward(batch: ForwardBatch, _: Any) -> torch.Tensor:
        return decoder.embed_tokens(batch.token_ids) + batch.positions.float().mean()

    monkeypatch.setattr(core._runner._model, "forward", forward)
    return core


def decode_under_watch(core: EngineCore, steps: int = 4) -> int:
    """Prefills without, and decodes with the modes; the number of tokens."""
    count = 0
    for index in range(len(SETTINGS)):
        sampling = replace(SETTINGS[index], max_tokens=6, eos_token_ids=())
        core.add(PROMPTS[index % 3].request(str(index), sampling), b"")
    core.step()
    for _ in range(steps):
        plan = core._scheduler.schedule()
        assert {chunk.end - chunk.start for chunk in plan.chunks} == {1}
        with NoCalls(), NoOps():
            core._pipeline.launch(plan)
        count += len(core._pipeline.collect())
    return count


def test_a_decode_step_does_not_wait(core: EngineCore) -> None:
    assert decode_under_watch(core) == 4 * len(SETTINGS)


@pytest.mark.parametrize(
    "wait",
    [
        lambda logits: logits[0, 0].item(),
        lambda logits: logits[0].tolist(),
        lambda logits: bool(logits.isnan().any()),
        lambda logits: torch.tensor([1, 2], device=logits.device),
        lambda logits: logits.nonzero(),
        lambda logits: logits[logits > 0],
        lambda logits: int(logits.argmax()),
    ],
)
def test_notices_a_wait(
    core: EngineCore, monkeypatch: pytest.MonkeyPatch, wait: Callable[[torch.Tensor], Any]
) -> None:
    real = core._runner._model.logits

    def logits_after_wait(hidden: torch.Tensor) -> torch.Tensor:
        logits = real(hidden)
        wait(logits)
        return logits

    core.step()
    monkeypatch.setattr(core._runner._model, "logits", logits_after_wait)
    with pytest.raises(WaitError):
        decode_under_watch(core)
