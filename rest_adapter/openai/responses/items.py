"""Reads the input of a response: a text, or a list of items.

An item is read by itself, without the others; `turns` makes messages of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from rest_adapter.errors import ApiError, invalid, unsupported
from rest_adapter.json_text import shown
from rest_adapter.json_values import text_of
from rest_adapter.openai.content import Content, Text, read_content
from rest_adapter.openai.part_fields import Fields
from rest_adapter.openai.responses.blobs import Unpacker
from rest_adapter.validation import wrong


COMPACTION: Final = "compaction"
REASONING: Final = "reasoning"
_ROLES: Final = ("user", "system", "developer", "assistant")
_OF_ITEMS_IGNORED: Final = frozenset(
    ("caller", "created_by", "id", "internal_chat_message_metadata_passthrough", "phase", "status")
)
"""Fields of items that clients send back from responses, or that have no effect here."""


@dataclass(frozen=True, slots=True)
class Item:
    """An item of the input.

    Attributes:
        path: Its path in the JSON.
        id: Its id, if the caller gave one.
    """

    path: str
    id: str | None


@dataclass(frozen=True, slots=True)
class MessageItem(Item):
    """A message; `role` is one of OpenAI's."""

    role: str
    parts: tuple[Content, ...]


@dataclass(frozen=True, slots=True)
class CallItem(Item):
    """A call of a function by the model; `arguments` is the text of a JSON object."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class CallOutputItem(Item):
    """What a call returned."""

    call_id: str
    parts: tuple[Content, ...]
    is_text: bool


@dataclass(frozen=True, slots=True)
class ReasoningItem(Item):
    """The model's reasoning; empty if it cannot be read."""

    text: str


@dataclass(frozen=True, slots=True)
class CompactionItem(Item):
    """The summary of a conversation, by this service; `blob` is how the caller has it."""

    summary: str
    blob: str


@dataclass(frozen=True, slots=True)
class ReferenceItem(Item):
    """An item of an earlier response, to be looked up by its id."""

    target: str


AnyItem = MessageItem | CallItem | CallOutputItem | ReasoningItem | CompactionItem | ReferenceItem
_Read = tuple[AnyItem, list[str]]


def read_input(value: object) -> tuple[list[AnyItem], list[str]]:
    """Reads `input`.

    Returns:
        Its items, at least one, and the paths of unknown fields.

    Raises:
        ApiError: It is missing or empty, or an item is invalid or not supported; the error names the field.
    """
    if value is None:
        raise invalid("'input' is missing.", "input", "MISSING_FIELD")
    if isinstance(value, str):
        return [MessageItem("input", None, "user", (Text(value, "input"),))], []
    if not isinstance(value, list):
        raise wrong("input", value, "text or a list of items")
    if not value:
        raise invalid("'input' is an empty list, but needs at least one item.", "input")
    items: list[AnyItem] = []
    unknown: list[str] = []
    blobs = Unpacker()
    for index, document in enumerate(value):
        item, names = read_item(document, f"input[{index}]", blobs)
        items.append(item)
        unknown += names
    return items, unknown


def read_item(document: object, path: str, blobs: Unpacker) -> _Read:
    """Reads one item; as `read_input`. `blobs` is the same for all items of a request."""
    if not isinstance(document, dict):
        raise wrong(path, document, "an object")
    fields = Fields(document, path)
    kind = document.get("type")
    if kind is None and "role" in document:
        kind = "message"
    elif kind is None and set(document) == {"id"}:
        kind = "item_reference"
    if not isinstance(kind, str):
        raise wrong(fields.path_of("type"), kind, f"one of: {', '.join(_READERS)}")
    if kind not in _READERS:
        advice = f"items of these types are: {', '.join(_READERS)}"
        raise unsupported(fields.path_of("type"), kind, advice)
    return _READERS[kind](fields, blobs)


def _unknown(fields: Fields, *known: str) -> list[str]:
    return [
        path
        for path in fields.unknown(known)
        if path.removeprefix(f"{fields.path}.") not in _OF_ITEMS_IGNORED
    ]


def _id_of(fields: Fields) -> str | None:
    return fields.text("id")


def _required(fields: Fields, name: str) -> str:
    if (text := fields.text(name)) is None:
        path = fields.path_of(name)
        missing = "is missing" if name not in fields.values else "is empty"
        raise invalid(f"'{path}' {missing}.", path, "MISSING_FIELD")
    return text


