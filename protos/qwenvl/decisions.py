"""Questions and answers of the clients' `decide`.

answers = client.decide("Parcel 7", [predicate("The wrapping is torn."), choice("Which colour?", ["red", "blue"])])
answers[0].probability, answers[1].choice
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
import difflib
from typing import Any, Final, TypedDict, overload

from qwenvl.fields import built
from qwenvl.images import Images, Oversized, oversized_value
from qwenvl.inference.v1 import decision_service_pb2 as decision_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from qwenvl.messages import Content, Question, messages_of, part_of


Instructions = str | Sequence[Content]
"""What is asked: a text, or texts and images in their order."""
Options = Sequence[str | bool] | Mapping[Any, str]
"""Texts or truth values, or such values with what they mean."""


class DecisionOptions(TypedDict, total=False):
    """The options of `decide`; one that is not given, or is None, has the service's default.

    Attributes:
        model: A served name; the service's canonical model by default.
        system: A system message to put before the input.
        diagnostics: Return `label_mass` and `top_is_label` with every answer.
        prompt_format: How questions are written; see `DecisionSpec.prompt_format`.
        rotations: Orders of the options of each choice to average over.
        min_pixels: Minimum number of pixels of each image that does not set its own.
        max_pixels: Maximum number of pixels of each image that does not set its own.
        oversized: What happens to an image with more pixels than its maximum: `downsize`, the default, or `reject`.
        request_id: Identifies the request for Abort and in the logs of the service.
        cache_salt: Only requests with the same salt share cached prefixes.
    """

    model: str | None
    system: str | None
    diagnostics: bool | None
    prompt_format: int | None
    rotations: int | None
    min_pixels: int | None
    max_pixels: int | None
    oversized: Oversized | None
    request_id: str | None
    cache_salt: str | None


_KNOWN: Final = frozenset(DecisionOptions.__annotations__)
_OF_SPEC: Final = (
    *("model", "diagnostics", "prompt_format", "rotations", "request_id", "cache_salt"),
)
_OF_MEDIA: Final = ("min_pixels", "max_pixels")


def predicate(
    instructions: Instructions, *, name: str | None = None
) -> decision_pb.DecisionQuestion:
    """A question whether a statement is true, or whether the answer to a question is yes.

    Args:
        instructions: The statement or the question.
        name: A name for it, returned with the answer.

    Raises:
        TypeError: A part of the instructions is neither text nor an image.
        OSError: As `qwenvl.image`.
        ValueError: As `qwenvl.image`.
    """
    question = _question(instructions, name)
    question.predicate.SetInParent()
    return question


def choice(
    instructions: Instructions, options: Options, *, name: str | None = None
) -> decision_pb.DecisionQuestion:
    """A question which of several options is right; other arguments and errors as `predicate`.

    Args:
        instructions: The question.
        options: The options: texts or truth values, as a list or with their meanings: `{"blue": "any blue"}`.
        name: A name for it, returned with the answer.
    """
    question = _question(instructions, name)
    question.choice.options.extend(_options(options))
    question.choice.SetInParent()
    return question


def score(
    instructions: Instructions,
    levels: Sequence[str] | Mapping[str, str],
    *,
    name: str | None = None,
) -> decision_pb.DecisionQuestion:
    """A question which of several levels fits; other arguments and errors as `predicate`.

    Args:
        instructions: The question.
        levels: The levels from the lowest, as a list or with their meanings.
        name: A name for it, returned with the answer.
    """
    question = _question(instructions, name)
    question.score.levels.extend(_options(levels))
    question.score.SetInParent()
    return question


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to one question.

    Attributes:
        question: The question.
        answer: The message of the API.
    """

    question: decision_pb.DecisionQuestion
    answer: decision_pb.DecisionAnswer

    @property
    def name(self) -> str | None:
        """The question's name, if it has one."""
        return self.answer.name if self.answer.HasField("name") else None

    @property
    def refused(self) -> bool:
        """Whether the model does not answer in the asked form; then every figure below is None or empty."""
        return bool(self.answer.HasField("refused"))

    @property
    def probability(self) -> float | None:
        """Probability that the statement is true; None unless the question is a predicate."""
        answer = self.answer
        return answer.predicate.probability if answer.HasField("predicate") else None

    @property
    def choice(self) -> str | bool | None:
        """The most likely option, or the most likely level."""
        if self.answer.HasField("choice"):
            return _value(self.question.choice.options[self.answer.choice.option_index])
        probabilities = self.answer.score.probabilities
        if not probabilities:
            return None
        best = max(range(len(probabilities)), key=lambda index: probabilities[index])
        return self.question.score.levels[best].text

    @property
    def score(self) -> float | None:
        """The expected index of the level; None unless the question is a score."""
        return self.answer.score.score if self.answer.HasField("score") else None

    @property
    def confidence(self) -> float | None:
        """How far a choice or a score is from a guess, 0 to 1; see the proto. None for a predicate."""
        if self.answer.HasField("choice"):
            return self.answer.choice.confidence
        return self.answer.score.confidence if self.answer.HasField("score") else None

    @property
    def probabilities(self) -> list[tuple[str | bool, float]]:
        """Each option or level with its probability, in order; empty for a predicate."""
        if self.answer.HasField("choice"):
            options, found = self.question.choice.options, self.answer.choice.probabilities
        else:
            options, found = self.question.score.levels, self.answer.score.probabilities
        return [(_value(option), p) for option, p in zip(options, found, strict=False)]


