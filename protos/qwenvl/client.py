"""The typed client: one class for programs that ask questions about images over gRPC.

Owns channel options, retries and the turning of details into `Error`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
import contextlib
from dataclasses import dataclass
import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from google.rpc import error_details_pb2
import grpc
from grpc_status import rpc_status

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import completion_service_pb2_grpc as completion_grpc
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.inference.v1 import model_service_pb2 as model_pb
from qwenvl.inference.v1 import model_service_pb2_grpc as model_grpc
from qwenvl.inference.v1 import sampling_pb2 as sampling_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from qwenvl.limits import MAX_MESSAGE_BYTES


DEFAULT_TIMEOUT_S = 600.0

# Only UNAVAILABLE is retried, and gRPC itself stops retrying once a response has begun (gRPC A6).
SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": [
                    {"service": "qwenvl.inference.v1.ChatService"},
                    {"service": "qwenvl.inference.v1.CompletionService"},
                ],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.2s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
    }
)

Image = bytes | Path | str
"""An image: its encoded bytes, a local file, or an http(s) URL that the service fetches."""


class Error(Exception):
    """A call failed.

    Attributes:
        code: Status of the call.
        message: What the service says.
        reason: `ErrorInfo.reason`, a key of `qwenvl.errors.BY_REASON`; empty if the transport failed.
        field: Path of the field that is wrong, or empty.
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
        reason = field = ""
        status = rpc_status.from_call(error)
        for detail in status.details if status else ():
            info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
            if detail.Unpack(info):
                reason = info.reason
            elif detail.Unpack(bad) and bad.field_violations:
                field = bad.field_violations[0].field
        return cls(error.code(), error.details() or "", reason, field)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    text: str
    finish_reason: str
    usage: usage_pb.Usage
    response: chat_pb.CreateChatCompletionResponse | completion_pb.CreateCompletionResponse


class Client:
    """Asks one inference service; may be shared by threads.

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
        options = [
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.service_config", SERVICE_CONFIG),
            ("grpc.keepalive_time_ms", 30_000),
        ]
        self._channel = (
            grpc.secure_channel(target, credentials, options=options)
            if credentials
            else grpc.insecure_channel(target, options=options)
        )
        self._chat = chat_grpc.ChatServiceStub(self._channel)
        self._raw = completion_grpc.CompletionServiceStub(self._channel)
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
        question: str | Sequence[message_pb.Message],
        *,
        images: Iterable[Image] = (),
        model: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        grounding: bool = False,
        **sampling: Any,
    ) -> Answer:
        """Gives a whole answer.

        Args:
            question: A question, or a whole conversation.
            images: Images that stand before the question; only with a question as text.
            model: A served name; None = the service's canonical model.
            timeout_s: Deadline in seconds.
            grounding: Read the boxes of the answer: `response.choices[0].groundings`.
            sampling: Fields of `SamplingOptions`: `temperature=0`, `max_tokens=100`, ...

        Raises:
            Error: The call failed.
        """
        spec = self._spec(question, images, model, sampling)
        spec.response.grounding = grounding
        request = chat_pb.CreateChatCompletionRequest(spec=spec)
        return _answer(self._call(self._chat.CreateChatCompletion, request, timeout_s))

    def complete(
        self,
        prompt: str | Sequence[int],
        *,
        images: Iterable[Image] = (),
        model: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        **sampling: Any,
    ) -> Answer:
        """Continues a raw prompt, without a chat template; further arguments and errors as `chat`.

        Args:
            prompt: Text as the model reads it, or token ids.
            images: Images, in the order of their places in the prompt.
            model: A served name.
            timeout_s: Deadline in seconds.
            sampling: Fields of `SamplingOptions`.
        """
        spec = completion_pb.CompletionSpec(
            model=model or self.models()[0].name,
            images=[image_of(image) for image in images],
            sampling=sampling_pb.SamplingOptions(**sampling),
        )
        if isinstance(prompt, str):
            spec.text = prompt
        else:
            spec.token_ids.ids.extend(prompt)
        request = completion_pb.CreateCompletionRequest(spec=spec)
        return _answer(self._call(self._raw.CreateCompletion, request, timeout_s))

    def stream(
        self,
        question: str | Sequence[message_pb.Message],
        *,
        images: Iterable[Image] = (),
        model: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        **sampling: Any,
    ) -> Iterator[str]:
        """Gives an answer's text piece by piece; arguments and errors as `chat`."""
        events = self.events(question, images=images, model=model, timeout_s=timeout_s, **sampling)
        with contextlib.closing(events):
            for event in events:
                if event.delta.text:
                    yield event.delta.text

    def events(
        self,
        question: str | Sequence[message_pb.Message],
        *,
        images: Iterable[Image] = (),
        model: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        grounding: bool = False,
        **sampling: Any,
    ) -> Generator[chat_pb.StreamChatCompletionResponse, None, None]:
        """Gives every event of a stream; arguments and errors as `chat`. Closing it ends the answer."""
        spec = self._spec(question, images, model, sampling)
        spec.response.grounding = grounding
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
        question: str | Sequence[message_pb.Message],
        *,
        images: Iterable[Image] = (),
        model: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> usage_pb.Usage:
        """Tells what a question costs; arguments and errors as `chat`."""
        request = chat_pb.CountTokensRequest(spec=self._spec(question, images, model, {}))
        usage: usage_pb.Usage = self._call(self._chat.CountTokens, request, timeout_s).usage
        return usage

    def _spec(
        self,
        question: str | Sequence[message_pb.Message],
        images: Iterable[Image],
        model: str | None,
        sampling: dict[str, Any],
    ) -> chat_pb.ChatCompletionSpec:
        if isinstance(question, str):
            parts = [message_pb.Part(image=image_of(image)) for image in images]
            parts.append(message_pb.Part(text=question))
            question = [message_pb.Message(role=message_pb.ROLE_USER, parts=parts)]
        return chat_pb.ChatCompletionSpec(
            model=model or self.models()[0].name,
            messages=question,
            sampling=sampling_pb.SamplingOptions(**sampling),
        )

    def _call(self, method: Any, request: Any, timeout_s: float) -> Any:
        try:
            return method(request, timeout=timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise Error.from_rpc(error) from None


def _answer(
    response: chat_pb.CreateChatCompletionResponse | completion_pb.CreateCompletionResponse,
) -> Answer:
    choice = response.choices[0]
    reason = usage_pb.FinishReason.Name(choice.finish_reason).removeprefix("FINISH_REASON_")
    return Answer(choice.text, reason.lower(), response.usage, response)


def image_of(image: Image) -> message_pb.Image:
    """An image as a message carries it."""
    if isinstance(image, bytes):
        return message_pb.Image(data=image)
    if isinstance(image, Path):
        return message_pb.Image(data=image.read_bytes())
    return message_pb.Image(uri=image)
