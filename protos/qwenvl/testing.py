"""A fake inference service for the unit tests of programs that use the clients: real gRPC, no model.

    with FakeServer("A cat.") as server, Client(server.target) as client:
        assert client.chat("What is it?").text == "A cat."
        assert server.chat_requests[0].messages[0].parts[0].text == "What is it?"

The tests of this project hold it to the real service.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
import math
from types import TracebackType
from typing import Any, Final, Self

import grpc

from qwenvl.connection import READINESS_REQUEST, SERVING_RESPONSE
from qwenvl.errors import BY_REASON
from qwenvl.fake.checks import Refused, Spec
from qwenvl.fake.decisions import Deciding, DecisionServicer, first
from qwenvl.fake.model import Answering, FakeModel, Reply, check_reply
from qwenvl.fake.servicers import AdminServicer, ModelServicer
from qwenvl.fake.tokens import (
    RenderingChatServicer,
    RenderingCompletionServicer,
    TokenizeServicer,
)
from qwenvl.inference.v1 import admin_service_pb2_grpc as admin_grpc
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import completion_service_pb2_grpc as completion_grpc
from qwenvl.inference.v1 import decision_service_pb2 as decision_pb
from qwenvl.inference.v1 import decision_service_pb2_grpc as decision_grpc
from qwenvl.inference.v1 import model_service_pb2_grpc as model_grpc
from qwenvl.inference.v1 import tokenize_service_pb2_grpc as tokenize_grpc
from qwenvl.limits import MAX_MESSAGE_BYTES


__all__ = ["FakeServer", "Reply", "Spec"]

_NOT_SERVING_RESPONSE: Final = b"\x08\x02"
_THREADS: Final = 16


class FakeServer:
    """A fake inference service on a free port of this machine, for a `with` block.

    Each character of an answer is one token; `stop`, `max_tokens` and `n` are applied.

    Args:
        answer: Every answer, or a function of the request that returns it; None = the text of the last message.
        models: The served name, or several, the canonical one first.
        api_key: If not empty, calls with another key are refused.
        deciding: Returns for each question of `decide` the probabilities of its options or levels, or of yes and no;
            None = a refusal. By default the first one is certain.

    Attributes:
        target: The address for `qwenvl.Client`.
        is_ready: What the service reports of itself.

    Raises:
        TypeError: The answer is neither of them.
        ValueError: There is no served name.
    """

    def __init__(
        self,
        answer: Answering = None,
        *,
        models: str | Sequence[str] = ("fake",),
        api_key: str = "",
        deciding: Deciding = first,
    ) -> None:
        names = (models,) if isinstance(models, str) else tuple(models)
        if not names:
            raise ValueError("models is empty: a service has a name")
        if not callable(answer):
            check_reply(answer, "answer")
        self._model = FakeModel(answer, names, api_key)
        self._pool = ThreadPoolExecutor(_THREADS)
        size = ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)
        self._server = grpc.server(self._pool, options=[size, ("grpc.so_reuseport", 0)])
        chat = RenderingChatServicer(self._model)
        chat_grpc.add_ChatServiceServicer_to_server(chat, self._server)
        tokenize = TokenizeServicer(self._model)
        tokenize_grpc.add_TokenizeServiceServicer_to_server(tokenize, self._server)
        completions = RenderingCompletionServicer(self._model)
        completion_grpc.add_CompletionServiceServicer_to_server(completions, self._server)
        decisions = DecisionServicer(self._model, deciding)
        decision_grpc.add_DecisionServiceServicer_to_server(decisions, self._server)
        model_grpc.add_ModelServiceServicer_to_server(ModelServicer(self._model), self._server)
        admin_grpc.add_AdminServiceServicer_to_server(AdminServicer(self._model), self._server)
        check: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Check": grpc.unary_unary_rpc_method_handler(self._check_health)
        }
        health = grpc.method_handlers_generic_handler("grpc.health.v1.Health", check)
        self._server.add_generic_rpc_handlers((health,))
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self.is_ready = True
        self._server.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def chat_requests(self) -> list[chat_pb.ChatCompletionSpec]:
        """The specs that ChatService has received, oldest first."""
        return [
            spec for spec in self._model.requests if isinstance(spec, chat_pb.ChatCompletionSpec)
        ]

    @property
    def completion_requests(self) -> list[completion_pb.CompletionSpec]:
        """The specs that CompletionService has received, oldest first."""
        return [
            spec for spec in self._model.requests if isinstance(spec, completion_pb.CompletionSpec)
        ]

    @property
    def decision_requests(self) -> list[decision_pb.DecisionSpec]:
        """The specs that DecisionService has received, oldest first."""
        return [spec for spec in self._model.requests if isinstance(spec, decision_pb.DecisionSpec)]

    def close(self) -> None:
        """Ends the service and its calls."""
        self._model.closed.set()
        self._server.stop(grace=None).wait()
        self._pool.shutdown()

    def delay(self, seconds: float) -> None:
        """Lets every following request wait this long for its answer.

        Raises:
            TypeError: It is not a number.
            ValueError: It is not a positive number, or 0.
        """
        if not 0 <= seconds < math.inf:
            raise ValueError(f"seconds is {seconds}, but must be a number from 0")
        self._model.delay_s = seconds

    def fail(
        self,
        reason: str,
        message: str = "The service was told to fail.",
        *,
        field: str = "",
        retry_after: float | None = None,
        times: int = 1,
    ) -> None:
        """Lets the next requests fail.

        The clients themselves repeat a request that ends with UNAVAILABLE, up to 4 times in all.

        Args:
            reason: A key of `qwenvl.errors.BY_REASON`.
            message: Text of the error.
            field: Path of the invalid field.
            retry_after: Seconds after which the service invites a retry.
            times: Number of requests.

        Raises:
            ValueError: The reason is unknown, or a number is negative or infinite.
        """
        if times < 0 or (retry_after is not None and not 0 <= retry_after < math.inf):
            raise ValueError(
                f"times is {times} and retry_after {retry_after}, but neither is below 0"
            )
        if reason not in BY_REASON:
            raise ValueError(f"{reason!r} is not one of the reasons of qwenvl.errors")
        self._model.failures.extend([Refused(reason, message, field, retry_after)] * times)

    def _check_health(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        if request not in {b"", READINESS_REQUEST}:
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return SERVING_RESPONSE if self.is_ready else _NOT_SERVING_RESPONSE
