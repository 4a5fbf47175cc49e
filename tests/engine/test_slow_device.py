"""The inputs of a step on a device that is slower than the host: queued copies and forward passes read them late."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from inference_service.engine import inputs
from inference_service.engine.core import EngineCore
from inference_service.engine.inputs import Fence, InputBuffers, SequenceInput
from inference_service.engine.scheduler import Plan
from inference_service.models.batch import ForwardBatch, KVCache
from tests.engine.test_inputs import sequence_of
from tests.support.conversations import GREEDY, conversation, drain


PROMPT = conversation(["Tell me a very long story with many, many words in it, please. " * 4])


class SlowDevice:
    """Runs queued work, in order, only when the host waits for it; in the memory of the CPU."""

    def __init__(self) -> None:
        self.done = 0
        self._queue: list[Callable[[], Any]] = []

    @property
    def queued(self) -> int:
        """Number of pieces of work ever queued."""
        return self.done + len(self._queue)

    def enqueue(self, work: Callable[[], Any]) -> None:
        self._queue.append(work)

    def run(self, until: int | None = None) -> None:
        """Completes the first `until` pieces of work ever queued; None = all."""
        while self._queue and (until is None or self.done < until):
            self._queue.pop(0)()
            self.done += 1


class SlowFence(Fence):
    def __init__(self, device: SlowDevice) -> None:
        self._slow = device
        self._until = 0

    def record(self) -> None:
        self._until = self._slow.queued

    def wait(self) -> None:
        self._slow.run(self._until)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> SlowDevice:
    """Input buffers that are allocated from now on upload to this device."""
    device = SlowDevice()

    class SlowBuffer(inputs._Buffer):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self._target = torch.zeros_like(self._source)

        def upload(self, count: int) -> Tensor:
            target, source = self._target[:count], self._source[:count]
            device.enqueue(lambda: target.copy_(source))
            return target

    monkeypatch.setattr(inputs, "_Buffer", SlowBuffer)
    monkeypatch.setattr(inputs, "Fence", lambda _: SlowFence(device))
    return device


def run_on(slow: SlowDevice, core: EngineCore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queues forward passes. A step that samples reads its results: it runs everything as soon as it is queued."""
    model = core._runner._model
    forward, launch, enqueue = model.forward, core.launch, slow.enqueue

    def queued_forward(batch: ForwardBatch, kv_cache: KVCache) -> Tensor:
        meta = batch.attention  # what is on the host is read at once
        starts, contexts = meta.host_query_start.copy(), meta.host_context_lens.copy()
        meta = replace(meta, host_query_start=starts, host_context_lens=contexts)
        hidden = torch.zeros(len(batch.token_ids), model.spec.decoder.hidden_size)
        compute = torch.inference_mode()(forward)
        slow.enqueue(lambda: hidden.copy_(compute(replace(batch, attention=meta), kv_cache)))
        return hidden

    def launch_and_read(plan: Plan) -> Any:
        samples = any(chunk.samples for chunk in plan.chunks)

        def enqueue_and_run(work: Callable[[], Any]) -> None:
            enqueue(work)
            slow.run()

        monkeypatch.setattr(slow, "enqueue", enqueue_and_run if samples else enqueue)
        return launch(plan)

    monkeypatch.setattr(model, "forward", queued_forward)
    monkeypatch.setattr(core, "launch", launch_and_read)


def answer(core: EngineCore) -> list[int]:
    core.add(PROMPT.request("a", GREEDY), PROMPT.pixels)
    return drain(core)["a"].token_ids


def test_a_prompt_in_many_chunks_is_read_as_it_was_packed(make_core, slow, monkeypatch) -> None:
    """Steps of a prompt wait for no result, so many of them are packed before the device has begun."""
    core = make_core(max_num_batched_tokens=16)
    run_on(slow, core, monkeypatch)
    late = answer(core)
    monkeypatch.undo()
    assert late == answer(make_core(max_num_batched_tokens=16))


def test_the_slow_device_shows_a_missing_fence(make_core, slow, monkeypatch) -> None:
    monkeypatch.setattr(SlowFence, "wait", lambda _: None)
    core = make_core(max_num_batched_tokens=16)
    run_on(slow, core, monkeypatch)
    late = answer(core)
    monkeypatch.undo()
    assert late != answer(make_core(max_num_batched_tokens=16))


def new_buffers() -> InputBuffers:
    return InputBuffers(
        max_tokens=8, max_seqs=2, max_pages=9, page_size=4, device=torch.device("cpu")
    )


def sequence_with(token_id: int) -> SequenceInput:
    return replace(sequence_of(2), token_ids=[token_id] * 2)


def test_packing_waits_for_the_copies_of_the_previous_batch_only(slow: SlowDevice) -> None:
    buffers = new_buffers()
    batch = buffers.pack([sequence_with(5)])
    read: list[list[int]] = []
    copies = slow.queued
    slow.enqueue(lambda: read.append(batch.token_ids.tolist()))  # a forward pass
    assert slow.done == 0
    buffers.pack([sequence_with(6)])
    assert slow.done == copies
    slow.run()
    assert read == [[5, 5]]


def test_packing_waits_for_the_copy_of_the_sampled_rows(slow: SlowDevice) -> None:
    buffers = new_buffers()
    buffers.pack([sequence_with(5)])
    rows = buffers.rows([1])
    queued = slow.queued
    buffers.pack([sequence_with(6)])
    assert slow.done == queued
    assert rows.tolist() == [1]


def test_running_out_of_memory_while_packing_queues_nothing(slow: SlowDevice) -> None:
    buffers = new_buffers()
    with pytest.raises(RuntimeError):
        buffers.pack([sequence_with(5)], [0, 1], [torch.ones(1, 8), torch.ones(1, 9)])
    assert slow.queued == 0
