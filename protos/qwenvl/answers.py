"""Answers as the typed clients return them, complete or streamed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

import grpc

from qwenvl.exceptions import AbortedError
from qwenvl.growing import GrowingTexts
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from qwenvl.messages import assistant


ChatEvent = chat_pb.StreamChatCompletionResponse
CompletionEvent = completion_pb.StreamCompletionResponse
Response = chat_pb.CreateChatCompletionResponse | completion_pb.CreateCompletionResponse

_Event = TypeVar("_Event", ChatEvent, CompletionEvent)


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer.

    Attributes:
        text: Text of the first choice.
        finish_reason: Why it ended: `stop`, `length`, `context_length`, `tool_calls`; `unspecified` for a reason that
            this version does not know; `aborted` only in an `AbortedError`.
        usage: Tokens of the prompt and of all choices.
        response: The message of the API, with everything that was asked for.
    """

    text: str
    finish_reason: str
    usage: usage_pb.Usage
    response: Response

    @property
    def choices(self) -> Sequence[generation_pb.Choice]:
        """All choices, in order of their index; each has text, log probabilities, token ids and boxes."""
        return self.response.choices

    @property
    def logprobs(self) -> Sequence[usage_pb.LogprobEntry]:
        """One entry per token of the first choice, if requested."""
        return self.response.choices[0].logprobs

    @property
    def token_ids(self) -> Sequence[int]:
        """The token ids of the first choice, if requested."""
        return self.response.choices[0].token_ids

    @property
    def groundings(self) -> Sequence[usage_pb.Grounding]:
        """The bounding boxes of the first choice, if requested."""
        return self.response.choices[0].groundings

    @property
    def reasoning(self) -> str:
        """The reasoning of the first choice."""
        return self.response.choices[0].reasoning

    @property
    def tool_calls(self) -> Sequence[message_pb.ToolCall]:
        """The tool calls of the first choice; see `qwenvl.arguments_of`."""
        return self.response.choices[0].tool_calls

    @property
    def request_id(self) -> str:
        """The request's id, as in the logs of the service."""
        return self.response.started.request_id

    @property
    def model(self) -> str:
        """The canonical name of the model."""
        return self.response.started.model

    @property
    def message(self) -> message_pb.Message:
        """The first choice as a message, to continue the conversation with."""
        parts = (self.text,) if self.text or not self.tool_calls else ()
        return assistant(*parts, reasoning=self.reasoning, tool_calls=self.tool_calls)


def answer_of(response: Response) -> Answer:
    """The first choice of a response as an answer.

    Raises:
        AbortedError: The request was ended by Abort; it has the answer.
    """
    choice = response.choices[0]
    number = choice.finish_reason
    known = number in usage_pb.FinishReason.values()  # else of a newer service
    name = usage_pb.FinishReason.Name(number if known else usage_pb.FINISH_REASON_UNSPECIFIED)
    reason = name.removeprefix("FINISH_REASON_").lower()
    answer = Answer(choice.text, reason, response.usage, response)
    if any(each.finish_reason == usage_pb.FINISH_REASON_ABORTED for each in response.choices):
        raise _aborted(answer)
    return answer


def _aborted(answer: Answer) -> AbortedError:
    """The error of a request that was ended by Abort: its call does not fail, as it has an answer."""
    error = AbortedError(
        grpc.StatusCode.CANCELLED,
        "the request was aborted; `answer` of this error has what was generated",
        reason="ABORTED",
        request_id=answer.request_id,
    )
    error.answer = answer
    return error


