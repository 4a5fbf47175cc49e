"""Builds the prompts of a decision request: the input once, and each question as what follows it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import dataclasses
from dataclasses import dataclass, field
from typing import Final

from inference_service.decisions import DecisionRequest, Question, QuestionKind
from inference_service.domain import ChatMessage, ChatRequest, Part, Role, TextPart
from inference_service.errors import InvalidArgumentError
from inference_service.media.images import ProcessedImage
from inference_service.text.decisions.labels import Labels
from inference_service.text.decisions.wording import PROMPT_FORMATS
from inference_service.text.prompt import Prompt, PromptBuilder
from inference_service.text.tokenizer import Tokenizer


_MARK: Final = "Decision 0123456789"
"""A text in place of a question, to find where questions stand in the prompt; it begins like one, with a letter."""
MAX_LABEL_TOKENS: Final = 64
"""Each token of a possible answer may take a step of the engine."""
_BETWEEN: Final = {1: "\n\n", 2: "\n"}
"""By format, what stands between a text at the end of the input and a question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionPrompt:
    """One question in the prompt, with its options in one order.

    Attributes:
        token_ids: What follows the input, up to the answer.
        index: Index of the question.
        labels: The sequences of token ids that answer it, each with the indices of its options.
        whole: The complete prompt, for a question that has images of its own or that the chat format writes otherwise
            than its text alone; then `token_ids` is the part behind the input. None = the input, then `token_ids`.
        pixels: The pixels of the images of `whole`.
    """

    token_ids: tuple[int, ...]
    index: int = 0
    labels: dict[tuple[int, ...], list[int]] = field(default_factory=dict)
    whole: Prompt | None = None
    pixels: tuple[bytes | memoryview, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionPrompts:
    """The prompts of a request.

    Attributes:
        evidence: The input, as all prompts begin.
        pixels: The pixels of its images.
        questions: In their order, each in all orders of its options.
        prompt_format: How they were written.
    """

    evidence: Prompt
    pixels: tuple[bytes | memoryview, ...]
    questions: tuple[QuestionPrompt, ...]
    prompt_format: int

    def max_tokens(self, at_once: int) -> int:
        """Maximum tokens of the input and of so many questions."""
        longest = max(len(question.token_ids) for question in self.questions)
        return len(self.evidence.token_ids) + at_once * longest


class DecisionPromptBuilder:
    """Builds the prompts of the decisions of one model.

    Args:
        builder: Builds its other prompts.
        tokenizer: Its tokenizer.
        labels: Its labels.
        prompt_format: How questions are written unless a request says otherwise.
    """

    def __init__(
        self, builder: PromptBuilder, tokenizer: Tokenizer, labels: Labels, prompt_format: int
    ) -> None:
        self._builder = builder
        self._tokenizer = tokenizer
        self._labels = labels
        self._prompt_format = prompt_format

    def build(self, request: DecisionRequest, images: Sequence[ProcessedImage]) -> DecisionPrompts:
        """Builds all prompts. Takes milliseconds or more, so it must not run on the event loop.

        Args:
            request: The request.
            images: The images of `request.with_all_images`, decoded.

        Raises:
            InvalidArgumentError: An option has more than `MAX_LABEL_TOKENS` tokens and would itself be the answer.
            ServiceError: As `PromptBuilder.build`.
        """
        number = request.prompt_format or self._prompt_format
        num_shown = len(images) - sum(len(question.images) for question in request.questions)
        shown, rest = images[:num_shown], images[num_shown:]
        marked = self._builder.build(
            _asked(request.evidence, (TextPart(text=_MARK),), _BETWEEN[number]), shown
        )
        begin, tail = self._split(marked.token_ids)
        evidence = Prompt(token_ids=marked.token_ids[:begin], images=marked.images if begin else ())
        questions: list[QuestionPrompt] = []
        for index, question in enumerate(request.questions):
            own, rest = rest[: len(question.images)], rest[len(question.images) :]
            for shift in self._shifts(question, number, request.rotations):
                written, labels = self._written(question, number, shift)
                if own or not begin or self._has_special_token(written):
                    parts: tuple[Part, ...] = (*question.images, TextPart(text=written))
                    asked = _asked(request.evidence, parts, _BETWEEN[number])
                    whole = self._builder.build(asked, [*shown, *own])
                    prompt = self._whole(whole, evidence, [*shown, *own])
                else:
                    text = self._tokenizer.encode_plain(written)
                    prompt = QuestionPrompt(token_ids=(*text, *tail))
                questions.append(dataclasses.replace(prompt, index=index, labels=labels))
        return DecisionPrompts(
            evidence=evidence,
            pixels=tuple(image.pixels for image in shown),
            questions=tuple(questions),
            prompt_format=number,
        )

    def _shifts(self, question: Question, number: int, rotations: int) -> list[int]:
        """The orders in which a question is asked, each by the index of the option that is the first."""
        if rotations == 1 or question.kind is not QuestionKind.CHOICE:
            return [0]
        if not PROMPT_FORMATS[number](question, self._labels.codes).lists_options:
            return [0]
        options = len(question.options)
        orders = min(rotations, options)
        return [order * options // orders for order in range(orders)]

    def _written(
        self, question: Question, number: int, shift: int
    ) -> tuple[str, dict[tuple[int, ...], list[int]]]:
        """A question in one order, and the sequences of its labels with the indices of its options as they came."""
        written = PROMPT_FORMATS[number](question.rotated(shift), self._labels.codes)
        count = len(written.labels)
        labels = {
            ids: [(index + shift) % count for index in indices]
            for ids, indices in self._labels.sequences(written.labels).items()
        }
        _check_labels(labels, question)
        return written.text, labels

    def _has_special_token(self, text: str) -> bool:
        """Whether a text has the text of a special token, which some chat formats treat in their own way."""
        return any(token in text for token in self._tokenizer.special_tokens)

    def _split(self, token_ids: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        """Where a question begins in a prompt with the mark, and what follows it up to the answer.

        A text after a line break or after a special token has tokens of its own in every vocabulary here, so that any
        question may stand in place of the mark. If the mark is not found, the beginning is 0.
        """
        mark = tuple(self._tokenizer.encode_plain(_MARK))
        for begin in range(len(token_ids) - len(mark), 0, -1):
            if token_ids[begin : begin + len(mark)] == mark:
                return begin, (*token_ids[begin + len(mark) :], *self._labels.opening)
        return 0, ()

    def _whole(
        self, whole: Prompt, evidence: Prompt, images: Sequence[ProcessedImage]
    ) -> QuestionPrompt:
        token_ids = (*whole.token_ids, *self._labels.opening)
        return QuestionPrompt(
            token_ids=token_ids[len(evidence.token_ids) :],
            whole=dataclasses.replace(whole, token_ids=token_ids),
            pixels=tuple(image.pixels for image in images),
        )


def _check_labels(labels: Iterable[tuple[int, ...]], question: Question) -> None:
    longest = max(map(len, labels))
    if longest > MAX_LABEL_TOKENS:
        raise InvalidArgumentError(
            f"An option has {longest} tokens, but at most {MAX_LABEL_TOKENS} are allowed where options are answered in"
            " their own words; use prompt_format 1, or shorter options.",
            field=question.field,
        )


def _asked(evidence: ChatRequest, question: tuple[Part, ...], between: str) -> ChatRequest:
    """The input with a question at its end, in the user's turn."""
    *before, last = evidence.messages
    if last.role is not Role.USER:
        before, last = [*before, last], ChatMessage(role=Role.USER, parts=())
    parts = tuple(part for part in last.parts if not isinstance(part, TextPart) or part.text)
    if parts and isinstance(parts[-1], TextPart):
        parts = (*parts, TextPart(text=between))
    turn = dataclasses.replace(last, parts=(*parts, *question))
    return dataclasses.replace(evidence, messages=(*before, turn), enable_thinking=False)
