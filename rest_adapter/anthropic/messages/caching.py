"""Whether a request marks a part of its prompt for the prompt cache, by `cache_control`.

This service keeps every prompt in its prefix cache, and needs no marks. It tells what it has kept only to those that
ask: without a mark nothing is written in Anthropic's API, so that `input_tokens` has all tokens but those read from a
cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rest_adapter.anthropic.messages.blocks import ToolResultBlock
from rest_adapter.anthropic.messages.schema import MessagesRequest, blocks_of
from rest_adapter.json_model import JsonModel, asks_for_nothing


_MARK: Final = "cache_control"


def is_marked(request: MessagesRequest) -> bool:
    """Whether the request, a tool, a message or a block has a mark."""
    return any(
        not asks_for_nothing((place.__pydantic_extra__ or {}).get(_MARK))
        for place in _places(request)
    )


def _places(request: MessagesRequest) -> Iterator[JsonModel]:
    yield request
    yield from request.tools or ()
    yield from request.messages
    yield from _blocks(request.system)
    for message in request.messages:
        yield from _blocks(message.content)


def _blocks(content: object) -> Iterator[JsonModel]:
    if isinstance(content, str):  # a text has no place for a mark
        return
    for block, _ in blocks_of(content, ""):
        yield block
        if isinstance(block, ToolResultBlock):
            yield from _blocks(block.content)
