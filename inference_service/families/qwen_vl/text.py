"""Text processing of Qwen-VL and Qwen-VL-Chat (2023): vocabulary, special tokens, ChatML with numbered images.

Source: the original's tokenization_qwen.py and qwen_generation_utils.py (arXiv 2308.12966).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
import re

from inference_service.domain import ChatMessage, ChatRequest, Role, TextPart
from inference_service.errors import (
    InvalidArgumentError,
    UnsupportedParameterError,
)
from inference_service.families.copied_files import require_vocabulary
from inference_service.families.family import TextOptions
from inference_service.model_spec import ModelSpec
from inference_service.text.conversation import (
    check_thinking,
    refuse_too_long,
    refuse_tools,
    with_names_as_text,
    with_one_system_message,
)
from inference_service.text.nfc import to_nfc
from inference_service.text.prompt import ChatAbilities, ChatFormat, WrittenChat
from inference_service.text.tokenizer import Tokenizer
from inference_service.text.tokenizer_tiktoken import TiktokenTokenizer, read_ranks


VOCABULARY = "qwen.tiktoken"
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BOX_TAGS = ("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>")
"""Tags around boxes: special tokens that users may write in messages, and that answers show."""
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    *(f"<|extra_{index}|>" for index in range(205)),
    *BOX_TAGS,
    "<img>",
    "</img>",
    "<imgpad>",
)
"""In the order of their ids, which follow those of the vocabulary file."""
DEFAULT_SYSTEM = "You are a helpful assistant."

_TAG = re.compile(f"({'|'.join(map(re.escape, BOX_TAGS))})")


def load_text(
    model_dir: Path, spec: ModelSpec, options: TextOptions
) -> tuple[Tokenizer, ChatFormat]:
    """See `Family.load_text`."""
    require_vocabulary(model_dir, VOCABULARY, spec.family)
    tokenizer = load_tokenizer(model_dir)
    if tokenizer.special_tokens["<imgpad>"] != spec.image_token_id:
        raise ValueError(f"{VOCABULARY} does not match image_start_id of config.json")
    if spec.is_chat:
        return tokenizer, QwenVLChat(
            tokenizer,
            image_tokens=spec.image_policy.num_tokens or 0,
            history_window=options.history_window,
        )
    if options.history_window is not None:
        raise ValueError(
            "--history-window is not supported by this base model: it has no chat format; remove it"
        )
    return tokenizer, QwenVLBase(tokenizer)


def load_tokenizer(model_dir: Path) -> Tokenizer:
    """Reads qwen.tiktoken.

    Raises:
        OSError: It cannot be read.
        ValueError: It is malformed.
    """
    ranks = read_ranks(model_dir / VOCABULARY)
    special = {token: len(ranks) + index for index, token in enumerate(SPECIAL_TOKENS)}
    return TiktokenTokenizer(ranks, special, pattern=PATTERN, normalize=True, shown=BOX_TAGS)


class QwenVLBase:
    """The chat format of Qwen-VL, the base model: no conversations, only text completions with images."""

    abilities = ChatAbilities()

    def __init__(self, tokenizer: Tokenizer) -> None:
        special = tokenizer.special_tokens
        self._placeholder = special["<imgpad>"]
        self._image = [special["<img>"], self._placeholder, special["</img>"]]

    def write(self, request: ChatRequest) -> WrittenChat:
        """Raises, as the base model cannot chat.

        Raises:
            UnsupportedParameterError: Always.
        """
        del request
        raise UnsupportedParameterError(
            "This is a base model without a chat format; use text completions instead.",
            field="spec.messages",
        )

    def with_placeholders(self, token_ids: Sequence[int], field: str) -> Sequence[int]:
        """See `ChatFormat.with_placeholders`: replaces `<img>...</img>`; the original puts a file name in between."""
        start, _, end = self._image
        placed: list[int] = []
        inside = False
        for token_id in token_ids:
            if inside and token_id == start:
                raise InvalidArgumentError(
                    "The prompt has an <img> inside another one; close it with </img> first.",
                    field=field,
                )
            if token_id == start:
                placed += self._image
                inside = True
            elif not inside:
                placed.append(token_id)
            inside = inside and token_id != end
        if inside:
            raise InvalidArgumentError("The prompt has an <img> without </img>.", field=field)
        return placed


class QwenVLChat(QwenVLBase):
    """The chat format of Qwen-VL-Chat."""

    def __init__(
        self, tokenizer: Tokenizer, *, image_tokens: int, history_window: int | None = None
    ) -> None:
        """Takes the parts of the model.

        Args:
            tokenizer: The model's tokenizer.
            image_tokens: Tokens of an image between its tags, for `history_window`.
            history_window: Earlier turns are dropped, oldest first, so that system message and history stay below
                this many tokens (`max_window_size` of the original); None = no limit.
        """
        super().__init__(tokenizer)
        self._tokenizer = tokenizer
        self._image_tokens = image_tokens
        self._history_window = history_window
        special = tokenizer.special_tokens
        self._start, self._end = special["<|im_start|>"], special["<|im_end|>"]
        self._newline = tokenizer.encode_plain("\n")

    def write(self, request: ChatRequest) -> WrittenChat:
        """See `ChatFormat.write`."""
        refuse_tools(request)
        refuse_too_long(request.messages)
        check_thinking(request)
        named = with_names_as_text(request.messages)
        # The model was trained with one system message; a later one could be dropped with its turn.
        messages = [message for message, _ in with_one_system_message(named)]
        has_system = messages[0].role is Role.SYSTEM
        instructions = _plain(messages.pop(0)) if has_system else DEFAULT_SYSTEM
        system = [*self._head(Role.SYSTEM), *self._text(instructions), self._end]
        *history, turn = self._turns(messages)
        if request.continue_final_message:
            turn.pop()
        if request.add_generation_prompt:
            turn += self._newline + self._head(Role.ASSISTANT)
        kept = self._within_window(len(system), history)
        token_ids = [*system, *(i for past in kept for i in past), *turn]
        dropped = history[: len(history) - len(kept)]
        return WrittenChat(
            token_ids=token_ids,
            dropped_images=sum(past.count(self._placeholder) for past in dropped),
        )

    def _turns(self, messages: list[ChatMessage]) -> list[list[int]]:
        """Token ids of every turn, a user message and the messages until the next one; at least one turn."""
        turns: list[list[int]] = []
        images = 0
        previous: Role | None = None
        for message in messages:
            if message.role is Role.USER and previous is Role.USER:
                turns[-1] += self._newline  # the original writes it after a turn without an answer
            if message.role is Role.USER or not turns:
                turns.append([])
            content, images = self._content(message, images)
            turns[-1] += [*self._newline, *self._head(message.role), *content, self._end]
            previous = message.role
        return turns or [[]]

    def _within_window(self, system_tokens: int, history: list[list[int]]) -> list[list[int]]:
        """The newest turns of the history that fit the window; the current turn does not count."""
        if self._history_window is None:
            return history
        total = system_tokens
        for index in range(len(history) - 1, -1, -1):
            images = history[index].count(self._placeholder)
            total += len(history[index]) + images * (self._image_tokens - 1)
            if total >= self._history_window:
                return history[index + 1 :]
        return history

    def _head(self, role: Role) -> list[int]:
        # Role and content are encoded separately, so that no token spans both.
        return [self._start, *self._tokenizer.encode_plain(role.value), *self._newline]

    def _content(self, message: ChatMessage, images: int) -> tuple[list[int], int]:
        """Token ids of a message, and the number of images so far, counted over all turns."""
        token_ids: list[int] = []
        text = ""
        for part in message.parts:
            if isinstance(part, TextPart):
                text += part.text
                continue
            images += 1
            token_ids += self._text(f"{text}Picture {images}: ") + self._image
            text = "\n"
        return token_ids + self._text(text), images

    def _text(self, text: str) -> list[int]:
        """Token ids in which only the tags around boxes are special tokens."""
        # Normalised before splitting: a combining character may merge with the end of a tag.
        pieces = _TAG.split(to_nfc(text))
        return [token_id for piece in pieces for token_id in self._piece(piece)]

    def _piece(self, piece: str) -> Iterator[int]:
        if piece in BOX_TAGS:
            yield self._tokenizer.special_tokens[piece]
        else:
            yield from self._tokenizer.encode_plain(piece)


def _plain(message: ChatMessage) -> str:
    return "".join(part.text for part in message.parts if isinstance(part, TextPart))