class AnswerCollector:
    """Collects the events of a stream into the response of the method that does not stream.

    Args:
        response: The response, empty.
        on_answer: Called with the answer when the stream has ended.
    """

    def __init__(
        self, response: Response, on_answer: Callable[[Answer], None] | None = None
    ) -> None:
        self._response = response
        self._texts: list[GrowingTexts] = []
        self._on_answer = on_answer
        self._answer: Answer | None = None

    @property
    def text(self) -> str:
        """The text so far, of the first choice."""
        return "".join(self._texts[0].text) if self._texts else ""

    @property
    def answer(self) -> Answer:
        """The complete answer, once the stream has ended.

        Raises:
            RuntimeError: The stream has not ended, has failed or was closed.
        """
        if self._answer is None:
            raise RuntimeError("the answer is complete once the stream has been read to its end")
        return self._answer

    def add(self, event: ChatEvent | CompletionEvent) -> str:
        """Adds an event; returns the new text of the first choice."""
        match event.WhichOneof("event"):
            case "started":
                self._response.started.CopyFrom(event.started)
            case "delta":
                delta = event.delta
                choice = self._choice(delta.choice_index)
                texts = self._texts[delta.choice_index]
                texts.text.append(delta.text)
                texts.reasoning.append(delta.reasoning)
                _add_calls(choice, texts, delta.tool_calls)
                choice.token_ids.extend(delta.token_ids)
                choice.logprobs.extend(delta.logprobs)
                self._response.started.prompt_logprobs.extend(delta.prompt_logprobs)
                return delta.text if delta.choice_index == 0 else ""
            case "finished":
                choice = self._choice(event.finished.choice_index)
                choice.finish_reason = event.finished.reason
                choice.stop_detail.CopyFrom(event.finished.stop_detail)
                choice.groundings.extend(event.finished.groundings)
            case "usage":
                self._response.usage.CopyFrom(event.usage)
        return ""

    def end(self) -> None:
        """Notes that the stream has ended, and completes the response; errors as `answer_of`."""
        for choice, texts in zip(self._response.choices, self._texts, strict=True):
            texts.fill(choice)
        if self._answer is None and self._response.HasField("usage"):
            self._answer = answer_of(self._response)
            if self._on_answer:
                self._on_answer(self._answer)

    def _choice(self, index: int) -> generation_pb.Choice:
        choices = self._response.choices
        while len(choices) <= index:
            choices.add(index=len(choices))
            self._texts.append(GrowingTexts())
        return choices[index]


def _add_calls(
    choice: generation_pb.Choice, texts: GrowingTexts, pieces: Iterable[generation_pb.ToolCallDelta]
) -> None:
    for piece in pieces:
        while len(choice.tool_calls) <= piece.index:
            choice.tool_calls.add()
        call = choice.tool_calls[piece.index]
        call.id = call.id or piece.id
        call.name = call.name or piece.name
        texts.add_arguments(piece.index, piece.arguments_json)


class AnswerStream(Generic[_Event]):
    """The text of an answer as it is generated; an iterator, and at its end the complete `answer`.

    With several choices, it yields the text of the first one. Closing it, or leaving its `with` block, aborts the
    answer.
    """

    def __init__(
        self,
        events: Generator[_Event, None, None],
        response: Response,
        on_answer: Callable[[Answer], None] | None = None,
    ) -> None:
        self._events: Generator[_Event, None, None] = events
        self._collected = AnswerCollector(response, on_answer)

    @property
    def text(self) -> str:
        """The text so far, of the first choice."""
        return self._collected.text

    @property
    def answer(self) -> Answer:
        """The complete answer, once the stream has ended.

        Raises:
            RuntimeError: The stream has not ended, has failed or was closed.
        """
        return self._collected.answer

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        for event in self._events:
            if text := self._collected.add(event):
                return text
        self._collected.end()
        raise StopIteration

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def read(self) -> Answer:
        """Reads to the end; returns the complete answer."""
        for _ in self:
            pass
        return self.answer

    def close(self) -> None:
        """Aborts the answer, if it is not complete."""
        self._events.close()


class AsyncAnswerStream(Generic[_Event]):
    """`AnswerStream` for asyncio: an asynchronous iterator, and at its end the complete `answer`."""

    def __init__(
        self,
        events: AsyncGenerator[_Event, None],
        response: Response,
        on_answer: Callable[[Answer], None] | None = None,
    ) -> None:
        self._events: AsyncGenerator[_Event, None] = events
        self._collected = AnswerCollector(response, on_answer)

    @property
    def text(self) -> str:
        """The text so far, of the first choice."""
        return self._collected.text

    @property
    def answer(self) -> Answer:
        """The complete answer, once the stream has ended.

        Raises:
            RuntimeError: The stream has not ended, has failed or was closed.
        """
        return self._collected.answer

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        async for event in self._events:
            if text := self._collected.add(event):
                return text
        self._collected.end()
        raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def read(self) -> Answer:
        """Reads to the end; returns the complete answer."""
        async for _ in self:
            pass
        return self.answer

    async def close(self) -> None:
        """Aborts the answer, if it is not complete."""
        await self._events.aclose()

    aclose = close  # for `contextlib.aclosing`
