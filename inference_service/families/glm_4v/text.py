"""Text processing of GLM-4V-9B: vocabulary, special tokens and chat format.

Source: the release's tokenization_chatglm.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from inference_service.domain import ChatMessage, ChatRequest, ImagePart, TextPart
from inference_service.families.copied_files import require_vocabulary
from inference_service.families.family import TextOptions
from inference_service.model_spec import ModelSpec
from inference_service.text.conversation import (
    check_thinking,
    refuse_too_long,
    refuse_tools,
    with_names_as_text,
)
from inference_service.text.prompt import ChatAbilities, ChatFormat, WrittenChat
from inference_service.text.tokenizer import Tokenizer
from inference_service.text.tokenizer_tiktoken import TiktokenTokenizer, read_ranks


VOCABULARY = "tokenizer.model"
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
IMAGE = ("<|begin_of_image|>", "<|endoftext|>", "<|end_of_image|>")
"""The tokens of an image in a prompt."""
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "<sop>",
    "<eop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
)
"""In the order of their ids, which follow those of the vocabulary file."""


def load_text(
    model_dir: Path, spec: ModelSpec, options: TextOptions
) -> tuple[Tokenizer, ChatFormat]:
    """See `Family.load_text`."""
    del options
    require_vocabulary(model_dir, VOCABULARY, spec.family)
    tokenizer = load_tokenizer(model_dir)
    ids = [tokenizer.special_tokens[token] for token in IMAGE]
    if ids != [spec.vision_start_token_id, spec.image_token_id, spec.vision_end_token_id]:
        raise ValueError(f"{VOCABULARY} does not match boi_token_id of config.json")
    return tokenizer, GlmChat(tokenizer)


def load_tokenizer(model_dir: Path) -> Tokenizer:
    """Reads tokenizer.model.

    Raises:
        OSError: It cannot be read.
        ValueError: It is malformed.
    """
    ranks = read_ranks(model_dir / VOCABULARY)
    special = {token: len(ranks) + index for index, token in enumerate(SPECIAL_TOKENS)}
    return TiktokenTokenizer(ranks, special, pattern=PATTERN, normalize=False)


class GlmChat:
    """The chat format of GLM-4V-9B: a turn is ended by the next role token only."""

    abilities = ChatAbilities()

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Takes the model's tokenizer."""
        self._tokenizer = tokenizer
        special = tokenizer.special_tokens
        self._opening = [special["[gMASK]"], special["<sop>"]]
        self._image = [special[token] for token in IMAGE]
        self._newline = tokenizer.encode_plain("\n")

    def write(self, request: ChatRequest) -> WrittenChat:
        """See `ChatFormat.write`."""
        refuse_tools(request)
        refuse_too_long(request.messages)
        check_thinking(request)
        token_ids = list(self._opening)
        messages = with_names_as_text(request.messages)
        for message in messages:
            token_ids += self._message(message)
        last = messages[-1]
        if request.continue_final_message and not self._message(last):
            token_ids += [self._role(last.role.value), *self._newline]
        if request.add_generation_prompt:
            token_ids.append(self._role("assistant"))
        return WrittenChat(token_ids=token_ids)

    def with_placeholders(self, token_ids: Sequence[int], field: str) -> Sequence[int]:
        """See `ChatFormat.with_placeholders`: such prompts already have placeholders."""
        del field
        return token_ids

    def _message(self, message: ChatMessage) -> list[int]:
        """Token ids of a message: images come before the text; an empty message is left out."""
        text = "".join(part.text for part in message.parts if isinstance(part, TextPart))
        images = sum(isinstance(part, ImagePart) for part in message.parts)
        if not (images or text):
            return []
        content = self._image * images + self._tokenizer.encode_plain(text)
        return [self._role(message.role.value), *self._newline, *content]

    def _role(self, name: str) -> int:
        return self._tokenizer.special_tokens[f"<|{name}|>"]
