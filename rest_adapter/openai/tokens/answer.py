"""The JSON of tokens and of rendered prompts."""

from __future__ import annotations

from typing import Any

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import tokenize_service_pb2 as tokenize_pb


def tokens(found: tokenize_pb.TokenizeResponse, *, strings: bool) -> dict[str, Any]:
    """The answer of `/tokenize`, as vLLM gives it."""
    return {
        "count": len(found.token_ids),
        "max_model_len": found.max_context_tokens,
        "tokens": list(found.token_ids),
        "token_strs": list(found.token_strings) if strings else None,
    }


def tokens_of_prompt(found: chat_pb.RenderChatCompletionResponse, strings: bool) -> dict[str, Any]:
    """The same for the prompt of a conversation."""
    return {
        "count": len(found.started.prompt_token_ids),
        "max_model_len": found.max_context_tokens,
        "tokens": list(found.started.prompt_token_ids),
        "token_strs": list(found.token_strings) if strings else None,
    }


def texts(found: str | list[str]) -> dict[str, Any]:
    """The answer of `/detokenize`, as vLLM gives it."""
    return {"prompt": found}
