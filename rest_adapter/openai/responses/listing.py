"""Writes items of the input as OpenAI lists them, with an id each; `items` reads them back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final
import uuid

from qwenvl.inference.v1 import message_pb2 as message_pb
from rest_adapter.media import OVERSIZED, as_data_uri
from rest_adapter.openai.content import Content, Text, Video
from rest_adapter.openai.image_parts import Image
from rest_adapter.openai.responses.items import (
    AnyItem,
    CallItem,
    CallOutputItem,
    CompactionItem,
    MessageItem,
    ReasoningItem,
)


_DETAILS: Final = {
    message_pb.IMAGE_DETAIL_LOW: "low",
    message_pb.IMAGE_DETAIL_HIGH: "high",
    message_pb.IMAGE_DETAIL_ORIGINAL: "original",
}
_OVERSIZED: Final = {value: name for name, value in OVERSIZED.items()}


def new_id(prefix: str) -> str:
    """A new id, such as `msg_...`."""
    return f"{prefix}_{uuid.uuid4().hex}"


def documents_of(items: Iterable[AnyItem]) -> list[dict[str, Any]]:
    """The items in JSON; those without an id get one."""
    return [_document(item) for item in items]


def _document(item: AnyItem) -> dict[str, Any]:
    match item:
        case MessageItem():
            content = [_part(part, is_answer=item.role == "assistant") for part in item.parts]
            return _with_id("message", item, "msg") | {"role": item.role, "content": content}
        case CallItem():
            call = {"call_id": item.call_id, "name": item.name, "arguments": item.arguments}
            return _with_id("function_call", item, "fc") | call
        case CallOutputItem():
            output: object = [_part(part, is_answer=False) for part in item.parts]
            if item.is_text and isinstance(item.parts[0], Text):
                output = item.parts[0].text
            document = _with_id("function_call_output", item, "fco")
            return document | {"call_id": item.call_id, "output": output}
        case ReasoningItem():
            parts = [{"type": "reasoning_text", "text": item.text}] if item.text else []
            return _with_id("reasoning", item, "rs") | {"summary": [], "content": parts}
        case CompactionItem():
            document_id = item.id or new_id("cmp")
            return {"type": "compaction", "id": document_id, "encrypted_content": item.blob}
        case _:
            raise TypeError(f"{item} is a reference, which must be resolved first")


def _with_id(kind: str, item: AnyItem, prefix: str) -> dict[str, Any]:
    return {"type": kind, "id": item.id or new_id(prefix), "status": "completed"}


def _part(part: Content, *, is_answer: bool) -> dict[str, Any]:
    match part:
        case Text(is_refusal=True):
            return {"type": "refusal", "refusal": part.text}
        case Text() if is_answer:
            text = {"type": "output_text", "text": part.text}
            return text | {"annotations": [], "logprobs": []}
        case Text():
            return {"type": "input_text", "text": part.text}
        case Video():
            rate = {} if part.fps is None else {"fps": part.fps}
            return {"type": "video", "video": list(part.frames)} | rate
        case _:
            return _image(part)


def _image(image: Image) -> dict[str, Any]:
    source = image.source
    url = source.text
    if source.is_base64:
        url = as_data_uri(str(url), source.mime_type)
    hints = dict(image.hints)
    if (oversized := hints.pop("oversized", None)) is not None:
        hints["transformations"] = {"oversized_image": _OVERSIZED[oversized]}
    detail = _DETAILS.get(image.detail, "auto")
    return {"type": "input_image", "detail": detail, "image_url": url} | hints
