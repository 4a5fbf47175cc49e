"""The tokens of labels: what a model writes first in its answer, after the generation prompt of its chat format."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
from itertools import pairwise
import sys
from typing import Final

from inference_service.domain import ChatMessage, ChatRequest, Role, TextPart
from inference_service.text.decisions.wording import letter_codes
from inference_service.text.prompt import PromptBuilder
from inference_service.text.tokenizer import Tokenizer


_PROBE: Final = "A"
_OPEN: Final = ChatRequest(
    request_id="labels",
    model="",
    messages=(ChatMessage(role=Role.USER, parts=(TextPart(text="?"),)),),
    enable_thinking=False,
)


class Labels:
    """The labels of one model, found from its tokenizer and its chat format.

    Attributes:
        opening: Ids that the chat format writes between its generation prompt and the text of an answer.

    Args:
        builder: Builds the model's prompts.
        tokenizer: The model's tokenizer.
        end_ids: The model's end tokens.

    Raises:
        ServiceError: The model has no chat format, cannot be kept from thinking, or does not take a bare question.
    """

    def __init__(
        self, builder: PromptBuilder, tokenizer: Tokenizer, end_ids: Sequence[int]
    ) -> None:
        self._tokenizer = tokenizer
        self._end_ids = tuple(end_ids)
        prompt = builder.build(_OPEN, ()).token_ids
        self.opening = _opening(builder, tokenizer, prompt)
        last = [*prompt, *self.opening]
        begin = max(
            (i + 1 for i, token in enumerate(last) if token in tokenizer.special_ids), default=0
        )
        # Text after the last special token: a label might merge with its end.
        self._before_ids = tuple(last[begin:])
        self._before = tokenizer.decode(self._before_ids)
        self._ids: dict[str, tuple[int, ...]] = {}
        self._pairs: tuple[str, ...] | None = None

    def token_ids(self, label: str) -> tuple[int, ...]:
        """The ids of a label at the beginning of an answer; at least one."""
        found = self._ids.get(label)
        return self._encode(label) if found is None else found

    def codes(self, count: int) -> list[str]:
        """Letters as labels of so many options; beyond 26 pairs of them, first those that are one token."""
        if count <= 26:
            return letter_codes(count)
        if self._pairs is None:
            pairs = letter_codes(27)
            self._ids |= {pair: self._encode(pair) for pair in pairs}
            self._pairs = tuple(sorted(pairs, key=lambda pair: len(self._ids[pair]) > 1))
        return list(self._pairs[:count])

    def sequences(
        self, labels: Sequence[Sequence[str]], max_tokens: int = sys.maxsize
    ) -> dict[tuple[int, ...], list[int]]:
        """The sequences of token ids that answer a question, each with the indices of its options.

        None begins with another one: of those that would, the shorter ones are continued by an end token or a full
        stop, as the turn ends there.

        Args:
            labels: The labels of each option.
            max_tokens: Once a label has more, those behind it are left out, as the question is refused.
        """
        owners: dict[tuple[int, ...], list[int]] = {}
        for index, spelling in ((i, one) for i, several in enumerate(labels) for one in several):
            ids = self.token_ids(spelling)
            of_sequence = owners.setdefault(ids, [])
            if index not in of_sequence:
                of_sequence.append(index)
            if len(ids) > max_tokens:
                break
        # In this order a sequence is followed by those that begin with it.
        begun = {ids for ids, after in pairwise(sorted(owners)) if after[: len(ids)] == ids}
        ends = [*((end,) for end in self._end_ids), tuple(self._tokenizer.encode_plain("."))]
        complete: dict[tuple[int, ...], list[int]] = {}
        for ids, indices in owners.items():
            for end in ends if ids in begun else ((),):
                if not end or (*ids, *end) not in owners:
                    complete.setdefault((*ids, *end), indices)
        return complete

    def _encode(self, label: str) -> tuple[int, ...]:
        whole = self._tokenizer.encode_plain(self._before + label)
        length = len(self._before_ids)
        if tuple(whole[:length]) == self._before_ids and len(whole) > length:
            return tuple(whole[length:])
        return tuple(self._tokenizer.encode_plain(label))


def _opening(
    builder: PromptBuilder, tokenizer: Tokenizer, prompt: tuple[int, ...]
) -> tuple[int, ...]:
    """What an answer in a conversation has before its text and behind the generation prompt."""
    answer = ChatMessage(role=Role.ASSISTANT, parts=(TextPart(text=_PROBE),))
    answered = builder.build(
        dataclasses.replace(
            _OPEN,
            messages=(*_OPEN.messages, answer),
            add_generation_prompt=False,
            continue_final_message=True,
        ),
        (),
    ).token_ids
    text = tuple(tokenizer.encode_plain(_PROBE))
    behind = answered[len(prompt) :]
    if answered[: len(prompt)] != prompt or behind[-len(text) :] != text:
        return ()  # such as an empty frame for thoughts, which answers in a conversation do not have
    return behind[: -len(text)]
