"""The shapes of decisions, for the OpenAPI document."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from rest_adapter.openai.shapes import ImagePart, InputUsage, TextPart


class JsonPart(TypedDict):
    """A JSON value."""

    type: Literal["input_json"]
    data: dict[str, Any] | list[Any]


EvidenceContent = str | list[str | TextPart | ImagePart | JsonPart]


class EvidenceMessage(TypedDict):
    """A message."""

    type: NotRequired[Literal["message"]]
    role: Literal["user", "system", "developer", "assistant"]
    content: EvidenceContent | None


class EvidenceCall(TypedDict):
    """The call of a tool."""

    type: Literal["function_call", "custom_tool_call"]
    name: str
    call_id: str
    arguments: NotRequired[str]
    input: NotRequired[str]


class EvidenceResult(TypedDict):
    """The result of a call."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: str
    output: EvidenceContent


DecisionInput = str | list[EvidenceMessage | EvidenceCall | EvidenceResult]


class ChoiceOption(TypedDict):
    """One of several choices."""

    value: str | bool
    description: NotRequired[str | None]


class ScoreLevel(TypedDict):
    """One level of a scale."""

    label: str
    description: NotRequired[str | None]


class AskedPredicate(TypedDict):
    """Whether something is so."""

    type: Literal["predicate"]
    instructions: EvidenceContent
    name: NotRequired[str | None]


class AskedChoice(TypedDict):
    """Which of several."""

    type: Literal["choice"]
    instructions: EvidenceContent
    choices: Annotated[list[ChoiceOption], Field(min_length=2, max_length=255)]
    name: NotRequired[str | None]


class AskedScore(TypedDict):
    """How much, on a scale."""

    type: Literal["score"]
    instructions: EvidenceContent
    levels: Annotated[list[ScoreLevel], Field(min_length=2)]
    name: NotRequired[str | None]


DecisionQuestions = Annotated[
    list[AskedPredicate | AskedChoice | AskedScore], Field(min_length=1, max_length=400)
]


class Diagnosed(TypedDict):
    """What every answer may have with `diagnostics`."""

    name: str | None
    label_mass: NotRequired[float]
    top_is_label: NotRequired[bool]


class PredicateAnswer(Diagnosed):
    """How likely something is so."""

    type: Literal["predicate"]
    probability: float


class ChoiceProbability(TypedDict):
    """How likely one of the choices is."""

    value: str | bool
    probability: float


class ChoiceAnswer(Diagnosed):
    """The most likely choice."""

    type: Literal["choice"]
    choice: str | bool
    confidence: float
    probabilities: list[ChoiceProbability]


class LevelProbability(TypedDict):
    """How likely one of the levels is."""

    value: int
    label: str
    probability: float


class ScoreAnswer(Diagnosed):
    """The expected level."""

    type: Literal["score"]
    score: float
    confidence: float
    probabilities: list[LevelProbability]


class RefusedAnswer(Diagnosed):
    """The model's labels have too little weight for an answer."""

    type: Literal["refusal"]


class Decision(TypedDict):
    """The answers in the order of the questions."""

    model: str
    answers: list[PredicateAnswer | ChoiceAnswer | ScoreAnswer | RefusedAnswer]
    usage: InputUsage
    prompt_format: NotRequired[int]
