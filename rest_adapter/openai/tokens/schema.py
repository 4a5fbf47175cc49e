"""The JSON schemas of `/tokenize`, `/detokenize` and `/v1/chat/completions/render`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rest_adapter.errors import invalid
from rest_adapter.json_model import Int32, Items, JsonModel, asks_for_nothing, unknown_fields
from rest_adapter.openai.chat.schema import Chat, ChatRequest, checked_chat
from rest_adapter.openai.validation import parse
from rest_adapter.validation import validate


MAX_LISTS: Final = 64
_CANONICAL: Final = "-"
RENDER_NEUTRAL: Final = {"mm_payload": ("none",), "return_token_offsets": ()}
"""Known but unsupported fields, with the values that have no effect."""
_TOKENS_IGNORED: Final = ("add_special_tokens", "media_io_kwargs")
"""No tokenizer of the served families adds special tokens, and no text is read from files."""


class TokenizeRequest(JsonModel):
    """A text to tokenise. `add_special_tokens` has no effect: no tokenizer of the served models adds any."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool | None = None
    parse_special: bool | None = None
    return_token_strs: bool | None = None


class TokenizeChatRequest(ChatRequest):
    """A conversation to tokenise, with the fields of `/v1/chat/completions`; the model may be left out."""

    model: str = ""
    add_special_tokens: bool | None = None
    parse_special: bool | None = None
    return_token_strs: bool | None = None


class RenderRequest(ChatRequest):
    """A request of `/v1/chat/completions`, whose prompt is wanted instead of an answer."""

    return_token_strs: bool | None = None


class DetokenizeRequest(JsonModel):
    """Token ids, or several lists of them."""

    model: str | None = None
    tokens: Items[Int32] | Items[Items[Int32]]
    skip_special_tokens: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedPrompt:
    """A checked conversation whose prompt is wanted.

    Attributes:
        chat: The conversation.
        strings: The tokens are wanted as the vocabulary writes them, too.
        model: The name of the model; empty = the canonical one.
    """

    chat: Chat
    strings: bool
    model: str


def parse_tokenize(document: object) -> tuple[TokenizeRequest | AskedPrompt, list[str]]:
    """Checks a parsed JSON document: a text in `prompt`, or a conversation in `messages`.

    Returns:
        The request, and the paths of unknown fields.

    Raises:
        ApiError: A field is missing, has a wrong type, or is known but not supported.
    """
    if not isinstance(document, dict) or asks_for_nothing(document.get("messages")):
        request = validate(TokenizeRequest, document)
        return request, [*unknown_fields(request, ignored=("messages", *_TOKENS_IGNORED))]
    named = {"model": _CANONICAL} | {k: v for k, v in document.items() if v is not None}
    chat_request, unknown = parse(TokenizeChatRequest, named)
    if chat_request.parse_special:
        raise invalid(
            "'parse_special' is true, but special tokens in the messages of a chat are text.",
            "parse_special",
        )
    chat, names = checked_chat(chat_request)
    unknown = [name for name in (*unknown, *names) if name not in _TOKENS_IGNORED]
    model = chat_request.model if document.get("model") is not None else ""
    strings = bool(chat_request.return_token_strs)
    return AskedPrompt(chat=chat, strings=strings, model=model), unknown


def parse_render(document: object) -> tuple[AskedPrompt, list[str]]:
    """Checks a parsed JSON document of `/v1/chat/completions/render`; as `parse_tokenize`."""
    request, unknown = parse(RenderRequest, document)
    list(unknown_fields(request, unsupported_unless=RENDER_NEUTRAL))
    chat, names = checked_chat(request)
    unknown = [name for name in (*unknown, *names) if name not in RENDER_NEUTRAL]
    strings = bool(request.return_token_strs)
    return AskedPrompt(chat=chat, strings=strings, model=request.model), unknown


def parse_detokenize(document: object) -> tuple[DetokenizeRequest, list[str]]:
    """Checks a parsed JSON document of `/detokenize`; as `parse_tokenize`."""
    request = validate(DetokenizeRequest, document)
    lists = lists_of(request)
    if len(lists) > MAX_LISTS:
        raise invalid(
            f"'tokens' has {len(lists)} lists, but must have at most {MAX_LISTS}.", "tokens"
        )
    return request, [*unknown_fields(request)]


def lists_of(request: DetokenizeRequest) -> list[list[int]]:
    """The lists of token ids of a request."""
    return [ids for ids in request.tokens if isinstance(ids, list)] or [
        [token_id for token_id in request.tokens if isinstance(token_id, int)]
    ]
