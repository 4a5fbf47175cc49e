"""Capturing decode steps at the start of an engine: what may go wrong, and what it then does without."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
import inspect
import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from inference_service.engine import graph_capture
from inference_service.engine.core import EngineCore
from inference_service.engine.failures import DeviceLostError
from inference_service.engine.graph_capture import CAPTURE_S, CudaCapture
from inference_service.engine.graph_check import GraphCheck
from inference_service.engine.graphs import DecodeGraph, DecodeStep
from tests.support import graph_tape
from tests.support.conversations import GREEDY, conversation, drain


Make = Callable[..., EngineCore]


# What a capture permits


HOST = torch.ones(1)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x[0, 0].item(),
        lambda x: x[0].tolist(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x + torch.tensor([1.0]),
        lambda x: x.masked_select(x > 0),
        lambda x: torch.equal(x, x),
        lambda x: x + HOST,
    ],
)
def test_a_step_that_needs_the_host_is_not_captured(
    make: Make,
    capture: graph_tape.TapeCapture,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wait: Callable[[Tensor], Any],
) -> None:
    real = DecodeStep.compute

    def compute(self: DecodeStep) -> None:
        real(self)
        wait(self.logits)

    monkeypatch.setattr(DecodeStep, "compute", compute)
    assert make(max_num_seqs=1)._runner.graphs.sizes == ()
    assert "NotPermittedError" in caplog.text


# Failures


PROMPT = conversation(["Tell me a story."])


def greedy_answers(core: EngineCore) -> dict[str, list[int]]:
    for index in range(5):
        core.add(PROMPT.request(str(index), replace(GREEDY, max_tokens=3 + index)), b"")
    return {name: answer.token_ids for name, answer in drain(core).items()}


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), RuntimeError("broken")])
@pytest.mark.parametrize("place", [0, 1, 2, 3, None])
def test_a_failed_capture_costs_its_size_only(
    make: Make,
    capture: graph_tape.TapeCapture,
    caplog: pytest.LogCaptureFixture,
    place: int | None,
    error: Exception,
) -> None:
    sizes = [5, 4, 2, 1]
    capture.breaks = {at: error for at in range(4) if place in (at, None)}
    wanted = greedy_answers(make(cuda_graphs="off"))
    core = make()
    left = [size for at, size in enumerate(sizes) if at not in capture.breaks]
    assert core._runner.graphs.sizes == tuple(sorted(left))
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert str(error) in warnings[0]
    assert greedy_answers(core) == wanted


def test_the_comparison_itself_may_fail(
    make: Make, capture: graph_tape.TapeCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(GraphCheck, "__init__", no_memory)
    assert make()._runner.graphs.sizes == ()
    assert not capture.tapes


def test_a_lost_device_ends_the_engine(make: Make, capture: graph_tape.TapeCapture) -> None:
    capture.is_lost = True
    with pytest.raises(DeviceLostError, match=r"--cuda-graphs off.*illegal memory access"):
        make()


def test_capturing_ends_in_time(
    make: Make,
    capture: graph_tape.TapeCapture,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The largest graphs come first: they serve small steps too."""
    times = iter([0.0, 1.0, CAPTURE_S - 1, CAPTURE_S + 1, CAPTURE_S + 2, CAPTURE_S + 3])
    real = graph_capture.capture_graphs
    monkeypatch.setattr(
        "inference_service.engine.assembly.capture_graphs",
        lambda *given: real(*given, clock=lambda: next(times)),
    )
    core = make()
    assert core._runner.graphs.sizes == (4, 5)
    assert "steps of up to 1, 2 sequences" in caplog.text
    greedy_answers(core)
    assert capture.tapes[-1].num_replays > 3


def _add_noise(step: DecodeStep) -> None:
    step.logits.mul_(torch.linspace(1, 1.2, step.logits.shape[1]))