@dataclass(frozen=True, slots=True)
class Decisions(Sequence[Decision]):
    """The answers to all questions, in their order.

    Attributes:
        answers: The answers.
        response: The message of the API, with everything that was asked for.
    """

    answers: tuple[Decision, ...]
    response: decision_pb.CreateDecisionsResponse

    @property
    def usage(self) -> usage_pb.Usage:
        """Tokens of the input, once, and of each question."""
        return self.response.usage

    def __len__(self) -> int:
        return len(self.answers)

    @overload
    def __getitem__(self, index: int) -> Decision: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Decision, ...]: ...

    def __getitem__(self, index: int | slice) -> Decision | tuple[Decision, ...]:
        return self.answers[index]

    def __iter__(self) -> Iterator[Decision]:
        return iter(self.answers)


def decisions_of(
    spec: decision_pb.DecisionSpec, response: decision_pb.CreateDecisionsResponse
) -> Decisions:
    """The answers of a response to a request."""
    pairs = zip(spec.questions, response.answers, strict=True)
    return Decisions(tuple(Decision(*pair) for pair in pairs), response)


def decision_spec(
    evidence: Question,
    questions: Sequence[decision_pb.DecisionQuestion],
    images: Images | None,
    options: DecisionOptions,
) -> decision_pb.DecisionSpec:
    """The request for questions about an input.

    Args:
        evidence: The input: a text, or a conversation.
        questions: The questions.
        images: Images to put before the text, or before that of the conversation's last user message.
        options: The options.

    Raises:
        TypeError: The input, a question, an image or an option has another type, or an option is unknown.
        ValueError: An image or the conversation is invalid, or a number does not fit its field.
        OSError: An image cannot be read.
    """
    for name in options:
        if name not in _KNOWN:
            close = difflib.get_close_matches(name, _KNOWN, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"unknown option {name!r}{hint}")
    if isinstance(questions, (str, bytes, Mapping)) or not isinstance(questions, Iterable):
        _check_question(questions)
    questions = list(questions)
    for question in questions:
        _check_question(question)
    given: Mapping[str, Any] = options
    spec = built(decision_pb.DecisionSpec, {name: given.get(name) for name in _OF_SPEC})
    media = {name: given.get(name) for name in _OF_MEDIA}
    media["oversized"] = oversized_value(options.get("oversized"))
    spec.media.CopyFrom(built(generation_pb.MediaOptions, media))
    spec.messages.extend(messages_of(evidence, images, options.get("system")))
    spec.questions.extend(questions)
    return spec


def _check_question(question: object) -> None:
    if not isinstance(question, decision_pb.DecisionQuestion):
        kind = type(question).__name__
        raise TypeError(
            f"questions are a list of predicate(...), choice(...) or score(...), not {kind}"
        )


def _question(instructions: Instructions, name: str | None) -> decision_pb.DecisionQuestion:
    contents = (instructions,) if isinstance(instructions, str) else instructions
    if isinstance(contents, (bytes, Mapping)) or not isinstance(contents, Iterable):
        raise TypeError(
            f"instructions are text, or texts and images, not {type(contents).__name__}"
        )
    question = built(decision_pb.DecisionQuestion, {"name": name})
    question.instructions.extend(map(part_of, contents))
    return question


def _options(options: Options) -> Iterator[decision_pb.DecisionOption]:
    if isinstance(options, (str, bytes)) or not isinstance(options, Iterable):
        kind = type(options).__name__
        raise TypeError(f"options are a list of texts or truth values, not {kind}")
    meanings = options if isinstance(options, Mapping) else {}
    for value in options:
        description = meanings[value] if meanings else ""
        if not isinstance(description, str):
            raise TypeError(f"the meaning of an option is a text, not {type(description).__name__}")
        if isinstance(value, bool):
            yield decision_pb.DecisionOption(flag=value, description=description)
        elif isinstance(value, str):
            yield decision_pb.DecisionOption(text=value, description=description)
        else:
            raise TypeError(f"an option is a text or a truth value, not {type(value).__name__}")


def _value(option: decision_pb.DecisionOption) -> str | bool:
    return option.flag if option.WhichOneof("value") == "flag" else option.text
