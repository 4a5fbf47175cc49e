"""The typed client: one class for programs that ask questions about images over gRPC."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
import contextlib
import threading
from types import TracebackType
from typing import Any, Self, Unpack

import grpc

from qwenvl.answers import Answer, AnswerStream, ChatEvent, CompletionEvent, answer_of
from qwenvl.connection import (
    HEALTH_CHECK,
    PAUSE_S,
    READINESS_REQUEST,
    ReadinessWait,
    closed_error,
    ended_by_close,
    metadata_of,
    target_of,
)
from qwenvl.conversation import Conversation
from qwenvl.decisions import DecisionOptions, Decisions, decision_spec, decisions_of
from qwenvl.exceptions import Error
from qwenvl.fields import built
from qwenvl.images import Images
from qwenvl.inference.v1 import admin_service_pb2 as admin_pb
from qwenvl.inference.v1 import admin_service_pb2_grpc as admin_grpc
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import completion_service_pb2_grpc as completion_grpc
from qwenvl.inference.v1 import decision_service_pb2 as decision_pb
from qwenvl.inference.v1 import decision_service_pb2_grpc as decision_grpc
from qwenvl.inference.v1 import model_service_pb2 as model_pb
from qwenvl.inference.v1 import model_service_pb2_grpc as model_grpc
from qwenvl.inference.v1 import tokenize_service_pb2 as tokenize_pb
from qwenvl.inference.v1 import tokenize_service_pb2_grpc as tokenize_grpc
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from qwenvl.messages import Question
from qwenvl.options import ChatOptions, CompletionOptions
from qwenvl.rpc import DEFAULT_TIMEOUT_S, call_timeout, channel_options
from qwenvl.specs import (
    Prompt,
    abort_request,
    chat_spec,
    completion_spec,
    detokenize_request,
    tokenize_request,
)


class Client:
    """A client of one inference service; threads may share it.

    Every method but `close` raises `qwenvl.Error`, or a subclass of it, if the call fails, and `RuntimeError` if the
    client is closed. `timeout_s` is the deadline of everything: connecting, retries and the answer; None = none but the
    service's own.

    Args:
        target: `host:port` or a gRPC target such as `dns:///inference:50051`; None = that of the environment
            (`QWENVL_GRPC_TARGET`), or `127.0.0.1:50051`.
        api_key: Sent as `authorization: Bearer ...`; None = that of the environment (`QWENVL_API_KEY`), empty = none.
        credentials: For TLS; None = plaintext.

    Raises:
        TypeError: Target or key is not a text.
        ValueError: The target has a wrong port or none to call, or the key cannot be sent.
    """

    def __init__(
        self,
        target: str | None = None,
        *,
        api_key: str | None = None,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        self._metadata = metadata_of(api_key)
        self._target = target_of(target)
        self._closed = False
        options = channel_options(retry_unavailable=True)
        self._channel = (
            grpc.secure_channel(self._target, credentials, options=options)
            if credentials
            else grpc.insecure_channel(self._target, options=options)
        )
        self._chat = chat_grpc.ChatServiceStub(self._channel)
        self._completions = completion_grpc.CompletionServiceStub(self._channel)
        self._decisions = decision_grpc.DecisionServiceStub(self._channel)
        self._models = model_grpc.ModelServiceStub(self._channel)
        self._tokenize = tokenize_grpc.TokenizeServiceStub(self._channel)
        self._admin = admin_grpc.AdminServiceStub(self._channel)
        self._health: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
            HEALTH_CHECK
        )

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
        """Closes the connection; calls that are running end with `AbortedError`."""
        self._closed = True
        self._channel.close()

    def wait_until_ready(self, timeout_s: float | None = DEFAULT_TIMEOUT_S) -> None:
        """Returns when the service is reached and has loaded its model.

        Raises:
            DeadlineExceededError: It is not ready in time; the message says why.
        """
        wait = ReadinessWait(self._target, timeout_s)
        pause = threading.Event()
        while True:
            with self._errors():
                try:
                    if wait.is_over(self._health(READINESS_REQUEST, timeout=wait.next_attempt_s())):
                        return
                except grpc.RpcError as error:
                    wait.failed(error)
            pause.wait(PAUSE_S)

    def models(self, *, timeout_s: float | None = DEFAULT_TIMEOUT_S) -> list[model_pb.Model]:
        """All served names, the canonical one first."""
        request = model_pb.ListModelsRequest()
        return list(self._call(self._models.ListModels, request, timeout_s).models)

    def model(
        self, name: str = "", *, timeout_s: float | None = DEFAULT_TIMEOUT_S
    ) -> model_pb.Model:
        """One served name; empty = the canonical one."""
        request = built(model_pb.GetModelRequest, {"name": name})
        model: model_pb.Model = self._call(self._models.GetModel, request, timeout_s).model
        return model

    def chat(
        self,
        question: Question,
        *,
        images: Images | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        **options: Unpack[ChatOptions],
    ) -> Answer:
        """Returns a complete answer.

        Args:
            question: A question, or a conversation: `[system("..."), user("...", image(x))]`.
            images: Images to put before the question, or before the text of the conversation's last user message.
            timeout_s: Deadline in seconds.
            options: See `qwenvl.options.ChatOptions`.

        Raises:
            Error: The call failed.
            TypeError: An argument has another type, or an option is unknown.
            ValueError: An image or a number is invalid.
            OSError: An image cannot be read.
        """
        spec = chat_spec(question, images, options)
        request = chat_pb.CreateChatCompletionRequest(spec=spec)
        return answer_of(self._call(self._chat.CreateChatCompletion, request, timeout_s))

    def stream(
        self,
        question: Question,
        *,
        images: Images | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        **options: Unpack[ChatOptions],
    ) -> AnswerStream[ChatEvent]:
        """Yields the text of an answer piece by piece; arguments and errors as `chat`.

        The call begins when the first piece is asked for. At the end the stream has the complete `answer`.
        """
        events = self.events(question, images=images, timeout_s=timeout_s, **options)
        return AnswerStream(events, chat_pb.CreateChatCompletionResponse())

    def events(
        self,
        question: Question,
        *,
        images: Images | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        **options: Unpack[ChatOptions],
    ) -> Generator[ChatEvent, None, None]:
        """Yields every event of a stream; arguments and errors as `chat`. Closing it aborts the answer."""
        spec = chat_spec(question, images, options)
        request = chat_pb.StreamChatCompletionRequest(spec=spec)
        return self._events(self._chat.StreamChatCompletion, request, call_timeout(timeout_s))

    def complete(
        self,
        prompt: Prompt,
        *,
        images: Images | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        **options: Unpack[CompletionOptions],
    ) -> Answer:
        """Completes a prompt, without a chat template; other arguments and errors as `chat`.

        Args:
            prompt: Text without a chat template, or token ids.
            images: Images, in the order of their placeholders in the prompt.
            timeout_s: Deadline in seconds.
            options: See `qwenvl.options.CompletionOptions`.
        """
        spec = completion_spec(prompt, images, options)
        request = completion_pb.CreateCompletionRequest(spec=spec)
        return answer_of(self._call(self._completions.CreateCompletion, request, timeout_s))

    def stream_complete(
        self,
        prompt: Prompt,
        *,
        images: Images | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        **options: Unpack[CompletionOptions],
    ) -> AnswerStream[CompletionEvent]:
        """Yields the completion of a prompt piece by piece, as `stream`; arguments as `complete`."""
        spec = completion_spec(prompt, images, options)
        request = completion_pb.StreamCompletionRequest(spec=spec)
        timeout_s = call_timeout(timeout_s)
        events = self._events(self._completions.StreamCompletion, request, timeout_s)
        return AnswerStream(events, completion_pb.CreateCompletionResponse())

    def decide(
        self,
        evidence: Question,
        questions: Sequence[decision_pb.DecisionQuestion],
        *,
        images: Images | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        **options: Unpack[DecisionOptions],
    ) -> Decisions:
        """Decides questions about one input by the model's probabilities; nothing is generated.

        Args:
            evidence: The input: a text, or a conversation.
            questions: `qwenvl.predicate(...)`, `qwenvl.choice(...)` or `qwenvl.score(...)`.
            images: Images to put before the text, or before that of the conversation's last user message.
            timeout_s: Deadline in seconds.
            options: See `qwenvl.decisions.DecisionOptions`.

        Raises:
            Error: The call failed.
            TypeError: An argument has another type, or an option is unknown.
            ValueError: An image or a number is invalid.
            OSError: An image cannot be read.
        """
        spec = decision_spec(evidence, questions, images, options)
        request = decision_pb.CreateDecisionsRequest(spec=spec)
        return decisions_of(spec, self._call(self._decisions.CreateDecisions, request, timeout_s))

    def count_tokens(
        self,
        question: Question,
        *,
        images: Images | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        **options: Unpack[ChatOptions],
    ) -> usage_pb.Usage:
        """Counts the prompt tokens of a question; arguments and errors as `chat`."""
        request = chat_pb.CountTokensRequest(spec=chat_spec(question, images, options))
        usage: usage_pb.Usage = self._call(self._chat.CountTokens, request, timeout_s).usage
        return usage

    def render(
        self,
        question: Question,
        *,
        images: Images | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        **options: Unpack[ChatOptions],
    ) -> chat_pb.RenderChatCompletionResponse:
        """Returns the prompt of a question as `chat` would use it; arguments and errors as `chat`."""
        request = chat_pb.RenderChatCompletionRequest(spec=chat_spec(question, images, options))
        rendered: chat_pb.RenderChatCompletionResponse = self._call(
            self._chat.RenderChatCompletion, request, timeout_s
        )
        return rendered

    def render_complete(
        self,
        prompt: Prompt,
        *,
        images: Images | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        **options: Unpack[CompletionOptions],
    ) -> completion_pb.RenderCompletionResponse:
        """Returns the tokens of a prompt as `complete` would use them; arguments and errors as `complete`."""
        spec = completion_spec(prompt, images, options)
        request = completion_pb.RenderCompletionRequest(spec=spec)
        rendered: completion_pb.RenderCompletionResponse = self._call(
            self._completions.RenderCompletion, request, timeout_s
        )
        return rendered

    def tokenize(
        self,
        text: str,
        *,
        model: str = "",
        parse_special: bool = True,
        strings: bool = False,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
    ) -> tokenize_pb.TokenizeResponse:
        """Returns the token ids of a text.

        Args:
            text: The text.
            model: A served name; empty = the canonical one.
            parse_special: Recognise special tokens, as in a raw prompt; False = as in the messages of a chat.
            strings: Also return the tokens as the vocabulary writes them.
            timeout_s: See the class.

        Raises:
            Error: The call failed.
            TypeError: An argument has another type.
        """
        request = tokenize_request(text, model, parse_special=parse_special, strings=strings)
        response: tokenize_pb.TokenizeResponse = self._call(
            self._tokenize.Tokenize, request, timeout_s
        )
        return response

    def detokenize(
        self,
        token_ids: Sequence[int],
        *,
        model: str = "",
        skip_special_tokens: bool = False,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
    ) -> str:
        """Returns the text of token ids, with U+FFFD for bytes that are not valid UTF-8; errors as `tokenize`."""
        request = detokenize_request(token_ids, model, skip_special_tokens=skip_special_tokens)
        text: str = self._call(self._tokenize.Detokenize, request, timeout_s).text
        return text

    def conversation(self, **options: Unpack[ChatOptions]) -> Conversation:
        """A conversation that remembers its history.

        Args:
            options: For every question of it, see `qwenvl.options.ChatOptions`.
        """
        return Conversation(self, options)

    def abort(
        self, *request_ids: str | Iterable[str], timeout_s: float | None = DEFAULT_TIMEOUT_S
    ) -> list[str]:
        """Ends requests in flight with these ids, or lists of ids; returns the ids of those that were."""
        request = abort_request(request_ids)
        return list(self._call(self._admin.Abort, request, timeout_s).aborted_request_ids)

    def server_info(
        self, *, timeout_s: float | None = DEFAULT_TIMEOUT_S
    ) -> admin_pb.GetServerInfoResponse:
        """Version, limits and state of the service."""
        request = admin_pb.GetServerInfoRequest()
        info: admin_pb.GetServerInfoResponse = self._call(
            self._admin.GetServerInfo, request, timeout_s
        )
        return info

    def load(self, *, timeout_s: float | None = DEFAULT_TIMEOUT_S) -> admin_pb.Load:
        """The counters of batch and caches."""
        request = admin_pb.GetLoadRequest()
        load: admin_pb.Load = self._call(self._admin.GetLoad, request, timeout_s).load
        return load

    def _call(self, method: Any, request: Any, timeout_s: float | None) -> Any:
        with self._errors():
            return method(request, timeout=call_timeout(timeout_s), metadata=self._metadata)

    def _events(
        self, method: Any, request: Any, timeout_s: float | None
    ) -> Generator[Any, None, None]:
        with self._errors():
            call = method(request, timeout=timeout_s, metadata=self._metadata)
            try:
                yield from call
            finally:
                call.cancel()

    @contextlib.contextmanager
    def _errors(self) -> Generator[None, None, None]:
        """Raises the errors of a call as this client's own."""
        if self._closed:
            raise closed_error(self)
        try:
            yield
        except grpc.RpcError as error:
            problem = Error.from_rpc(error)
            raise ended_by_close(problem) if self._closed else problem from None
        except ValueError:
            if self._closed:  # by another thread, since the check
                raise closed_error(self) from None
            raise