@pytest.mark.parametrize(
    "fault",
    [
        (_add_noise, "it differs from its reference"),
        (lambda step: step.logits.fill_(torch.nan), "it differs from its reference"),
        (lambda step: step.token_ids.add_(1), "tokens of the sampler"),
        (lambda step: step._around.state.last_tokens.zero_(), "does not record"),
        (lambda step: step._around.state.history.zero_(), "does not record"),
        (lambda step: step._around.state.counts.add_(1), "does not record"),
    ],
)
def test_a_graph_that_differs_is_left_out(
    make: Make,
    capture: graph_tape.TapeCapture,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: tuple[Callable[[DecodeStep], Any], str],
) -> None:
    """Only that of two rows does, and only when it is replayed."""
    then, cause = fault
    real = graph_tape.TapeCapture.record

    def record(self: graph_tape.TapeCapture, work: Any) -> Callable[[], None]:
        replay, step = real(self, work), work.__self__

        def replay_wrongly() -> None:
            replay()
            if step.rows == 2:
                then(step)

        return replay_wrongly

    monkeypatch.setattr(graph_tape.TapeCapture, "record", record)
    core = make()
    assert core._runner.graphs.sizes == (1, 4, 5)
    assert cause in caplog.text


def _without_copy(self: DecodeGraph, words: Tensor, count: int) -> Any:
    self.replay()
    return self.step.token_ids[:count], self.step.logits[:count]


def _with_baked_length(monkeypatch: pytest.MonkeyPatch) -> None:
    real = graph_tape.attend

    def attend(q: Tensor, k: Tensor, v: Tensor, meta: Any, scale: float) -> Tensor:
        if not len(meta.host_query_start):
            meta.context_lens = torch.ones_like(meta.context_lens)
        return real(q, k, v, meta, scale)

    monkeypatch.setattr(graph_tape, "attend", attend)


@pytest.mark.parametrize("mutation", ["inputs", "lengths"])
def test_the_comparison_notices_what_a_replay_does_not_read(
    make_core: Make, monkeypatch: pytest.MonkeyPatch, mutation: str
) -> None:
    if mutation == "inputs":
        monkeypatch.setattr(DecodeGraph, "run", _without_copy)
    else:
        _with_baked_length(monkeypatch)
    graph_tape.install(monkeypatch)
    core = make_core(max_num_seqs=5, max_model_len=120)
    assert core._runner.graphs.sizes == ()


def test_nothing_is_left_of_the_comparison(make: Make, capture: graph_tape.TapeCapture) -> None:
    core = make()
    state, cache = core._runner._slots.state, core._runner._kv_cache
    assert isinstance(cache, Tensor)
    assert not cache[:, :, :-1].any()
    assert not any(one.any() for one in (state.last_tokens, state.history, state.counts))
    assert not state.page_table[:5].any()


# CUDA itself


class FakeCuda:
    """What `CudaCapture` uses of `torch.cuda`, with what happens in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        self.current = "main"
        self.fails = False
        self.num_pools = 0
        self._signature = inspect.signature(torch.cuda.graph)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", self.new_graph)
        monkeypatch.setattr(torch.cuda, "Stream", lambda _: "side")
        for name in ("graph", "stream", "device", "synchronize", "graph_pool_handle"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    def new_graph(self) -> Any:
        return SimpleNamespace(replay=lambda: self.events.append(f"replay on {self.current}"))

    def graph_pool_handle(self) -> int:
        self.num_pools += 1
        return self.num_pools

    def synchronize(self, _: torch.device) -> None:
        self.events.append("wait")

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        assert device == torch.device("cuda:1")
        yield

    @contextmanager
    def stream(self, name: str) -> Iterator[None]:
        before, self.current = self.current, name
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, *given: Any, **named: Any) -> Iterator[None]:
        """As torch's, it leaves its stream the current one if the capture fails."""
        self._signature.bind(*given, **named)
        assert named == {
            "pool": self.num_pools,
            "stream": "side",
            "capture_error_mode": "thread_local",
        }
        self.events.append("begin")
        self.current = "side"
        yield
        self.events.append("end")
        if self.fails:
            raise RuntimeError("operation failed due to a previous error during capture")


def test_cuda_runs_the_work_before_it_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    capture = CudaCapture(torch.device("cuda:1"))
    for _ in range(2):
        cuda.events.clear()
        replay = capture.record(lambda: cuda.events.append(f"work on {cuda.current}"))
        assert cuda.events == ["wait", "work on side", "wait", "begin", "work on side", "end"]
        replay()
        assert cuda.events[-1] == "replay on main"
    cuda.fails = True
    with pytest.raises(RuntimeError, match="previous error"):
        capture.record(lambda: None)
    assert cuda.current == "main"
    assert cuda.num_pools == 2, "the next captures have another pool"
    cuda.fails = False
    capture.record(lambda: None)
    assert cuda.num_pools == 2
