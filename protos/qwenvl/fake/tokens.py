"""Tokens of `qwenvl.testing.FakeServer`: every character is one, whose id is its code point."""

from __future__ import annotations

from typing import Any

import grpc

from qwenvl.fake.answers import started_of
from qwenvl.fake.checks import Refused
from qwenvl.fake.model import FakeModel
from qwenvl.fake.servicers import ChatServicer, CompletionServicer, Refusing
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import tokenize_service_pb2 as tokenize_pb
from qwenvl.inference.v1 import tokenize_service_pb2_grpc as tokenize_grpc


_CONTEXT_TOKENS = 4096
_SURROGATES = range(0xD800, 0xE000)
_NUM_IDS = 0x110000


class RenderingChatServicer(ChatServicer):
    """Serves ChatService; a prompt is the texts of its messages, a line each."""

    def RenderChatCompletion(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - the proto's name
        """Returns the prompt."""
        spec = request.spec
        with Refusing(self._model, context, spec.request_id):
            self._model.receive(spec)
        lines = ["".join(part.text for part in message.parts) for message in spec.messages]
        return chat_pb.RenderChatCompletionResponse(
            **_rendered(self._model, request, "\n".join(lines))
        )


class RenderingCompletionServicer(CompletionServicer):
    """Serves CompletionService."""

    def RenderCompletion(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Returns the prompt."""
        spec = request.spec
        with Refusing(self._model, context, spec.request_id):
            self._model.receive(spec)
        text = spec.text or "".join(map(chr, spec.token_ids.ids))
        return completion_pb.RenderCompletionResponse(**_rendered(self._model, request, text))


def _rendered(model: FakeModel, request: Any, text: str) -> dict[str, Any]:
    """The fields that both responses have."""
    started = started_of(request.spec, model.names[0], request.spec.n or 1)
    started.prompt_text = text
    started.prompt_token_ids[:] = list(map(ord, text))
    return {
        "started": started,
        "token_strings": text if request.return_token_strings else "",
        "max_context_tokens": _CONTEXT_TOKENS,
    }


class TokenizeServicer(tokenize_grpc.TokenizeServiceServicer):
    """Serves TokenizeService."""

    def __init__(self, model: FakeModel) -> None:
        self._model = model

    def Tokenize(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Returns the code points of a text."""
        with Refusing(self._model, context, ""):
            self._model.canonical_name(request.model, "model")
        return tokenize_pb.TokenizeResponse(
            token_ids=map(ord, request.text),
            token_strings=request.text if request.return_token_strings else "",
            max_context_tokens=_CONTEXT_TOKENS,
        )

    def Detokenize(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Returns the text of code points."""
        with Refusing(self._model, context, ""):
            self._model.canonical_name(request.model, "model")
            wrong = [
                each
                for each in request.token_ids
                if not 0 <= each < _NUM_IDS or each in _SURROGATES
            ]
            if wrong:
                message = f"Token id {wrong[0]} is not in the model's vocabulary."
                raise Refused("INVALID_ARGUMENT", message, "token_ids")
        return tokenize_pb.DetokenizeResponse(text="".join(map(chr, request.token_ids)))
