"""The gRPC services of `qwenvl.testing.FakeServer`, without a model: each character of an answer is one token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
import threading
from typing import Any, Final, NoReturn

import grpc

from qwenvl.answers import AnswerCollector, ChatEvent, CompletionEvent
from qwenvl.errors import BY_REASON, DOMAIN
from qwenvl.fake_tools import call_pieces, problem_of
from qwenvl.inference.v1 import admin_service_pb2 as admin_pb
from qwenvl.inference.v1 import admin_service_pb2_grpc as admin_grpc
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import completion_service_pb2_grpc as completion_grpc
from qwenvl.inference.v1 import decision_service_pb2 as decision_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.inference.v1 import model_service_pb2 as model_pb
from qwenvl.inference.v1 import model_service_pb2_grpc as model_grpc
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from qwenvl.status_details import TRAILER, Details, write_details


Spec = chat_pb.ChatCompletionSpec | completion_pb.CompletionSpec
"""What the service receives."""

REQUEST_ID: Final = "fake"
_IMAGE_TOKENS: Final = 64
CREATED: Final = 1_700_000_000
_PIECE: Final = 4
"""Characters of a delta."""
RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "top_k": (-1, 2**31 - 1),
    "min_p": (0, 1),
    "repetition_penalty": (0.001, 10),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "max_tokens": (1, 2**31 - 1),
    "min_tokens": (0, 2**31 - 1),
}
"""Minimum and maximum of sampling settings, as in every inference service; NaN is never allowed."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of the fake service.

    Attributes:
        text: What the model says, before `stop` and `max_tokens` are applied.
        groundings: The boxes, for requests that ask for them.
        reasoning: What it thinks before.
        tool_calls: Its calls behind the text, if that is not cut.
    """

    text: str = ""
    groundings: Sequence[usage_pb.Grounding] = ()
    reasoning: str = ""
    tool_calls: Sequence[message_pb.ToolCall] = ()


Answering = str | Reply | Callable[[Spec], str | Reply] | None


def check_reply(answer: object, name: str) -> None:
    """Checks what a test wants to be answered.

    Raises:
        TypeError: It cannot be answered.
    """
    if not isinstance(answer, str | Reply | None):
        kind = type(answer).__name__
        raise TypeError(f"{name} is a text, a Reply or None, not {kind}")


class Refused(Exception):  # noqa: N818 - what the service answers, not a fault
    """The service answers with an error.

    Attributes:
        reason: A key of `qwenvl.errors.BY_REASON`.
        message: Its text.
        field: Path of the invalid field, or empty.
        retry_after_s: Seconds after which the service invites a retry, or None.
    """

    def __init__(
        self, reason: str, message: str, field: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s


class FakeModel:
    """What the service answers, and what it has received; threads share it.

    Args:
        answer: See `FakeServer`.
        names: The served names, the canonical one first.
        api_key: The key that calls need, or empty.
    """

    def __init__(self, answer: Answering, names: Sequence[str], api_key: str) -> None:
        self.names = tuple(names)
        self.requests: list[Spec | decision_pb.DecisionSpec] = []
        self.failures: list[Refused] = []
        self.delay_s = 0.0
        self.closed = threading.Event()
        self._answer = answer
        self._api_key = api_key
        self._lock = threading.Lock()

    def accept(self, spec: Spec | decision_pb.DecisionSpec) -> None:
        """Takes a request.

        Raises:
            Refused: The model is not served, or the request was to fail.
        """
        with self._lock:
            self.requests.append(spec)
            failure = self.failures.pop(0) if self.failures else None
        if failure:
            raise failure
        self.canonical_name(spec.model, "spec.model")

    def wait(self) -> None:
        """Waits as long as answers are to take."""
        self.closed.wait(self.delay_s)

    def receive(self, spec: Spec) -> Reply:
        """What to answer to a request.

        Raises:
            Refused: The request is invalid, or was to fail.
        """
        self.accept(spec)
        _check(spec)
        self.wait()
        answer = self._answer
        if callable(answer):
            answer = answer(spec)
            check_reply(answer, "what the answer function returned")
        if answer is None:
            answer = _last_text(spec)
        return Reply(answer) if isinstance(answer, str) else answer

    def check_key(self, metadata: Mapping[str, str | bytes]) -> None:
        """Checks the key of a call.

        Raises:
            Refused: It is missing or wrong.
        """
        if self._api_key and metadata.get("authorization") != f"Bearer {self._api_key}":
            raise Refused(
                "UNAUTHENTICATED",
                "The API key is missing or unknown: send `authorization: Bearer KEY`.",
            )

    def canonical_name(self, name: str, field: str) -> str:
        """The canonical name of a served model; empty = the canonical one.

        Raises:
            Refused: It is not served.
        """
        if name and name not in self.names:
            message = f"The model {name!r} is not served here; served: {', '.join(self.names)}."
            raise Refused("MODEL_NOT_FOUND", message, field)
        return self.names[0]


class ChatServicer(chat_grpc.ChatServiceServicer):
    """Serves ChatService."""

    def __init__(self, model: FakeModel) -> None:
        self._model = model

    def CreateChatCompletion(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - the proto's name
        """Answers in one message."""
        collector = AnswerCollector(response := chat_pb.CreateChatCompletionResponse())
        for event in self.StreamChatCompletion(request, context):
            collector.add(event)
        collector.end()
        return response

    def StreamChatCompletion(  # noqa: N802
        self, request: Any, context: grpc.ServicerContext
    ) -> Iterator[ChatEvent]:
        """Streams every event of the answer."""
        with Refusing(self._model, context, request.spec.request_id):
            for fields in _events(self._model, request.spec):
                yield ChatEvent(**fields)

    def CountTokens(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Counts the tokens of the prompt."""
        with Refusing(self._model, context, request.spec.request_id):
            self._model.receive(request.spec)
        return chat_pb.CountTokensResponse(usage=_usage(request.spec, 0))


