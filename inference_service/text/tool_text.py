"""Writes tools, calls and results as text, for templates that know no tools of models that were trained with them.

The processors' templates of Qwen2-VL and Qwen2.5-VL are such; the text is that of their tokenizers' templates, in the
notation of Hermes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import dataclasses
from itertools import groupby
import json
from typing import Any, Final

from inference_service.domain import ChatMessage, Part, Role, TextPart, Tool, ToolCall


_DEFAULT_SYSTEM: Final = "You are a helpful assistant."
_HEAD: Final = """\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
"""
_TAIL: Final = """
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""
_ANY_OBJECT: Final = {"type": "object", "properties": {}}


def openai_tool(tool: Tool) -> dict[str, Any]:
    """A tool as OpenAI's JSON describes it, which is what templates expect."""
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    function["parameters"] = _loaded(tool.parameters) if tool.parameters else _ANY_OBJECT
    return {"type": "function", "function": function}


def openai_call(call: ToolCall) -> dict[str, Any]:
    """A call as templates expect it: its arguments as an object, or as they are if they are none."""
    return {"type": "function", "function": {"name": call.name, "arguments": arguments_of(call)}}


def arguments_of(call: ToolCall) -> dict[str, Any] | str:
    """The arguments of a call; their text if it is no JSON object, as a model may have written."""
    if not call.arguments.strip():
        return {}
    try:
        value = _loaded(call.arguments)
    except (ValueError, RecursionError):
        return call.arguments
    return value if isinstance(value, dict) else call.arguments


def has_tools(messages: Sequence[ChatMessage]) -> bool:
    """Whether a conversation has calls or results of tools."""
    return any(message.tool_calls or message.role is Role.TOOL for message in messages)


def with_tools_as_text(
    messages: Sequence[ChatMessage], tools: Sequence[Tool]
) -> tuple[tuple[ChatMessage, int], ...]:
    """The conversation with tools in its system message, and calls and results in the texts of messages.

    Returns:
        The messages, each with its index in `messages`; neighbouring results are one message of the user.
    """
    written: list[tuple[ChatMessage, int]] = []
    for are_results, run in groupby(enumerate(messages), key=lambda one: one[1].role is Role.TOOL):
        if are_results:
            written.append(_joined_results([*run]))
        else:
            written += [(_with_calls(message), index) for index, message in run]
    if tools:
        first = written[0][0] if written else None
        system = first if first is not None and first.role is Role.SYSTEM else None
        if system is None:
            system = ChatMessage(role=Role.SYSTEM, parts=(TextPart(text=_DEFAULT_SYSTEM),))
            written.insert(0, (system, 0))
        parts = (*system.parts, TextPart(text="\n\n" + _prompt(tools)))
        written[0] = dataclasses.replace(system, parts=parts), 0
    return tuple(written)


def _prompt(tools: Sequence[Tool]) -> str:
    lines = (json.dumps(openai_tool(tool), ensure_ascii=False) for tool in tools)
    return _HEAD + "\n".join(lines) + _TAIL


def _with_calls(message: ChatMessage) -> ChatMessage:
    if not message.tool_calls:
        return message
    text = "\n".join(map(_call, message.tool_calls))
    spoken = any(not isinstance(part, TextPart) or part.text for part in message.parts)
    parts = (*message.parts, TextPart(text=f"\n{text}" if spoken else text))
    return dataclasses.replace(message, parts=parts, tool_calls=())


def _call(call: ToolCall) -> str:
    arguments = arguments_of(call)
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return f'<tool_call>\n{{"name": "{call.name}", "arguments": {arguments}}}\n</tool_call>'


def _joined_results(results: Sequence[tuple[int, ChatMessage]]) -> tuple[ChatMessage, int]:
    """Neighbouring results as one message of the user, with the index of the first."""
    parts: list[Part] = []
    for _, message in results:
        begin = "\n<tool_response>\n" if parts else "<tool_response>\n"
        parts += (TextPart(text=begin), *message.parts, TextPart(text="\n</tool_response>"))
    name = results[-1][1].name
    return ChatMessage(role=Role.USER, parts=tuple(parts), name=name), results[0][0]


def with_changed_text(message: ChatMessage, change: Callable[[str], str]) -> ChatMessage:
    """A message with every text in it changed."""
    return ChatMessage(
        role=message.role,
        parts=tuple(
            TextPart(text=change(part.text)) if isinstance(part, TextPart) else part
            for part in message.parts
        ),
        name=change(message.name),
        tool_calls=tuple(
            ToolCall(name=change(call.name), arguments=_changed_json(call.arguments, change))
            for call in message.tool_calls
        ),
        reasoning=change(message.reasoning),
    )


def tool_with_changed_text(tool: Tool, change: Callable[[str], str]) -> Tool:
    """A tool with every text in it changed."""
    return dataclasses.replace(
        tool,
        description=change(tool.description),
        parameters=_changed_json(tool.parameters, change),
    )


def texts_of(message: ChatMessage) -> Iterator[str]:
    """All texts of a message."""
    yield from (part.text for part in message.parts if isinstance(part, TextPart))
    yield message.reasoning
    for call in message.tool_calls:
        yield from (call.name, call.arguments)


def _changed_json(text: str, change: Callable[[str], str]) -> str:
    """JSON with every string in it changed, also those that are written with escapes."""
    try:
        value = _loaded(text)
    except (ValueError, RecursionError):
        return change(text)
    return json.dumps(_changed(value, change), ensure_ascii=False)


def _loaded(text: str) -> Any:
    """The value of a JSON text; a half of a surrogate pair, which has no UTF-8, becomes U+FFFD."""
    value = json.loads(text)
    return _changed(value, _whole_characters) if "\\u" in text else value


def _whole_characters(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _changed(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): _changed(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [_changed(inner, change) for inner in value]
    return value
