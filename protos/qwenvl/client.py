"""The typed client: one class for programs that ask questions about images over gRPC."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
import contextlib
from types import TracebackType
from typing import Any, Self

import grpc

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import completion_service_pb2_grpc as completion_grpc
from qwenvl.inference.v1 import model_service_pb2 as model_pb
from qwenvl.inference.v1 import model_service_pb2_grpc as model_grpc
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from qwenvl.rpc import DEFAULT_TIMEOUT_S, channel_options, read_error
from qwenvl.specs import Answer, Image, Question, answer_of, chat_spec, completion_spec


class Error(Exception):
    """A call failed.

    Attributes:
        code: Status of the call.
        message: Message of the service.
        reason: `ErrorInfo.reason`, a key of `qwenvl.errors.BY_REASON`; empty if the transport failed.
        field: Path of the invalid field, or empty.
    """

    def __init__(self, code: grpc.StatusCode, message: str, reason: str, field: str) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.message = message
        self.reason = reason
        self.field = field

    @classmethod
    def from_rpc(cls, error: grpc.RpcError) -> Self:
        """Reads status and details of a failed call."""
        failure = read_error(error)
        return cls(failure.code, failure.message, failure.reason or "", failure.field)


class Client:
    """A client of one inference service; threads may share it.

    Args:
        target: `host:port` or a gRPC target such as `dns:///inference:50051`.
        api_key: Sent as `authorization: Bearer ...`.
        credentials: For TLS; None = plaintext.
    """

    def __init__(
        self,
        target: str,
        *,
        api_key: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        options = channel_options(retry_unavailable=True)
        self._channel = (
            grpc.secure_channel(target, credentials, options=options)
            if credentials
            else grpc.insecure_channel(target, options=options)
        )
        self._chat = chat_grpc.ChatServiceStub(self._channel)
        self._completions = completion_grpc.CompletionServiceStub(self._channel)
        self._models = model_grpc.ModelServiceStub(self._channel)
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def models(self) -> list[model_pb.Model]:
        """All served names, the canonical one first.

        Raises:
            Error: The call failed.
        """
        request = model_pb.ListModelsRequest()
        return list(self._call(self._models.ListModels, request, DEFAULT_TIMEOUT_S).models)

    def chat(
        self,
        question: Question,
        *,
        images: Iterable[Image] = (),
        model: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        grounding: bool = False,
        **sampling: Any,
    ) -> Answer:
        """Returns a complete answer.

        Args:
            question: A question, or a conversation.
            images: Images to put before the question; only for a question as text.
            model: A served name; None = the service's canonical model.
            timeout_s: Deadline in seconds.
            grounding: Parse bounding boxes from the answer: `response.choices[0].groundings`.
            sampling: Fields of `SamplingOptions`: `temperature=0`, `max_tokens=100`, ...

        Raises:
            Error: The call failed.
        """
        spec = chat_spec(question, images, self._model(model), sampling, grounding=grounding)
        request = chat_pb.CreateChatCompletionRequest(spec=spec)
        return answer_of(self._call(self._chat.CreateChatCompletion, request, timeout_s))

    def complete(
        self,
        prompt: str | Sequence[int],
        *,
        images: Iterable[Image] = (),
        model: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        **sampling: Any,
    ) -> Answer:
        """Completes a prompt, without a chat template; other arguments and errors as `chat`.

        Args:
            prompt: Text without a chat template, or token ids.
            images: Images, in the order of their placeholders in the prompt.
            model: A served name.
            timeout_s: Deadline in seconds.
            sampling: Fields of `SamplingOptions`.
        """
        spec = completion_spec(prompt, images, self._model(model), sampling)
        request = completion_pb.CreateCompletionRequest(spec=spec)
        return answer_of(self._call(self._completions.CreateCompletion, request, timeout_s))

    def stream(
        self,
        question: Question,
        *,
        images: Iterable[Image] = (),
        model: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        **sampling: Any,
    ) -> Iterator[str]:
        """Yields the text of an answer piece by piece; arguments and errors as `chat`."""
        events = self.events(question, images=images, model=model, timeout_s=timeout_s, **sampling)
        with contextlib.closing(events):
            for event in events:
                if event.delta.text:
                    yield event.delta.text

    def events(
        self,
        question: Question,
        *,
        images: Iterable[Image] = (),
        model: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        grounding: bool = False,
        **sampling: Any,
    ) -> Generator[chat_pb.StreamChatCompletionResponse, None, None]:
        """Yields every event of a stream; arguments and errors as `chat`. Closing it aborts the answer."""
        spec = chat_spec(question, images, self._model(model), sampling, grounding=grounding)
        request = chat_pb.StreamChatCompletionRequest(spec=spec)
        call = self._chat.StreamChatCompletion(request, timeout=timeout_s, metadata=self._metadata)
        try:
            yield from call
        except grpc.RpcError as error:
            raise Error.from_rpc(error) from None
        finally:
            call.cancel()

    def count_tokens(
        self,
        question: Question,
        *,
        images: Iterable[Image] = (),
        model: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> usage_pb.Usage:
        """Counts the prompt tokens of a question; arguments and errors as `chat`."""
        spec = chat_spec(question, images, self._model(model), {})
        request = chat_pb.CountTokensRequest(spec=spec)
        usage: usage_pb.Usage = self._call(self._chat.CountTokens, request, timeout_s).usage
        return usage

    def _model(self, name: str | None) -> str:
        return name or self.models()[0].name

    def _call(self, method: Any, request: Any, timeout_s: float) -> Any:
        try:
            return method(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise Error.from_rpc(error) from None