def _read_message(fields: Fields, _: Unpacker) -> _Read:
    role = fields.values.get("role")
    if role not in _ROLES:
        raise wrong(fields.path_of("role"), role, f"one of: {', '.join(_ROLES)}")
    content = fields.values.get("content")
    is_answer = role == "assistant"
    parts, unknown = read_content(content, fields.path_of("content"), is_answer=is_answer)
    if not parts and not is_answer:
        path = fields.path_of("content")
        raise invalid(
            f"'{path}' is {shown(content)}, but a {role} message needs text or parts.", path
        )
    parts = parts or [Text("", fields.path_of("content"))]
    item = MessageItem(fields.path, _id_of(fields), str(role), tuple(parts))
    return item, [*_unknown(fields, "role", "content"), *unknown]


def _read_call(fields: Fields, _: Unpacker) -> _Read:
    arguments = fields.values.get("arguments")
    if isinstance(arguments, dict):
        arguments = text_of(arguments, fields.path_of("arguments"))
    elif arguments is not None and not isinstance(arguments, str):
        raise wrong(fields.path_of("arguments"), arguments, "the text of a JSON object")
    item = CallItem(
        fields.path,
        _id_of(fields),
        _required(fields, "call_id"),
        _required(fields, "name"),
        (arguments or "").strip() or "{}",
    )
    return item, _unknown(fields, "call_id", "name", "arguments")


def _read_call_output(fields: Fields, _: Unpacker) -> _Read:
    call_id = _required(fields, "call_id")
    output, path = fields.values.get("output"), fields.path_of("output")
    if "output" not in fields.values:
        raise invalid(f"'{path}' is missing.", path, "MISSING_FIELD")
    if not isinstance(output, str | list):
        raise wrong(path, output, "text or a list of parts")
    parts, unknown = read_content(output, path)
    parts = parts or [Text("", path)]
    item = CallOutputItem(
        fields.path, _id_of(fields), call_id, tuple(parts), isinstance(output, str)
    )
    return item, [*_unknown(fields, "call_id", "output"), *unknown]


def _read_reasoning(fields: Fields, blobs: Unpacker) -> _Read:
    text = _texts(fields, "content") or _texts(fields, "summary")
    if not text and (blob := fields.text("encrypted_content")):
        text = blobs.unpack(REASONING, blob) or ""
    item = ReasoningItem(fields.path, _id_of(fields), text)
    return item, _unknown(fields, "content", "summary", "encrypted_content")


def _texts(fields: Fields, name: str) -> str:
    """The texts of the parts of a reasoning item, which are separated as paragraphs."""
    value, path = fields.values.get(name), fields.path_of(name)
    if value is None:
        return ""
    if not isinstance(value, list):
        raise wrong(path, value, "a list of parts")
    texts = []
    for index, part in enumerate(value):
        where = f"{path}[{index}]"
        if not isinstance(part, dict):
            raise wrong(where, part, "an object")
        if not isinstance(part.get("text"), str):
            raise wrong(f"{where}.text", part.get("text"), "text")
        texts.append(part["text"])
    return "\n\n".join(filter(None, texts))


def _read_compaction(fields: Fields, blobs: Unpacker) -> _Read:
    blob = _required(fields, "encrypted_content")
    summary = blobs.unpack(COMPACTION, blob)
    if summary is None:
        path = fields.path_of("encrypted_content")
        raise invalid(f"'{path}' is not from this service (POST /v1/responses/compact).", path)
    return CompactionItem(fields.path, _id_of(fields), summary, blob), _unknown(
        fields, "encrypted_content"
    )


def _read_reference(fields: Fields, _: Unpacker) -> _Read:
    return ReferenceItem(fields.path, None, _required(fields, "id")), _unknown(fields)


_READERS: Final[Mapping[str, Callable[[Fields, Unpacker], _Read]]] = {
    "message": _read_message,
    "function_call": _read_call,
    "function_call_output": _read_call_output,
    REASONING: _read_reasoning,
    COMPACTION: _read_compaction,
    "item_reference": _read_reference,
}


def resolved(item: AnyItem, found: Mapping[str, Mapping[str, Any]], blobs: Unpacker) -> AnyItem:
    """An item, or that which a reference points at.

    Args:
        item: The item.
        found: The items that were looked up, in JSON, by id.
        blobs: Unpacks what they contain.

    Raises:
        ApiError: It was not found.
    """
    if not isinstance(item, ReferenceItem):
        return item
    document = found.get(item.target)
    if document is None:
        raise not_found(item)
    return read_item(document, item.path, blobs)[0]


def not_found(item: ReferenceItem) -> ApiError:
    """The error for a reference to an item that is not, or no longer, there."""
    return invalid(
        f"'{item.path}.id' is {shown(item.target)}, but there is no such item, or no longer; send the item itself.",
        f"{item.path}.id",
    )
