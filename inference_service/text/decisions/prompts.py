"""Builds the prompts of a decision request: the input once, and each question as what follows it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import dataclasses
from dataclasses import dataclass, field
from functools import lru_cache
import itertools
import sys
from typing import Final

from inference_service.decisions import DecisionRequest, Question, QuestionKind
from inference_service.domain import ChatMessage, ChatRequest, Part, Role, TextPart
from inference_service.errors import ContextLengthError, InvalidArgumentError
from inference_service.media.images import ProcessedImage
from inference_service.text.decisions.labels import Labels
from inference_service.text.decisions.wording import PROMPT_FORMATS, WrittenQuestion
from inference_service.text.prompt import Prompt, PromptBuilder
from inference_service.text.tokenizer import Tokenizer


_MARK: Final = "Decision 0123456789"
"""A text in place of a question, to find where questions stand in the prompt; it begins like one, with a letter."""
MAX_LABEL_TOKENS: Final = 64
"""Each token of a possible answer may take a step of the engine."""
MAX_QUESTION_TOKENS: Final = 2**22
"""Of all questions of a request, in all orders: they take 40 bytes each until the last one is answered."""
_LABELS_SHARED: Final = 64
_STEP_CHARACTERS: Final = 2**15
_SHORT_CHARACTERS: Final = 2**12
"""A text with fewer is tokenised, so that its refusal tells how long it is."""
_BETWEEN: Final = {1: "\n\n", 2: "\n"}
"""By format, what stands between a text at the end of the input and a question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionPrompt:
    """One question in the prompt, with its options in one order.

    Attributes:
        token_ids: What follows the input, up to the answer.
        index: Index of the question.
        labels: The sequences of token ids that answer it, each with the indices of its options.
        longest_label: Tokens of the longest of them.
        whole: The complete prompt without its tokens, see `DecisionPrompts.prompt_of`, for a question that has images
            of its own or that the chat format writes otherwise than its text alone; then `token_ids` is the part behind
            the input. None = the input, then `token_ids`.
        begin: The tokens of `whole` in place of those of the input; None = the same, which many questions share.
        pixels: The pixels of the images of `whole`.
    """

    token_ids: tuple[int, ...]
    index: int = 0
    labels: dict[tuple[int, ...], list[int]] = field(default_factory=dict)
    longest_label: int = 0
    whole: Prompt | None = None
    begin: tuple[int, ...] | None = None
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

    def prompt_of(self, question: QuestionPrompt) -> Prompt:
        """The prompt that the engine computes for a question, or for it and others: the input, or its own."""
        if question.whole is None:
            return self.evidence
        begin = self.evidence.token_ids if question.begin is None else question.begin
        return dataclasses.replace(question.whole, token_ids=(*begin, *question.token_ids))

    def max_tokens(self, at_once: int) -> int:
        """Maximum tokens of the input and of so many questions."""
        longest = max(len(question.token_ids) for question in self.questions)
        return len(self.evidence.token_ids) + at_once * longest


