"""The golden data of Qwen-VL v1: where it is, its checkpoints, and its prompts as requests."""

from __future__ import annotations

from collections.abc import Iterable
import json
from pathlib import Path
import re
from typing import Any

from inference_service.domain import ChatMessage, ChatRequest, ImagePart, Part, Role, TextPart


GOLDEN = Path(__file__).parents[1] / "golden" / "qwen_vl_v1"
IMG, IMG_END, PAD = 151857, 151858, 151859
PICTURE = re.compile(r"(?:Picture \d+: )?<img>(.*?)</img>\n?")


def golden(name: str) -> Any:
    """A JSON file of the golden data."""
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


def with_pads(ids: Iterable[int], *, each: int = 256) -> list[int]:
    """Ids with `each` placeholders between picture tags, where the original has the bytes of a path."""
    out: list[int] = []
    inside = False
    for token_id in ids:
        inside = inside and token_id != IMG_END
        if not inside:
            out.append(token_id)
        if token_id == IMG:
            inside = True
            out += [PAD] * each
    return out


def message(role: Role, text: str, read=lambda path: path.encode()) -> ChatMessage:
    """A message whose picture tags are pictures; `read` gives their files."""
    parts: list[Part] = []
    at = 0
    for found in PICTURE.finditer(text):
        if text[at : found.start()]:
            parts.append(TextPart(text=text[at : found.start()]))
        parts.append(ImagePart(data=read(found[1])))
        at = found.end()
    if text[at:] or not parts:
        parts.append(TextPart(text=text[at:]))
    return ChatMessage(role=role, parts=tuple(parts))


def chat_request(query: str, history=None, system: str | None = None) -> ChatRequest:
    """A conversation in the terms of the original: pairs of question and answer, then a question."""
    messages = [] if system is None else [message(Role.SYSTEM, system)]
    for question, answer in history or []:
        messages.append(message(Role.USER, question))
        if answer is not None:
            messages.append(message(Role.ASSISTANT, answer))
    messages.append(message(Role.USER, query))
    return ChatRequest(request_id="r", model="m", messages=tuple(messages))
