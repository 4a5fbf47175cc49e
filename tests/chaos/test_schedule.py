"""A seeded schedule of faults over the front, the supervisor of its engine and the scheduler in it.

Requests come with images and several answers; some are aborted, some callers leave, some have no time; the engine is
killed, stopped and continued. Whatever the schedule, each request ends once, with its own answer or an error, nothing
is left in the front or the engine, and the next request is served. A failure is repeated with its seed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
import os
from pathlib import Path
import random
import signal
import sys

import grpc.aio
import pytest

from inference_service.backend.local import LocalBackend
from inference_service.backend.served_model import ServedModel
from inference_service.engine_client.client import EngineClient
from inference_service.engine_client.interface import EngineState
from inference_service.engine_protocol.messages import EngineConfig
from inference_service.grpc_api.server import Front
from inference_service.settings import ServiceSettings
from qwenvl.inference.v1 import admin_service_pb2 as admin_pb
from qwenvl.inference.v1 import admin_service_pb2_grpc as admin_grpc
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from tests.chaos.scheduled_engine import letter
from tests.grpc_api.asking import image_part, spec_of
from tests.support.images import draw


ENGINE = (sys.executable, str(Path(__file__).with_name("scheduled_engine.py")))
BOUND_S = 120.0
REQUESTS = 40
MAX_KILLS = 6
CALLERS = ("ann", "bob", "eve")
EXPECTED = {
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.INTERNAL,  # in flight at two deaths
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNAVAILABLE,
}
IMAGES = [draw(colour, "circle").png for colour in ("red", "blue")]


@dataclass
class Asked:
    """One request as its caller saw it.

    Attributes:
        ends: How often each answer, and the call as a whole, has ended.
    """

    id: str
    choices: int
    started: chat_pb.StreamChatCompletionResponse | None = None
    texts: dict[int, str] = field(default_factory=dict)
    ends: list[object] = field(default_factory=list)
    code: grpc.StatusCode | None = None

    def take(self, event: chat_pb.StreamChatCompletionResponse) -> None:
        assert grpc.StatusCode.OK not in self.ends, "an event after the end"
        match event.WhichOneof("event"):
            case "started":
                assert self.started is None
                self.started = event
            case "delta":
                index = event.delta.choice_index
                assert index not in self.ends, "a piece after the end of an answer"
                self.texts[index] = self.texts.get(index, "") + event.delta.text
            case "finished":
                self.ends.append(event.finished.choice_index)
            case "usage":
                self.ends.append(grpc.StatusCode.OK)

    def check(self) -> None:
        """What there is of each answer is its own, and a call without an error is complete."""
        assert len(self.ends) == len({*self.ends}), self
        if self.code is None:
            assert {*self.ends} == {*range(self.choices), grpc.StatusCode.OK}, self
        else:
            assert self.code in EXPECTED, self
        if self.started is not None:
            prompt = tuple(self.started.started.prompt_token_ids)
            for choice, text in self.texts.items():
                whole = "".join(chr(33 + letter(prompt, i, choice)) for i in range(len(text)))
                assert text == whole, self


class Siege:
    """A front, its engine, and a schedule."""

    def __init__(
        self, front: Front, backend: LocalBackend, engine: EngineClient, seed: int
    ) -> None:
        self.front, self.backend, self.engine = front, backend, engine
        self.random = random.Random(seed)
        self.asked: list[Asked] = []
        self.kills = self.events = 0
        target = f"127.0.0.1:{front.ports['grpc']}"
        self.channel = grpc.aio.insecure_channel(target)
        self.chat = chat_grpc.ChatServiceStub(self.channel)
        self.admin = admin_grpc.AdminServiceStub(self.channel)

    async def run(self) -> None:
        """Asks, and breaks things meanwhile."""
        plans = [self._plan(number) for number in range(REQUESTS)]
        breaking = asyncio.ensure_future(self._break())
        async with asyncio.timeout(BOUND_S):
            await asyncio.gather(*plans)
        breaking.cancel()
        await asyncio.gather(breaking, return_exceptions=True)

    def _plan(self, number: int) -> asyncio.Task[None]:
        """A request with everything about it drawn now, so that the schedule depends on the seed alone."""
        draw_one = self.random
        parts = [image_part(draw_one.choice(IMAGES))] if draw_one.random() < 0.3 else []
        words = "x" * draw_one.randint(1, 40)
        asked = Asked(f"r{number}", draw_one.randint(1, 3))
        self.asked.append(asked)
        spec = spec_of(
            *parts,
            f"{number} {words}",
            sampling={"max_tokens": draw_one.randint(1, 40), "ignore_eos": True},
            n=asked.choices,
            request_id=asked.id,
            priority=draw_one.randint(-2, 2),
        )
        spec.response.return_prompt_token_ids = True
        kind = draw_one.choice(("wait", "wait", "wait", "abort", "leave", "deadline"))
        return asyncio.create_task(
            self._ask(
                asked,
                spec,
                kind,
                caller=draw_one.choice(CALLERS),
                begin_s=draw_one.uniform(0, 2),
                patience_s=draw_one.uniform(0.0, 0.6),
            )
        )

    async def _ask(
        self,
        asked: Asked,
        spec: chat_pb.ChatCompletionSpec,
        kind: str,
        *,
        caller: str,
        begin_s: float,
        patience_s: float,
    ) -> None:
        await asyncio.sleep(begin_s)
        await self._is_up()
        metadata = (("authorization", f"Bearer {caller}"),)
        call = self.chat.StreamChatCompletion(
            chat_pb.StreamChatCompletionRequest(spec=spec),
            metadata=metadata,
            timeout=patience_s if kind == "deadline" else BOUND_S,
        )
        ending = asyncio.ensure_future(self._end(kind, call, spec.request_id, patience_s, metadata))
        try:
            async for event in call:
                asked.take(event)
                self.events += 1
        except grpc.aio.AioRpcError as error:
            asked.code = error.code()
        except asyncio.CancelledError:
            asked.code = grpc.StatusCode.CANCELLED
        await ending

    async def _end(
        self,
        kind: str,
        call: grpc.aio.UnaryStreamCall,
        request_id: str,
        patience_s: float,
        metadata: tuple[tuple[str, str], ...],
    ) -> None:
        await asyncio.sleep(patience_s)
        if kind == "leave":
            call.cancel()
        elif kind == "abort":
            request = admin_pb.AbortRequest(request_ids=[request_id])
            await self.admin.Abort(request, metadata=metadata, timeout=BOUND_S)

    async def _break(self) -> None:
        """Kills or stops the engine whenever some more has been answered, which takes longer on a busy machine."""
        while self.kills < MAX_KILLS:
            wanted = self.events + self.random.randint(1, 80)
            while self.events < wanted:  # noqa: ASYNC110 - nobody could set an event
                await asyncio.sleep(0.005)
            pid, kills = self.engine.pid, self.random.random() < 0.5
            if pid is None:
                continue
            with suppress(ProcessLookupError):
                if kills:
                    self.kills += 1
                    os.kill(pid, signal.SIGKILL)
                    continue
                os.kill(pid, signal.SIGSTOP)
                try:
                    await asyncio.sleep(self.random.uniform(0.05, 0.4))
                finally:  # also when all requests have ended: nobody else would let it go on
                    os.kill(pid, signal.SIGCONT)

    async def _is_up(self) -> None:
        """Waits for an engine."""
        while self.engine.state is not EngineState.READY:  # noqa: ASYNC110 - nobody could set an event
            await asyncio.sleep(0.02)

    async def comes_to_rest(self) -> None:
        """Waits until nothing is in the front or the engine any more."""
        async with asyncio.timeout(BOUND_S):
            while self._left():  # noqa: ASYNC110 - nobody could set an event
                await asyncio.sleep(0.05)

    def _left(self) -> dict[str, object]:
        """What is still there; empty in the end."""
        load, shared = self.backend.load(), self.backend._shared
        names = ("batch", "tokens", "preparing", "decoders", "pixels")
        lines = {name: getattr(shared, name) for name in names}
        counts: dict[str, object] = {
            "in flight": self.backend.in_flight,
            "requests of the engine": len(self.engine._requests),
            "running": load.running,
            "waiting": load.waiting,
            "pages": load.kv_pages_used,
            "pixels on their way": load.pixel_bytes_in_flight,
            "not ready": self.engine.state is not EngineState.READY,
        }
        counts |= {name: line.held + line.waiting for name, line in lines.items()}
        return {name: count for name, count in counts.items() if count}


@asynccontextmanager
async def besieged(model: ServedModel, seed: int) -> AsyncIterator[Siege]:
    settings = ServiceSettings(
        grpc_address="127.0.0.1:0", admin_address=None, max_num_seqs=6, max_queue=24
    )
    engine = EngineClient(
        EngineConfig(model_dir="none"),
        start_timeout_s=BOUND_S,
        stall_timeout_s=BOUND_S,
        pixel_budget_bytes=2**22,
        restart_delay_s=0.01,
        command=ENGINE,
    )
    backend = LocalBackend(settings, model, engine)
    front = Front(settings, backend)
    await front.start()
    await backend.start()
    siege = Siege(front, backend, engine, seed)
    try:
        yield siege
    finally:
        await siege.channel.close()
        await front.stop(0.0)


async def check(model: ServedModel, seed: int) -> None:
    async with besieged(model, seed) as siege:
        await siege.run()
        await siege.comes_to_rest()
        for asked in siege.asked:
            asked.check()
        assert None in {asked.code for asked in siege.asked}, "none has succeeded"
        answer = await siege.chat.CreateChatCompletion(
            chat_pb.CreateChatCompletionRequest(spec=spec_of("last", sampling={"max_tokens": 3})),
            timeout=BOUND_S,
        )
        assert answer.choices[0].finish_reason == usage_pb.FINISH_REASON_LENGTH
        await siege.comes_to_rest()
        assert siege.engine.restarts.total() <= siege.kills


@pytest.mark.parametrize("seed", range(2))
async def test_a_schedule_of_faults(model: ServedModel, seed: int) -> None:
    await check(model, seed)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(2, 40))
async def test_many_schedules_of_faults(model: ServedModel, seed: int) -> None:
    await check(model, seed)


@pytest.mark.full
async def test_the_end_of_a_schedule_leaves_no_engine_stopped(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would only be noticed when its time to start or to answer is over."""
    async with besieged(model, 0) as siege:
        monkeypatch.setattr(siege.random, "random", lambda: 1.0)  # stops, and never kills
        monkeypatch.setattr(siege.random, "uniform", lambda *_: BOUND_S)
        siege.events = 1000
        monkeypatch.setattr(siege.random, "randint", lambda *_: 0)
        pid = siege.engine.pid
        breaking = asyncio.ensure_future(siege._break())
        await comes_to_be(lambda: is_stopped(pid))
        breaking.cancel()
        await asyncio.gather(breaking, return_exceptions=True)
        await comes_to_be(lambda: not is_stopped(pid))


def is_stopped(pid: int | None) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


async def comes_to_be(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - nobody could set an event
            await asyncio.sleep(0.01)
