"""The spellings of the switch for thinking and of its effort: of Qwen, vLLM, Anthropic-like and OpenAI-like clients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rest_adapter.json_model import Int64, JsonModel, asks_for_nothing
from rest_adapter.validation import wrong


if TYPE_CHECKING:
    from rest_adapter.openai.chat.schema import ChatRequest


_DEFAULT_EFFORTS: Final = ("auto", "default")
_TYPES: Final = {"enabled": True, "adaptive": True, "auto": None, "disabled": False}


class ThinkingOptions(JsonModel):
    """The object form of `thinking`; the budget has no effect."""

    type: str | None = None
    budget_tokens: Int64 | None = None


def thinking_switch(request: ChatRequest) -> tuple[bool, str] | None:
    """The requested switch and its path in the JSON; None = the template's default.

    The most specific spelling wins.

    Raises:
        ApiError: `thinking.type` is unknown.
    """
    options = request.chat_template_kwargs
    switches = {
        "chat_template_kwargs.enable_thinking": options and options.enable_thinking,
        "chat_template_kwargs.thinking": options and options.thinking,
        "enable_thinking": request.enable_thinking,
        "thinking": request.thinking,
    }
    for path, value in switches.items():
        if isinstance(value, bool):
            return value, path
    kind = request.thinking.type if isinstance(request.thinking, ThinkingOptions) else None
    if kind is not None:
        if kind not in _TYPES:
            raise wrong("thinking.type", kind, f"one of: {', '.join(_TYPES)}")
        wanted = _TYPES[kind]
        return None if wanted is None else (wanted, "thinking.type")
    reasoning = request.reasoning
    if reasoning is False:
        return False, "reasoning"
    if isinstance(reasoning, dict) and reasoning.get("enabled") is False:
        return False, "reasoning.enabled"
    return None


def reasoning_effort(request: ChatRequest) -> tuple[str, str] | None:
    """The requested reasoning effort and its path in the JSON; None = the template's default.

    Raises:
        ApiError: It is no text.
    """
    options, reasoning = request.chat_template_kwargs, request.reasoning
    found = {
        "chat_template_kwargs.reasoning_effort": options and options.reasoning_effort,
        "reasoning_effort": request.reasoning_effort,
        # Of OpenRouter's clients, and of OpenAI's Responses.
        "reasoning.effort": reasoning.get("effort") if isinstance(reasoning, dict) else None,
    }
    for path, value in found.items():
        if asks_for_nothing(value):
            continue
        if not isinstance(value, str):
            raise wrong(path, value, "text")
        return None if value in _DEFAULT_EFFORTS else (value, path)
    return None
