"""Reads single fields of a part of a message; errors name them by their path in the request's JSON."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from rest_adapter.errors import unsupported
from rest_adapter.json_model import asks_for_nothing, whole_number, without_neutral_values
from rest_adapter.validation import wrong


_MAX_INT64: Final = 2**63 - 1
IGNORED: Final = frozenset(
    (
        "annotations",
        "cache_control",
        "citations",
        "extras",
        "format",
        "id",
        "index",
        "logprobs",
        "media_type",
        "mime_type",
        "prompt_cache_breakpoint",
        "source_type",
        "type",
    )
)
"""Fields of a part that clients send and that have no effect on an answer of this service."""


@dataclass(frozen=True, slots=True)
class Fields:
    """A JSON object in a message.

    Attributes:
        values: The object.
        path: Its path in the request's JSON.
    """

    values: Mapping[str, Any]
    path: str

    def path_of(self, name: str) -> str:
        """The path of a field."""
        return f"{self.path}.{name}"

    def has(self, name: str) -> bool:
        """Whether a field asks for something."""
        return not asks_for_nothing(without_neutral_values(self.values.get(name)))

    def text(self, name: str) -> str | None:
        """A text; None if the field asks for nothing.

        Raises:
            ApiError: It is something else.
        """
        value = self.values.get(name)
        if asks_for_nothing(value):
            return None
        if not isinstance(value, str):
            raise wrong(self.path_of(name), value, "text")
        return value

    def integer(self, name: str) -> int | None:
        """An integer of 64 bits; None if the field asks for nothing.

        Raises:
            ApiError: It is something else.
        """
        value = whole_number(self.values.get(name))
        if asks_for_nothing(value):
            return None
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) > _MAX_INT64:
            raise wrong(self.path_of(name), self.values[name], "an integer of at most 64 bits")
        return value

    def number(self, name: str) -> float | None:
        """A number; None if the field asks for nothing.

        Raises:
            ApiError: It is something else.
        """
        value = self.values.get(name)
        if asks_for_nothing(value):
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong(self.path_of(name), value, "a number")
        return float(value)

    def refuse(self, names: Collection[str], advice: str) -> None:
        """Refuses fields that would have an effect elsewhere.

        Raises:
            ApiError: One of them asks for something.
        """
        for name in self.values:
            if name in names and self.has(name):
                raise unsupported(self.path_of(name), self.values[name], advice)

    def unknown(self, known: Collection[str]) -> Iterator[str]:
        """The paths of fields that ask for something and are neither known nor ignored."""
        for name in self.values:
            if name not in known and name not in IGNORED and self.has(name):
                yield self.path_of(name)
