"""Validated requests of DecisionService, and their answers.

`field` is the path of a value in the proto (`spec.questions[0]`), so that errors can name it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from inference_service.domain import (
    ChatMessage,
    ChatRequest,
    ImageInfo,
    ImagePart,
    Part,
    Role,
    TextPart,
    TokenUsage,
)


class QuestionKind(Enum):
    """What a question asks for."""

    PREDICATE = "predicate"
    CHOICE = "choice"
    SCORE = "score"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """An option of a choice, or a level of a score: a text or a truth value, and what it means."""

    value: str | bool
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question about the input.

    Attributes:
        name: The caller's name for it; None = it has none.
        kind: What it asks for.
        instructions: Texts and images; the text is not blank.
        options: The options of a choice or the levels of a score; none for a predicate.
        field: Its path in the proto.
    """

    name: str | None
    kind: QuestionKind
    instructions: tuple[Part, ...]
    options: tuple[Option, ...] = ()
    field: str = ""

    @property
    def text(self) -> str:
        """The texts of its instructions, one below the other."""
        texts = (part.text.strip() for part in self.instructions if isinstance(part, TextPart))
        return "\n".join(filter(None, texts))

    def rotated(self, shift: int) -> Question:
        """The question with its options in another order: the one at `shift` is the first."""
        return replace(self, options=self.options[shift:] + self.options[:shift])

    @property
    def images(self) -> tuple[ImagePart, ...]:
        """The images of its instructions."""
        return tuple(part for part in self.instructions if isinstance(part, ImagePart))


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionRequest:
    """A validated request of DecisionService.

    Attributes:
        evidence: The input as a conversation, with the ids and options of the request.
        questions: At least one question.
        diagnostics: Tell the mass of the labels with each answer.
        prompt_format: How questions are written; None = as the model was taught.
        rotations: Maximum orders of the options of a choice to average over.
    """

    evidence: ChatRequest
    questions: tuple[Question, ...]
    diagnostics: bool = False
    prompt_format: int | None = None
    rotations: int = 1

    @property
    def num_characters(self) -> int:
        """Characters of the input and of all questions."""
        parts = [part for message in self.evidence.messages for part in message.parts]
        parts += [part for question in self.questions for part in question.instructions]
        texts = [len(part.text) for part in parts if isinstance(part, TextPart)]
        options = [option for question in self.questions for option in question.options]
        return sum(texts) + sum(len(str(o.value)) + len(o.description) for o in options)

    @property
    def with_all_images(self) -> ChatRequest:
        """The input with the images of all questions behind it: what has to be fetched and decoded."""
        images = tuple(image for question in self.questions for image in question.images)
        if not images:
            return self.evidence
        shown = ChatMessage(role=Role.USER, parts=images)
        return replace(self.evidence, messages=(*self.evidence.messages, shown))


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The answer to one question.

    Attributes:
        kind: What it asked for.
        name: Its name.
        probabilities: Of each option or level in order, or of yes and no; their sum is 1.
        label_mass: Probability of all labels together, 0 to 1.
        top_is_label: The most likely next token begins a label.
        refused: The label mass is too low for an answer.
    """

    kind: QuestionKind
    name: str | None
    probabilities: tuple[float, ...]
    label_mass: float
    top_is_label: bool
    refused: bool

    @property
    def best(self) -> int:
        """Index of the most likely option; of equally likely ones the first."""
        return max(range(len(self.probabilities)), key=lambda index: self.probabilities[index])

    @property
    def score(self) -> float:
        """The expected level: the sum of index times probability."""
        return _mean_distance(self.probabilities, 0)

    @property
    def confidence(self) -> float:
        """How far the answer is from a guess, 0 to 1 (SGLang's measures).

        For a choice of n options (n * p - 1) / (n - 1), p being the highest probability; for a score one minus the mean
        distance from the most likely level, relative to that of a uniform guess from the middle.
        """
        n = len(self.probabilities)
        if n == 1:
            return 1.0
        if self.kind is not QuestionKind.SCORE:
            return max(0.0, (n * self.probabilities[self.best] - 1) / (n - 1))
        guess = _mean_distance((1 / n,) * n, (n - 1) / 2)
        return max(0.0, 1 - _mean_distance(self.probabilities, self.best) / guess)


def _mean_distance(probabilities: Sequence[float], level: float) -> float:
    return sum(abs(index - level) * p for index, p in enumerate(probabilities))


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """The answers to all questions of a request.

    Attributes:
        created: Unix time in seconds.
        answers: In the order of the questions.
        usage: Tokens of the input, once, and of each question.
        images: In order of appearance, those of the input first.
        prompt_format: How the questions were written.
    """

    created: int
    answers: tuple[Decision, ...]
    usage: TokenUsage
    images: tuple[ImageInfo, ...]
    prompt_format: int
