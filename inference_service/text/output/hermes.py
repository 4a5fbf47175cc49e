"""Reads tool calls in the notation of Hermes: JSON between `<tool_call>` and `</tool_call>`.

The arguments are passed on while they are generated, as soon as the function's name is known. Other forms that models
write are read when they are complete: a list of calls, arguments before the name, arguments as the text of JSON.
"""

from __future__ import annotations

from collections.abc import Collection
import json
import re
from typing import Any, Final

from inference_service.text.output.call_reader import CallState, ReadCall, Reading
from inference_service.text.output.held import MAX_SPACE
from inference_service.text.output.json_text import JsonReader, to_json


OPEN_TAG: Final = "<tool_call>"
CLOSE_TAG: Final = "</tool_call>"
_SPACE: Final = " \t\r\n"
_HEAD: Final = re.compile(
    r'[ \t\r\n]*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*+")\s*,\s*"(?:arguments|parameters)"\s*:\s*\{'
)
"""The usual beginning, up to that of the arguments."""


class HermesReader:
    """Reads one call, or a list of calls.

    Args:
        names: The declared functions.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._json = JsonReader()
        self._taken: list[str] = []  # the JSON so far, of a call that has not begun
        self._is_first = True
        self._may_begin = True
        self._has_begun = False
        self._arguments_done = False
        self._is_closing = False
        self._held = ""

    def read(self, text: str, *, last: bool) -> Reading:
        """See `CallReader.read`."""
        reading = Reading()
        if self._is_first:
            text, self._is_first = text.removeprefix(OPEN_TAG), False
        if not self._is_closing:
            text = self._take_json(text, reading)
        if self._is_closing:
            self._close(text, reading, last=last)
        elif last and self._arguments_done:
            reading.state = CallState.DONE
        return reading

    def _take_json(self, text: str, reading: Reading) -> str:
        """Takes JSON up to its end, where the closing tag is expected; returns the text behind it."""
        arguments: list[str] = []
        for index, character in enumerate(text):
            taken = self._json.take(character)
            if taken is None:
                self._pass(arguments, reading)
                return self._not_json(text[index:], reading)
            if self._has_begun and not self._arguments_done:
                arguments.append(taken)
                self._arguments_done = self._json.depth == 1
            elif not self._has_begun:
                self._taken.append(taken)
                if self._json.depth == 2 and self._may_begin and taken in "{[":
                    arguments += self._begin(reading)
            if self._json.done:
                self._pass(arguments, reading)
                self._is_closing = self._has_begun or self._whole(reading)
                return text[index + 1 :]
            if reading.state is CallState.BROKEN:
                return ""
        self._pass(arguments, reading)
        return ""

    def _begin(self, reading: Reading) -> tuple[str, ...]:
        """Begins a call if its arguments begin here; returns their first character."""
        self._may_begin = False
        head = _HEAD.fullmatch("".join(self._taken))
        if head is None:
            return ()
        name = json.loads(head[1])
        if name not in self._names:
            reading.state = CallState.BROKEN
            return ()
        self._has_begun = True
        reading.calls.append(ReadCall(name, ""))
        return ("{",)

    def _pass(self, arguments: list[str], reading: Reading) -> None:
        if arguments and reading.calls:
            reading.calls[-1].arguments += "".join(arguments)
        elif arguments:
            reading.calls.append(ReadCall(None, "".join(arguments)))

    def _not_json(self, rest: str, reading: Reading) -> str:
        """Ends the JSON where it is broken; only the brace behind the arguments may be missing."""
        if self._arguments_done:
            self._is_closing = True
            return rest
        reading.state = CallState.BROKEN
        reading.rest = rest
        return ""

    def _whole(self, reading: Reading) -> bool:
        """Reads complete JSON in one of the less usual forms; false = it is no call."""
        try:
            value = json.loads("".join(self._taken))
            found = [self._call(item) for item in (value if isinstance(value, list) else [value])]
        except (ValueError, RecursionError):
            found = []
        reading.calls = [call for call in found if call is not None]
        if found and len(reading.calls) == len(found):
            return True
        reading.calls = []
        reading.state = CallState.BROKEN
        return False

    def _call(self, item: Any) -> ReadCall | None:
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str) or name not in self._names:
            return None
        arguments = item.get("arguments", item.get("parameters"))
        if isinstance(arguments, str) and arguments.strip():
            arguments = json.loads(arguments)
        arguments = arguments or {}
        return ReadCall(name, to_json(arguments)) if isinstance(arguments, dict) else None

    def _close(self, text: str, reading: Reading, *, last: bool) -> None:
        """Looks for the closing tag, which may be missing."""
        text = self._held + text
        behind = text.lstrip(_SPACE)
        if behind.startswith(CLOSE_TAG):
            reading.state, reading.rest = CallState.DONE, behind.removeprefix(CLOSE_TAG)
        elif CLOSE_TAG.startswith(behind) and (last or len(text) <= MAX_SPACE):
            self._held = text
            if last:  # a tag that was cut
                reading.state = CallState.DONE
        else:
            reading.state, reading.rest = CallState.DONE, text
