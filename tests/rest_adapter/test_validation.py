"""Lists that the service would refuse are refused before they are read."""

from __future__ import annotations

from typing import Any

import pytest

from qwenvl.limits import MAX_TOOLS
from rest_adapter.anthropic.messages.schema import parse_messages
from rest_adapter.errors import ApiError
from rest_adapter.openai.chat import tools as chat_tools
from rest_adapter.openai.chat.schema import parse_chat
from rest_adapter.openai.functions import read_function
from rest_adapter.openai.responses import tools as responses_tools
from rest_adapter.openai.responses.schema import parse_responses
from rest_adapter.openai.tokens.schema import parse_render, parse_tokenize


CHAT = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
PARSERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "chat": (parse_chat, CHAT),
    "render": (parse_render, CHAT),
    "tokenize": (parse_tokenize, CHAT),
    "responses": (parse_responses, {"model": "m", "input": "a"}),
    "messages": (parse_messages, CHAT | {"max_tokens": 4}),
}


def tool(number: int) -> dict[str, Any]:
    return {"type": "function", "name": f"f{number}", "parameters": {}}


def of_anthropic(number: int) -> dict[str, Any]:
    return {"name": f"f{number}", "input_schema": {}}


@pytest.mark.parametrize("case", PARSERS)
def test_too_many_tools_are_not_read(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parse, body = PARSERS[case]
    make = of_anthropic if case == "messages" else tool
    parse(body | {"tools": [make(number) for number in range(MAX_TOOLS)]})

    def read(*_: object, **__: object) -> None:
        pytest.fail("a tool was read")

    monkeypatch.setattr(chat_tools, "_read_tool", read)
    monkeypatch.setattr(responses_tools, "_read_function", read)
    with pytest.raises(ApiError, match=r"'tools' has 257 entries, but .* at most 256") as refused:
        parse(body | {"tools": [make(number) for number in range(MAX_TOOLS + 1)]})
    assert (refused.value.status, refused.value.param) == (400, "tools")


def test_names_are_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not each with each."""
    compared = 0

    class Name(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

    def named(fields: Any) -> Any:
        function = read_function(fields)
        object.__setattr__(function, "name", Name(function.name))
        return function

    monkeypatch.setattr(responses_tools, "read_function", named)
    parse_responses(PARSERS["responses"][1] | {"tools": [tool(number) for number in range(200)]})
    assert compared < 2000
