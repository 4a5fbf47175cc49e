"""The inputs of a step on a device that is slower than the host: queued copies and forward passes read them late."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from inference_service.engine import runner as runner_module
from inference_service.engine import staging as staging_module
from inference_service.engine.core import EngineCore
from inference_service.engine.inputs import Packed, batch_of
from inference_service.engine.plan import Plan
from inference_service.engine.runner import ModelRunner
from inference_service.engine.staging import Fence, Staging
from inference_service.models.batch import ForwardBatch, KVCache
from tests.support.conversations import GREEDY, conversation, drain
from tests.support.tiny_qwen_vl import image


PICTURE = conversation(["Look: ", image(3, 4, 11)])
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
    """What is sent from now on arrives on this device, in a buffer of its own, when its turn comes."""
    device = SlowDevice()

    def upload(self: Staging, host: Any, used: int) -> Tensor:
        if self._target is None:
            self._target = torch.zeros(1 << 16, dtype=torch.int64)
        target, source = self._target[:used], host.tensor[:used]
        device.enqueue(lambda: target.copy_(source))
        host.fence.record()
        return target

    monkeypatch.setattr(Staging, "_upload", upload)
    monkeypatch.setattr(staging_module, "Fence", lambda _: SlowFence(device))
    return device


def run_on(slow: SlowDevice, core: EngineCore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queues what comes before sampling. A step that samples is run as soon as it is queued, as its rows are read."""
    model = core._runner._model
    forward, launch, enqueue = model.forward, core._pipeline.launch, slow.enqueue
    update_slots = model.ops.update_slots

    def later(packed: Packed, *inputs: Any) -> tuple[int, Callable[[], ForwardBatch]]:
        return int(packed.host_query_start[-1]), partial(batch_of, packed, *inputs)

    def queued_forward(batch: tuple[int, Callable[[], ForwardBatch]], kv_cache: KVCache) -> Tensor:
        num_tokens, make = batch
        hidden = torch.zeros(num_tokens, model.spec.decoder.hidden_size)
        compute = torch.inference_mode()(lambda: hidden.copy_(forward(make(), kv_cache)))
        slow.enqueue(compute)
        return hidden

    def launch_and_read(plan: Plan) -> Any:
        samples = any(chunk.samples for chunk in plan.chunks)

        def enqueue_and_run(work: Callable[[], Any]) -> None:
            enqueue(work)
            slow.run()

        monkeypatch.setattr(slow, "enqueue", enqueue_and_run if samples else enqueue)
        return launch(plan)

    def queued_update(*inputs: Any) -> None:
        slow.enqueue(torch.inference_mode()(partial(update_slots, *inputs)))

    monkeypatch.setattr(runner_module, "batch_of", later)
    monkeypatch.setattr(model, "ops", replace(model.ops, update_slots=queued_update))
    monkeypatch.setattr(model, "forward", queued_forward)
    monkeypatch.setattr(core._pipeline, "launch", launch_and_read)


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


def test_sending_waits_for_the_copy_of_the_last_step_but_one_only(slow: SlowDevice) -> None:
    staging = Staging(torch.device("cpu"))
    read: list[list[int]] = []
    for number in (5, 6):
        [tensor] = staging.send([np.array([number, number])])
        slow.enqueue(partial(lambda sent: read.append(sent.tolist()), tensor))  # a forward pass
    assert slow.done == 0
    staging.send([np.array([7, 7])])
    assert slow.done == 1
    slow.run()
    assert read == [[5, 5], [6, 6]]


def test_running_out_of_memory_while_packing_queues_nothing(make_core, slow, monkeypatch) -> None:
    core = make_core()

    def no_memory(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(ModelRunner, "_image_rows", no_memory)
    core.add(PICTURE.request("x"), PICTURE.pixels)
    failure = drain(core)["x"].outputs[-1].failure
    assert failure is not None
    assert failure.reason == "GPU_OUT_OF_MEMORY"
    assert slow.queued == 0
