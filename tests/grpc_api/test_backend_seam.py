"""The gRPC services around a backend that is not our engine: they know nothing but the seam."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
import dataclasses

import grpc.aio
import pytest

from inference_service.backend.base import (
    Backend,
    BackendInfo,
    BackendStartError,
    BackendState,
    ImageLimits,
    Load,
    MediaPlaceholder,
    Modality,
    ModelDescription,
    Rendered,
    TokenCount,
    Vocabulary,
)
from inference_service.decisions import Decision, DecisionRequest, Decisions
from inference_service.domain import (
    ChatRequest,
    Delta,
    EndReason,
    Event,
    Finished,
    Request,
    Started,
    TextPart,
    TokenUsage,
)
from inference_service.grpc_api.server import Front, serve
from inference_service.sampling import Sampling
from inference_service.settings import ServiceSettings
from qwenvl.inference.v1 import admin_service_pb2 as admin_pb
from qwenvl.inference.v1 import admin_service_pb2_grpc as admin_grpc
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import completion_service_pb2_grpc as completion_grpc
from qwenvl.inference.v1 import model_service_pb2 as model_pb
from qwenvl.inference.v1 import model_service_pb2_grpc as model_grpc
from qwenvl.inference.v1 import tokenize_service_pb2 as tokenize_pb
from qwenvl.inference.v1 import tokenize_service_pb2_grpc as tokenize_grpc
from tests.grpc_api.asking import spec_of, until
from tests.grpc_api.conftest import channel_to


USAGE = TokenUsage(prompt_tokens=3, image_tokens=0)
SETTINGS = ServiceSettings(grpc_address="127.0.0.1:0", admin_address=None)


class ShoutingBackend:
    """Answers with the question in capitals."""

    def __init__(self, *, starts: bool = True) -> None:
        self.state = BackendState.LOADING
        self.names = ("echo", "shout")
        self.info = BackendInfo(device="elsewhere", restarts={"ended": 2})
        self.in_flight = 0
        self.callers: list[str] = []
        self.aborted: list[tuple[str, str | None]] = []
        self.closed = False
        self._starts = starts
        self._callbacks: list[Callable[[BackendState], None]] = []

    def check_admission(self, caller: str) -> None:
        del caller

    async def generate(self, request: Request, caller: str) -> AsyncGenerator[Event, None]:
        self.callers.append(caller)
        yield Started(
            request_id=request.request_id,
            created=1,
            sampling=Sampling(temperature=0.0, seed=1, max_tokens=9),
            stop_strings=(),
            stop_token_ids=(),
            include_stop_string=False,
            n=request.n,
            usage=USAGE,
            images=(),
        )
        for index in range(request.n):
            yield Delta(choice_index=index, text=_text_of(request).upper())
            yield Finished(choice_index=index, reason=EndReason.STOP)
        yield USAGE

    async def count(self, request: Request, caller: str) -> TokenCount:
        self.callers.append(caller)
        return TokenCount(usage=USAGE, images=(), prompt_token_ids=(7, 8, 9)[: request.n + 2])

    @property
    def vocabulary(self) -> Vocabulary:
        return self

    async def tokenize(
        self, text: str, request_id: str, caller: str, *, parse_special: bool
    ) -> tuple[int, ...]:
        del request_id, parse_special
        self.callers.append(caller)
        return tuple(map(ord, text))

    async def detokenize(
        self, token_ids: Sequence[int], request_id: str, caller: str, *, skip_special: bool
    ) -> str:
        del request_id, skip_special
        self.callers.append(caller)
        return "".join(map(chr, token_ids))

    async def strings(self, token_ids: Sequence[int], caller: str) -> tuple[str, ...]:
        return tuple(map(chr, token_ids))

    async def render(self, request: Request, caller: str) -> Rendered:
        [started, *_] = [event async for event in self.generate(request, caller)]
        assert isinstance(started, Started)
        started = dataclasses.replace(started, prompt_text=_text_of(request))
        place = MediaPlaceholder(offset=1, length=2, key=b"k")
        return Rendered(started=started, placeholders=(place,), begins_with_reasoning=True)

    async def decide(
        self, request: DecisionRequest, caller: str, *, prepared: Callable[[], None]
    ) -> Decisions:
        self.callers.append(caller)
        prepared()
        answers = tuple(
            Decision(
                kind=question.kind,
                name=question.name,
                probabilities=(0.75, 0.25),
                label_mass=0.5,
                top_is_label=True,
                refused=question.text == "refuse",
            )
            for question in request.questions
        )
        return Decisions(created=1, answers=answers, usage=USAGE, images=(), prompt_format=1)

    async def abort(self, request_id: str, caller: str | None = None) -> bool:
        self.aborted.append((request_id, caller))
        return request_id == "known"

    def describe(self) -> ModelDescription:
        return ModelDescription(
            names=self.names,
            family="unheard_of",
            created=5,
            modalities=(Modality.TEXT,),
            max_context_tokens=77,
            image_limits=ImageLimits(
                max_images=1,
                pixel_step=1,
                min_pixels=1,
                max_pixels=2,
                max_decoded_pixels=3,
                exif_transposed=False,
            ),
        )

    def load(self) -> Load:
        return Load(running=4)

    def on_state_change(self, callback: Callable[[BackendState], None]) -> None:
        self._callbacks.append(callback)

    def become(self, state: BackendState) -> None:
        self.state = state
        for callback in self._callbacks:
            callback(state)

    async def start(self) -> None:
        if not self._starts:
            self.become(BackendState.FAILED)
            raise BackendStartError("nobody is there")
        self.become(BackendState.READY)

    async def drain(self, timeout_s: float) -> None:
        assert timeout_s >= 0
        self.become(BackendState.DRAINING)

    async def close(self) -> None:
        self.closed = True


def _text_of(request: Request) -> str:
    if isinstance(request, ChatRequest):
        parts = request.messages[-1].parts
        return "".join(part.text for part in parts if isinstance(part, TextPart))
    return str(request.prompt)


@pytest.fixture
async def backend() -> ShoutingBackend:
    return ShoutingBackend()


@pytest.fixture
async def channel(backend: ShoutingBackend) -> AsyncIterator[grpc.aio.Channel]:
    as_seam: Backend = backend
    front = Front(SETTINGS, as_seam)
    await front.start()
    await backend.start()
    async with channel_to(f"127.0.0.1:{front.ports['grpc']}") as channel:
        yield channel
    await front.stop(0.0)
    assert backend.closed


async def test_chat_and_text_completion_are_answered(channel: grpc.aio.Channel) -> None:
    chat = chat_grpc.ChatServiceStub(channel)
    request = chat_pb.CreateChatCompletionRequest(spec=spec_of("hi", model="shout", n=2))
    response = await chat.CreateChatCompletion(request, timeout=20)
    assert [choice.text for choice in response.choices] == ["HI", "HI"]
    assert response.started.model == "echo"
    completion = completion_grpc.CompletionServiceStub(channel)
    spec = completion_pb.CompletionSpec(model="echo", text="once")
    stream = completion.StreamCompletion(
        completion_pb.StreamCompletionRequest(spec=spec), timeout=20
    )
    kinds = [event.WhichOneof("event") async for event in stream]
    assert kinds == ["started", "delta", "finished", "usage"]


async def test_tokens_are_counted(channel: grpc.aio.Channel) -> None:
    spec = spec_of("hi", response={"prompt_token_ids": True})
    counted = await chat_grpc.ChatServiceStub(channel).CountTokens(
        chat_pb.CountTokensRequest(spec=spec), timeout=20
    )
    assert (counted.usage.prompt_tokens, list(counted.prompt_token_ids)) == (3, [7, 8, 9])


async def test_tokens_and_prompts_are_the_backends(channel: grpc.aio.Channel) -> None:
    tokens = tokenize_grpc.TokenizeServiceStub(channel)
    asked = tokenize_pb.TokenizeRequest(text="hi", return_token_strings=True)
    found = await tokens.Tokenize(asked, timeout=20)
    assert (list(found.token_ids), list(found.token_strings)) == ([104, 105], ["h", "i"])
    assert found.max_context_tokens == 77
    back = await tokens.Detokenize(tokenize_pb.DetokenizeRequest(token_ids=[104, 105]), timeout=20)
    assert back.text == "hi"
    chat = chat_grpc.ChatServiceStub(channel)
    rendered = await chat.RenderChatCompletion(
        chat_pb.RenderChatCompletionRequest(spec=spec_of("hi")), timeout=20
    )
    assert (rendered.started.prompt_text, rendered.begins_with_reasoning) == ("hi", True)
    assert [(p.offset, p.length, p.key) for p in rendered.placeholders] == [(1, 2, b"k")]


async def test_what_a_backend_does_not_know_is_empty(channel: grpc.aio.Channel) -> None:
    models = model_grpc.ModelServiceStub(channel)
    listed = (await models.ListModels(model_pb.ListModelsRequest(), timeout=20)).models
    assert [(m.name, m.canonical_name) for m in listed] == [("echo", "echo"), ("shout", "echo")]
    assert (listed[0].family, listed[0].max_context_tokens) == ("unheard_of", 77)
    assert (listed[0].parameter_count, listed[0].memory.weight_bytes) == (0, 0)
    admin = admin_grpc.AdminServiceStub(channel)
    info = await admin.GetServerInfo(admin_pb.GetServerInfoRequest(), timeout=20)
    assert (info.model, info.device, info.engine_restarts) == ("echo", "elsewhere", 2)
    assert (info.engine_state, info.dtype, info.engine_pid) == (admin_pb.ENGINE_STATE_READY, "", 0)
    assert info.load.running_requests == 4


@pytest.mark.parametrize("state", list(BackendState))
async def test_every_state_has_a_name_in_the_api(
    channel: grpc.aio.Channel, backend: ShoutingBackend, state: BackendState
) -> None:
    backend.become(state)
    admin = admin_grpc.AdminServiceStub(channel)
    info = await admin.GetServerInfo(admin_pb.GetServerInfoRequest(), timeout=20)
    name = admin_pb.EngineState.Name(info.engine_state)
    assert name == f"ENGINE_STATE_{state.name}"


async def test_abort_goes_to_the_backend_with_its_caller(
    channel: grpc.aio.Channel, backend: ShoutingBackend
) -> None:
    """The caller is a digest of the key: the same as at the generation, and never the operator's None."""
    keys = (("authorization", "Bearer mine"),)
    chat = chat_grpc.ChatServiceStub(channel)
    create = chat_pb.CreateChatCompletionRequest(spec=spec_of("hi"))
    await chat.CreateChatCompletion(create, timeout=20, metadata=keys)
    [caller] = backend.callers
    request = admin_pb.AbortRequest(request_ids=["known", "unknown"])
    admin = admin_grpc.AdminServiceStub(channel)
    response = await admin.Abort(request, timeout=20, metadata=keys)
    assert list(response.aborted_request_ids) == ["known"]
    assert list(response.unknown_request_ids) == ["unknown"]
    await admin.Abort(admin_pb.AbortRequest(request_ids=["known"]), timeout=20)
    assert backend.aborted == [("known", caller), ("unknown", caller), ("known", "")]
    assert caller


