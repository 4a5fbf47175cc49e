"""The API contract: generated stubs of `qwenvl.inference.v1`, the error table and the typed clients.

The clients are imported on first use, as the engine process also imports this package but does not need gRPC.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from qwenvl.answers import Answer, AnswerStream, AsyncAnswerStream
    from qwenvl.async_client import AsyncClient
    from qwenvl.client import Client
    from qwenvl.conversation import AsyncConversation, Conversation
    from qwenvl.decisions import Decision, Decisions, choice, predicate, score
    from qwenvl.exceptions import (
        AbortedError,
        AuthenticationError,
        ConflictError,
        ContextLengthError,
        DeadlineExceededError,
        Error,
        ImageError,
        InternalError,
        InvalidRequestError,
        ModelNotFoundError,
        PermissionDeniedError,
        RateLimitError,
        RequestTooLargeError,
        UnavailableError,
    )
    from qwenvl.images import image, video
    from qwenvl.messages import assistant, system, tool_result, user
    from qwenvl.tools import arguments_of, tool


__all__ = [
    "AbortedError",
    "Answer",
    "AnswerStream",
    "AsyncAnswerStream",
    "AsyncClient",
    "AsyncConversation",
    "AuthenticationError",
    "Client",
    "ConflictError",
    "ContextLengthError",
    "Conversation",
    "DeadlineExceededError",
    "Decision",
    "Decisions",
    "Error",
    "ImageError",
    "InternalError",
    "InvalidRequestError",
    "ModelNotFoundError",
    "PermissionDeniedError",
    "RateLimitError",
    "RequestTooLargeError",
    "UnavailableError",
    "arguments_of",
    "assistant",
    "choice",
    "image",
    "predicate",
    "score",
    "system",
    "tool",
    "tool_result",
    "user",
    "video",
]

_MODULES = {
    **dict.fromkeys(("Answer", "AnswerStream", "AsyncAnswerStream"), "answers"),
    **dict.fromkeys(("AsyncConversation", "Conversation"), "conversation"),
    **dict.fromkeys(("Decision", "Decisions", "choice", "predicate", "score"), "decisions"),
    **dict.fromkeys((name for name in __all__ if name.endswith("Error")), "exceptions"),
    **dict.fromkeys(("assistant", "system", "tool_result", "user"), "messages"),
    **dict.fromkeys(("arguments_of", "tool"), "tools"),
    **dict.fromkeys(("image", "video"), "images"),
    "AsyncClient": "async_client",
    "Client": "client",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"qwenvl.{_MODULES[name]}"), name)
