"""Separates the tool calls of an answer from its text. What is malformed, or not declared, stays text.

A call that is cut before its name is known is neither: nobody could read it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
import json
import secrets
from typing import Any, Final

from inference_service.domain import (
    ChatRequest,
    Request,
    StopTrigger,
    Tool,
    ToolCallDelta,
    ToolMode,
)
from inference_service.model_spec import ToolNotation
from inference_service.text.output import hermes, xml_call
from inference_service.text.output.call_reader import CallReader, CallState, ReadCall
from inference_service.text.output.held import MAX_SPACE, Tags, first_tag
from inference_service.text.output.stage import Piece
from inference_service.text.tokenizer import Tokenizer


_SPACE: Final = " \t\r\n"
_ID_BYTES: Final = 12
_MAX_NO_CALLS: Final = 64
"""Behind so many tags that begin no call, all is text: behind each of them the text is read again."""


class ToolCallSplitter:
    """The stage that reads tool calls.

    White space that touches a call is left out. A call that ends before it is complete remains as far as it was passed
    on; then `Piece.calls_tools` is false. If nothing was, it stays text where the model itself has ended the answer. It
    is left out where it was cut, or where a grammar permits nothing but calls.
    """

    counts_tokens = False

    def __init__(
        self,
        notation: ToolNotation,
        tools: Sequence[Tool],
        *,
        only_one: bool = False,
        only_calls: bool = False,
    ) -> None:
        """Starts an answer.

        Args:
            notation: How the model writes calls.
            tools: The declared functions.
            only_one: The answer ends after its first call.
            only_calls: A grammar permits nothing but calls, of which the last may be cut.
        """
        self._only_calls = only_calls
        self.may_end = only_one
        self._tags = tag_texts(notation)
        self._beginnings = Tags(self._tags)
        self._no_calls = 0
        self._new_reader = _reader_factory(notation, tools)
        self._reader: CallReader | None = None
        # The white space before a call that has not begun, and the pieces of the call's text.
        self._unread: list[str] = []
        self._tag = ""
        self._held = ""
        self._index = -1
        self._has_begun = False
        self._has_broken = False
        self._has_text = False
        self._behind_call = False

    def push(self, piece: Piece) -> None:
        """Moves the calls of a piece; holds back what may be a part of one."""
        text: str | None = self._held + piece.text
        piece.text, self._held = "", ""
        while text is not None and (text or piece.last):
            text = self._read(piece, text) if self._reader else self._find(piece, text)
        is_open = self._reader is not None and self._has_begun
        piece.calls_tools = self._index >= 0 and not is_open and not self._has_broken

    def _find(self, piece: Piece, text: str) -> str | None:
        """Passes on the text before the next call; returns that of the call, None = there is none yet."""
        found = first_tag(text, self._tags)
        if found is None:
            kept = len(text)
            if not piece.last or self._only_calls:
                kept -= self._beginnings.possible_beginning(text)
                kept = max(len(text[:kept].rstrip(_SPACE)), len(text) - MAX_SPACE)
            self._say(piece, text[:kept])
            self._held = text[kept:]
            return None
        index, self._tag = found
        spoken = text[:index].rstrip(_SPACE)
        self._say(piece, spoken)
        self._unread = [text[len(spoken) : index]]
        self._reader, self._has_begun = self._new_reader(), False
        return text[index:]

    def _say(self, piece: Piece, text: str) -> None:
        """Passes text on; white space behind a call only if text is before the call and behind the space."""
        if self._behind_call:
            spoken = text.lstrip(_SPACE)
            if not spoken:
                return
            text, self._behind_call = (text if self._has_text else spoken), False
        self._has_text = self._has_text or bool(text)
        piece.text += text

    def _read(self, piece: Piece, text: str) -> str | None:
        """Reads more of a call; returns the text behind it, None = it goes on, or nothing follows."""
        assert self._reader is not None
        reading = self._reader.read(text, last=piece.last)
        if not self._has_begun:
            self._unread.append(text)
        for call in reading.calls:
            if self.may_end and call.name is not None and self._index >= 0:
                break
            self._add(piece, call)
        if reading.state is CallState.OPEN:
            if piece.last:
                self._reader = None
                self._cut_off(piece)
            return None
        self._reader = None
        if not self._has_begun:
            return self._no_call(piece)
        self._behind_call = True
        if reading.state is CallState.BROKEN:
            self._has_broken = True
        elif self.may_end:
            piece.trigger, piece.last = StopTrigger(), True
            return None
        return reading.rest

    def _add(self, piece: Piece, call: ReadCall) -> None:
        self._has_begun, self._unread = True, []
        if call.name is None:
            delta = ToolCallDelta(index=self._index, arguments=call.arguments)
        else:
            self._index += 1
            delta = ToolCallDelta(
                index=self._index,
                id=f"call_{secrets.token_hex(_ID_BYTES)}",
                name=call.name,
                arguments=call.arguments,
            )
        piece.tool_calls += (delta,)

    def _cut_off(self, piece: Piece) -> None:
        """The answer has ended inside a call."""
        if self._has_begun:
            self._has_broken = True
        elif not (piece.is_cut or self._only_calls):
            self._say(piece, "".join(self._unread))

    def _no_call(self, piece: Piece) -> str:
        """Passes on the tag of what was no call; returns the text behind it, where another call may begin."""
        self._no_calls += 1
        if self._no_calls == _MAX_NO_CALLS:
            self._tags, self._beginnings = (), Tags(())
        unread = "".join(self._unread)
        start = unread.index(self._tag) + len(self._tag)
        self._say(piece, unread[:start])
        return unread[start:]


TAG_TOKENS: Final = (hermes.OPEN_TAG, hermes.CLOSE_TAG)
"""Texts that are tokens in most vocabularies, also special ones, and must be kept in the text to parse it."""


def call_beginnings(notation: ToolNotation, tools: Sequence[Tool]) -> tuple[str, ...]:
    """Texts that begin a call even in reasoning that was not closed: families with XML forget that."""
    if notation is not ToolNotation.XML:
        return ()
    tag = f"{xml_call.OPEN_TAG}\n{xml_call.FUNCTION_TAG}"
    return tuple(f"{tag}{tool.name}>" for tool in tools)


def forbidden_tokens(request: Request, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens that an answer must not have, because the request has tools but forbids calls."""
    if not isinstance(request, ChatRequest) or not request.tools:
        return ()
    token_id = tokenizer.added_tokens.get(hermes.OPEN_TAG)
    return () if token_id is None or request.tool_choice.mode is not ToolMode.NONE else (token_id,)


def tag_texts(notation: ToolNotation) -> tuple[str, ...]:
    """The texts that begin a call."""
    if notation is ToolNotation.XML:
        return (xml_call.OPEN_TAG, xml_call.FUNCTION_TAG)
    return (hermes.OPEN_TAG,)


def schema_of(tool: Tool) -> dict[str, Any]:
    """The JSON schema of a tool's arguments."""
    schema: Any = json.loads(tool.parameters) if tool.parameters else None
    return schema if isinstance(schema, dict) else {"type": "object", "properties": {}}


def _reader_factory(notation: ToolNotation, tools: Sequence[Tool]) -> Callable[[], CallReader]:
    by_name = {tool.name: tool for tool in tools}
    if notation is ToolNotation.XML:
        # Of the functions that are called: each answer has a factory of its own, and there may be a MiB of schemas.
        schema = functools.cache(lambda name: schema_of(by_name[name]))
        return lambda: xml_call.XmlReader(by_name.keys(), schema)
    return lambda: hermes.HermesReader(by_name.keys())