async def test_a_backend_that_fails_ends_the_service() -> None:
    backend = ShoutingBackend()
    running = asyncio.ensure_future(serve(SETTINGS, backend))
    await until(lambda: backend.state is BackendState.READY)
    backend.become(BackendState.FAILED)
    async with asyncio.timeout(20):
        assert await running == 1
    assert backend.closed


async def test_a_backend_that_does_not_start_ends_the_service(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with asyncio.timeout(20):
        assert await serve(SETTINGS, ShoutingBackend(starts=False)) == 1
    assert "nobody is there" in caplog.text


class LoadingBackend(ShoutingBackend):
    """Loads until it is closed, which ends the loading with an error."""

    def __init__(self) -> None:
        super().__init__()
        self._closing = asyncio.Event()

    async def start(self) -> None:
        await self._closing.wait()
        raise BackendStartError("closed while loading")

    async def close(self) -> None:
        await super().close()
        self._closing.set()


async def test_drain_while_the_model_loads_ends_the_service_without_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fronts: list[Front] = []
    start = Front.start

    async def remembered(front: Front) -> None:
        await start(front)
        fronts.append(front)

    monkeypatch.setattr(Front, "start", remembered)
    settings = ServiceSettings(grpc_address="127.0.0.1:0", admin_address="127.0.0.1:0")
    backend = LoadingBackend()
    running = asyncio.ensure_future(serve(settings, backend))
    await until(lambda: bool(fronts))
    async with channel_to(f"127.0.0.1:{fronts[0].ports['admin']}") as channel:
        await admin_grpc.AdminServiceStub(channel).Drain(admin_pb.DrainRequest(), timeout=20)
        async with asyncio.timeout(20):
            assert await running == 0
    assert backend.closed
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
