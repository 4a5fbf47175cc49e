"""The spellings of the switch for thinking: of Qwen, vLLM, Anthropic-like and OpenAI-like clients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rest_adapter.json_model import Int64, JsonModel
from rest_adapter.validation import wrong


if TYPE_CHECKING:
    from rest_adapter.openai.chat.schema import ChatRequest


_TYPES: Final = {"enabled": True, "adaptive": True, "auto": None, "disabled": False}


class ThinkingOptions(JsonModel):
    """The object form of `thinking`; the budget has no effect."""

    type: str | None = None
    budget_tokens: Int64 | None = None


def thinking_switch(request: ChatRequest) -> tuple[bool, str] | None:
    """The requested switch and its path in the JSON; None = the template's default.

    The most specific spelling wins. A reasoning effort has no effect, except for `none`.

    Raises:
        ApiError: `thinking.type` is unknown.
    """
    options = request.chat_template_kwargs
    if options is not None and options.enable_thinking is not None:
        return options.enable_thinking, "chat_template_kwargs.enable_thinking"
    if options is not None and options.thinking is not None:
        return options.thinking, "chat_template_kwargs.thinking"
    if request.enable_thinking is not None:
        return request.enable_thinking, "enable_thinking"
    switch = request.thinking
    if isinstance(switch, bool):
        return switch, "thinking"
    if switch is not None and switch.type is not None:
        if switch.type not in _TYPES:
            raise wrong("thinking.type", switch.type, f"one of: {', '.join(_TYPES)}")
        wanted = _TYPES[switch.type]
        return None if wanted is None else (wanted, "thinking.type")
    return _of_effort(request.reasoning_effort, request.reasoning)


def _of_effort(effort: str | None, reasoning: object) -> tuple[bool, str] | None:
    """The switch in `reasoning_effort`, or in the `reasoning` of OpenRouter's clients and OpenAI's Responses."""
    if effort == "none":
        return False, "reasoning_effort"
    if reasoning is False:
        return False, "reasoning"
    if isinstance(reasoning, dict):
        if reasoning.get("enabled") is False:
            return False, "reasoning.enabled"
        if reasoning.get("effort") == "none":
            return False, "reasoning.effort"
    return None