@dataclass(frozen=True, slots=True)
class _Frame:
    """What the questions of a request have in common.

    Attributes:
        number: Number of the format in which they are written.
        asked: The input as it came.
        shown: Its images.
        evidence: Its prompt; empty if questions cannot be put behind it.
        tail: The tokens behind a question.
    """

    number: int
    asked: ChatRequest
    shown: Sequence[ProcessedImage]
    evidence: Prompt
    tail: tuple[int, ...]


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
        """Builds all prompts at once; see `steps`."""
        return next(filter(None, self.steps(request, images)))

    def steps(
        self,
        request: DecisionRequest,
        images: Sequence[ProcessedImage],
        max_tokens: int = sys.maxsize,
        min_tokens: Callable[[str], int] = lambda _: 0,
    ) -> Iterator[DecisionPrompts | None]:
        """Builds all prompts, in steps of some `_STEP_CHARACTERS` or one question, with None after each but the last.

        A step takes milliseconds or more, so it must not run on the event loop.

        Args:
            request: The request.
            images: The images of `request.with_all_images`, decoded.
            max_tokens: The context window: no question is tokenised that has more.
            min_tokens: A number of tokens that a text has at least.

        Raises:
            InvalidArgumentError: An option has more than `MAX_LABEL_TOKENS` tokens and would itself be the answer.
                The questions have more than `MAX_QUESTION_TOKENS`.
            ContextLengthError: A question cannot fit the context window.
            ServiceError: As `PromptBuilder.build`.
        """
        frame = self._frame(request, images)
        rest = images[len(frame.shown) :]
        questions: list[QuestionPrompt] = []
        sequences = lru_cache(_LABELS_SHARED)(self._sequences)  # most have the same letters
        of_evidence = dataclasses.replace(request, questions=()).num_characters
        done, kept = of_evidence, 0
        for index, question in enumerate(request.questions):
            own, rest = rest[: len(question.images)], rest[len(question.images) :]
            for shift in self._shifts(question, frame.number, request.rotations):
                if done >= _STEP_CHARACTERS:
                    done = 0
                    yield None
                written = PROMPT_FORMATS[frame.number](question.rotated(shift), self._labels.codes)
                _refuse_too_long(written, question, max_tokens, min_tokens)
                labels = sequences(written.labels, shift)
                longest = max(map(len, labels))
                _check_label(longest, question)
                prompt = self._prompt(frame, question, own, written.text)
                prompt = dataclasses.replace(
                    prompt, index=index, labels=labels, longest_label=longest
                )
                questions.append(prompt)
                done += len(written.text) + sum(map(len, itertools.chain(*written.labels)))
                if prompt.whole is not None:
                    done += of_evidence + len(frame.evidence.token_ids) + len(prompt.token_ids)
                kept += len(prompt.token_ids) + len(prompt.begin or ())
                _refuse_too_many(kept)
        yield DecisionPrompts(
            evidence=frame.evidence,
            pixels=tuple(image.pixels for image in frame.shown),
            questions=tuple(questions),
            prompt_format=frame.number,
        )

    def _frame(self, request: DecisionRequest, images: Sequence[ProcessedImage]) -> _Frame:
        number = request.prompt_format or self._prompt_format
        num_shown = len(images) - sum(len(question.images) for question in request.questions)
        shown = images[:num_shown]
        asked = _asked(request.evidence, (TextPart(text=_MARK),), _BETWEEN[number])
        marked = self._builder.build(asked, shown)
        begin, tail = self._split(marked.token_ids)
        evidence = Prompt(token_ids=marked.token_ids[:begin], images=marked.images if begin else ())
        return _Frame(number, request.evidence, shown, evidence, tail)

    def _prompt(
        self, frame: _Frame, question: Question, own: Sequence[ProcessedImage], text: str
    ) -> QuestionPrompt:
        """The prompt of a question with images of its own, written so."""
        if own or not frame.evidence.token_ids or self._has_special_token(text):
            parts: tuple[Part, ...] = (*question.images, TextPart(text=text))
            asked = _asked(frame.asked, parts, _BETWEEN[frame.number])
            return self._whole(asked, frame.evidence, [*frame.shown, *own])
        return QuestionPrompt(token_ids=(*self._tokenizer.encode_plain(text), *frame.tail))

    def _shifts(self, question: Question, number: int, rotations: int) -> list[int]:
        """The orders in which a question is asked, each by the index of the option that is the first."""
        if rotations == 1 or question.kind is not QuestionKind.CHOICE:
            return [0]
        if not PROMPT_FORMATS[number](question, self._labels.codes).lists_options:
            return [0]
        options = len(question.options)
        orders = min(rotations, options)
        return [order * options // orders for order in range(orders)]

    def _sequences(
        self, labels: tuple[tuple[str, ...], ...], shift: int
    ) -> dict[tuple[int, ...], list[int]]:
        """The sequences of a question's labels in one order, with the indices of its options as they came."""
        count = len(labels)
        return {
            ids: [(index + shift) % count for index in indices]
            for ids, indices in self._labels.sequences(labels, MAX_LABEL_TOKENS).items()
        }

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
        self, asked: ChatRequest, evidence: Prompt, images: Sequence[ProcessedImage]
    ) -> QuestionPrompt:
        whole = self._builder.build(asked, images)
        token_ids = (*whole.token_ids, *self._labels.opening)
        length = len(evidence.token_ids)
        return QuestionPrompt(
            token_ids=token_ids[length:],
            whole=dataclasses.replace(whole, token_ids=()),
            begin=None if token_ids[:length] == evidence.token_ids else token_ids[:length],
            pixels=tuple(image.pixels for image in images),
        )


def _check_label(tokens: int, question: Question) -> None:
    """Refuses an option that would itself be the answer and has too many tokens."""
    if tokens > MAX_LABEL_TOKENS:
        raise InvalidArgumentError(
            f"An option has {tokens} tokens, but at most {MAX_LABEL_TOKENS} are allowed where options are answered in"
            " their own words; use prompt_format 1, or shorter options.",
            field=question.field,
        )


def _refuse_too_many(tokens: int) -> None:
    """Refuses questions that have too many tokens together."""
    if tokens > MAX_QUESTION_TOKENS:
        raise InvalidArgumentError(
            f"The questions, in all orders of their options (rotations), have more than {MAX_QUESTION_TOKENS} tokens,"
            " which is the maximum of a request. Please ask fewer of them at once.",
            field="spec.questions",
        )


def _refuse_too_long(
    written: WrittenQuestion, question: Question, max_tokens: int, min_tokens: Callable[[str], int]
) -> None:
    """Refuses a question or a label that is so long that to tokenise it would be in vain."""
    tokens = min_tokens(written.text) if len(written.text) > _SHORT_CHARACTERS else 0
    if tokens >= max_tokens:
        raise ContextLengthError(
            f"This model's maximum context length is {max_tokens} tokens (--max-model-len). However, this question has"
            f" at least {tokens} tokens. Please reduce its length.",
            field=question.field,
            metadata={"min_prompt_tokens": str(tokens), "max_context_tokens": str(max_tokens)},
        )
    for label in itertools.chain(*written.labels):
        if len(label) > _SHORT_CHARACTERS:
            _check_label(min_tokens(label), question)


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