class CompletionServicer(completion_grpc.CompletionServiceServicer):
    """Serves CompletionService."""

    def __init__(self, model: FakeModel) -> None:
        self._model = model

    def CreateCompletion(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Answers in one message."""
        collector = AnswerCollector(response := completion_pb.CreateCompletionResponse())
        for event in self.StreamCompletion(request, context):
            collector.add(event)
        collector.end()
        return response

    def StreamCompletion(  # noqa: N802
        self, request: Any, context: grpc.ServicerContext
    ) -> Iterator[CompletionEvent]:
        """Streams every event of the answer."""
        with Refusing(self._model, context, request.spec.request_id):
            for fields in _events(self._model, request.spec):
                yield CompletionEvent(**fields)


class ModelServicer(model_grpc.ModelServiceServicer):
    """Serves ModelService."""

    def __init__(self, model: FakeModel) -> None:
        self._model = model

    def ListModels(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """All served names."""
        del request
        with Refusing(self._model, context):
            models = [self._message(name) for name in self._model.names]
        return model_pb.ListModelsResponse(models=models)

    def GetModel(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """One served name."""
        with Refusing(self._model, context):
            name = request.name or self._model.names[0]
            self._model.canonical_name(name, "name")
        return model_pb.GetModelResponse(model=self._message(name))

    def _message(self, name: str) -> model_pb.Model:
        return model_pb.Model(
            name=name,
            canonical_name=self._model.names[0],
            created=CREATED,
            input_modalities=[usage_pb.MODALITY_TEXT, usage_pb.MODALITY_IMAGE],
            max_context_tokens=32_768,
        )


class AdminServicer(admin_grpc.AdminServiceServicer):
    """Serves `AdminService.Abort`: no request is in flight."""

    def __init__(self, model: FakeModel) -> None:
        self._model = model

    def Abort(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """All ids are unknown."""
        with Refusing(self._model, context):
            return admin_pb.AbortResponse(unknown_request_ids=request.request_ids)


class Refusing:
    """Checks the key of a call, and answers with a status where the body refuses it."""

    def __init__(
        self, model: FakeModel, context: grpc.ServicerContext, request_id: str = ""
    ) -> None:
        self._model = model
        self._context = context
        self._request_id = request_id or REQUEST_ID

    def __enter__(self) -> None:
        try:
            self._model.check_key(dict(self._context.invocation_metadata() or ()))
        except Refused as refused:
            _abort(self._context, refused, self._request_id)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Refused):
            _abort(self._context, error, self._request_id)


def _abort(context: grpc.ServicerContext, refused: Refused, request_id: str) -> NoReturn:
    mapping = BY_REASON[refused.reason]
    details = Details(
        reason=refused.reason,
        domain=DOMAIN,
        field=refused.field,
        retry_after_s=refused.retry_after_s,
        request_id=request_id,
    )
    number: int = mapping.grpc_code.value[0]
    status = write_details(number, refused.message, details)
    context.set_trailing_metadata(((TRAILER, status),))
    context.abort(mapping.grpc_code, refused.message)
    raise AssertionError("abort has returned")


def _events(model: FakeModel, spec: Spec) -> Iterator[dict[str, Any]]:
    """The fields of every event of an answer.

    Raises:
        Refused: The request is invalid, or was to fail.
    """
    reply = model.receive(spec)
    text, finished = _cut(reply.text, spec)
    choices = range(spec.n if spec.HasField("n") else 1)
    yield {"started": started_of(spec, model.names[0], len(choices))}
    for index in choices if (thought := reply.reasoning) else ():
        yield {"delta": generation_pb.Delta(choice_index=index, reasoning=thought)}
    for start in range(0, len(text), _PIECE):
        for index in choices:
            yield {"delta": _delta(spec, index, text[start : start + _PIECE])}
    calls = () if finished.reason != usage_pb.FINISH_REASON_STOP else reply.tool_calls
    for index in choices if calls else ():
        finished.reason = usage_pb.FINISH_REASON_TOOL_CALLS
        yield {"delta": generation_pb.Delta(choice_index=index, tool_calls=call_pieces(calls))}
    if spec.response.grounding:
        finished.groundings.extend(reply.groundings)
    for index in choices:
        finished.choice_index = index
        yield {"finished": finished}
    tokens = (len(text) + sum(len(call.arguments_json) for call in calls)) * len(choices)
    yield {"usage": _usage(spec, tokens, len(thought) * len(choices))}


def started_of(spec: Spec, model: str, n: int) -> generation_pb.Started:
    """What is known when an answer begins."""
    settings = generation_pb.EffectiveSettings(sampling=spec.sampling, stop=spec.stop, n=n)
    response, prompt = spec.response, _last_text(spec)
    return generation_pb.Started(
        request_id=spec.request_id or REQUEST_ID,
        model=model,
        created=CREATED,
        effective_settings=settings,
        prompt_usage=_usage(spec, 0),
        images=[usage_pb.ProcessedImage(tokens=_IMAGE_TOKENS, uuid=i.uuid) for i in _images(spec)],
        prompt_token_ids=map(ord, prompt) if response.return_prompt_token_ids else (),
        prompt_text=prompt if response.return_prompt_text else "",
    )


def _delta(spec: Spec, index: int, piece: str) -> generation_pb.Delta:
    delta = generation_pb.Delta(choice_index=index, text=piece)
    if spec.response.return_token_ids:
        delta.token_ids.extend(map(ord, piece))
    if spec.logprobs.HasField("top_logprobs"):
        for character in piece:
            token = usage_pb.TokenLogprob(
                token_id=ord(character), token=character, bytes=character.encode(), rank=1
            )
            top = [token] * min(1, spec.logprobs.top_logprobs)
            delta.logprobs.append(usage_pb.LogprobEntry(chosen=token, top=top))
    return delta


def _cut(text: str, spec: Spec) -> tuple[str, generation_pb.Finished]:
    """Applies `stop` and `max_tokens`: the text, and why it ended."""
    ends = [(at, stop) for stop in spec.stop.strings if (at := text.find(stop)) >= 0]
    detail = usage_pb.StopDetail()
    reason = usage_pb.FINISH_REASON_STOP
    if ends:
        at, stop = min(ends)
        text = text[: at + len(stop) * spec.stop.include_stop_string]
        detail.stop_string = stop
    limit = spec.sampling.max_tokens if spec.sampling.HasField("max_tokens") else len(text) + 1
    if len(text) >= limit:
        text, reason, detail = text[:limit], usage_pb.FINISH_REASON_LENGTH, usage_pb.StopDetail()
    return text, generation_pb.Finished(reason=reason, stop_detail=detail)


def _usage(spec: Spec, spoken_tokens: int, reasoning_tokens: int = 0) -> usage_pb.Usage:
    text, images = len(_last_text(spec)) + 1, len(_images(spec)) * _IMAGE_TOKENS
    counts = ((usage_pb.MODALITY_TEXT, text), (usage_pb.MODALITY_IMAGE, images))
    return usage_pb.Usage(
        prompt_tokens=text + images,
        completion_tokens=spoken_tokens + reasoning_tokens,
        reasoning_tokens=reasoning_tokens,
        total_tokens=text + images + spoken_tokens + reasoning_tokens,
        prompt_details=[
            usage_pb.ModalityTokenCount(modality=modality, tokens=tokens)
            for modality, tokens in counts
            if tokens
        ],
    )


def _images(spec: Spec) -> list[message_pb.Image]:
    if isinstance(spec, completion_pb.CompletionSpec):
        return list(spec.images)
    parts = (part for message in spec.messages for part in message.parts)
    return [part.image for part in parts if part.HasField("image")]


def _last_text(spec: Spec) -> str:
    """The text of the last message, or the prompt."""
    if isinstance(spec, chat_pb.ChatCompletionSpec):
        return "".join(part.text for part in spec.messages[-1].parts)
    return spec.text or "".join(map(chr, spec.token_ids.ids))


def _check(spec: Spec) -> None:
    """Refuses what every inference service refuses, whatever its model.

    Raises:
        Refused: The request is invalid.
    """
    if isinstance(spec, chat_pb.ChatCompletionSpec):
        check_messages(spec.messages)
        if problem := problem_of(spec):
            raise Refused("INVALID_ARGUMENT", *problem)
    elif not (spec.text or spec.token_ids.ids):
        field = spec.WhichOneof("prompt") or "text"
        raise Refused("INVALID_ARGUMENT", "The request has no prompt.", f"spec.{field}")
    for name, (minimum, maximum) in RANGES.items():
        value = getattr(spec.sampling, name)
        if spec.sampling.HasField(name) and not minimum <= value <= maximum:
            message = f"{name} is {value}, but must be between {minimum} and {maximum}."
            raise Refused("INVALID_ARGUMENT", message, f"spec.sampling.{name}")
    if spec.HasField("n") and not 1 <= spec.n <= 4:
        raise Refused("INVALID_ARGUMENT", f"n is {spec.n}, but must be between 1 and 4.", "spec.n")


def check_messages(messages: Sequence[message_pb.Message]) -> None:
    """Refuses messages that every inference service refuses.

    Raises:
        Refused: They are invalid.
    """
    if not messages:
        raise Refused("INVALID_ARGUMENT", "messages is empty.", "spec.messages")
    for index, message in enumerate(messages):
        field = f"spec.messages[{index}]"
        if message.role == message_pb.ROLE_UNSPECIFIED:
            raise Refused("INVALID_ARGUMENT", "role is required.", f"{field}.role")
        for number, part in enumerate(message.parts):
            if part.WhichOneof("kind") is None:
                path = f"{field}.parts[{number}]"
                raise Refused("INVALID_ARGUMENT", "The part has no kind.", path)
