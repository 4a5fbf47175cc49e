"""The JSON schema of `/v1/decisions`, as of openai 3.57."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import Field

from rest_adapter.errors import unsupported
from rest_adapter.json_model import Int32, Int64, JsonModel, asks_for_nothing, unknown_fields
from rest_adapter.openai.decisions.evidence import Evidence, read_input
from rest_adapter.openai.decisions.questions import Question, read_questions
from rest_adapter.openai.decisions.shapes import DecisionInput, DecisionQuestions
from rest_adapter.openai.fields import ProcessorOptions, check_labels
from rest_adapter.openapi.operation import Shape
from rest_adapter.validation import validate


_CONTENT: Final = {
    **dict.fromkeys(("messages", "prompt", "state", "images"), "send it in 'input'"),
    **dict.fromkeys(("instructions", "system"), "send it in 'input', with the role system"),
}
"""Fields that hold content in other APIs, where it would be lost here, with what to do instead."""
_NEUTRAL: Final[dict[str, tuple[object, ...]]] = {
    **dict.fromkeys(
        (
            *("allowed_token_ids", "background", "bad_words"),
            *("cache_salt", "conversation", "frequency_penalty", "include"),
            *("logit_bias", "logprobs", "max_completion_tokens", "max_output_tokens", "max_tokens"),
            *("presence_penalty", "previous_response_id", "reasoning", "response_format", "seed"),
            *(
                "stop",
                "store",
                "stream",
                "stream_options",
                "text",
                "tools",
                "top_k",
                "top_logprobs",
            ),
        ),
        (),
    ),
    **dict.fromkeys(("n", "temperature", "top_p", "repetition_penalty"), (1,)),
    "tool_choice": ("none", "auto"),
    "truncation": ("disabled",),
}
"""Fields of other APIs that have no meaning where nothing is generated, with the values that have no effect."""
_IGNORED: Final = ("metadata", "prompt_cache_options", "service_tier", "user")
"""Known fields that have no effect on a decision of this service."""


class DecisionsRequest(JsonModel):
    """A request of `/v1/decisions`; `input` and `questions` are read by modules of their own."""

    model: str
    input: Annotated[Any, Shape(DecisionInput)]
    questions: Annotated[Any, Shape(DecisionQuestions)]
    prompt_cache_key: str | None = None
    safety_identifier: Annotated[str, Field(max_length=128)] | None = None
    diagnostics: bool | None = None
    prompt_format: Int32 | None = None
    rotations: Int32 | None = None
    min_pixels: Int64 | None = None
    max_pixels: Int64 | None = None
    mm_processor_kwargs: ProcessorOptions | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Decisions:
    """A checked request, with its input and its questions."""

    request: DecisionsRequest
    evidence: tuple[Evidence, ...]
    questions: tuple[Question, ...]


def parse_decisions(document: object) -> tuple[Decisions, list[str]]:
    """Checks a parsed JSON document.

    Returns:
        The request, and the paths of unknown fields.

    Raises:
        ApiError: A field is missing, has a wrong type, or is known but not supported.
    """
    check_labels(document)
    request = validate(DecisionsRequest, document)
    for name, value in (request.__pydantic_extra__ or {}).items():
        if name in _CONTENT and not asks_for_nothing(value):
            raise unsupported(name, value, _CONTENT[name])
    unknown = [
        *unknown_fields(request, unsupported_unless=_NEUTRAL, ignored=(*_IGNORED, *_CONTENT))
    ]
    evidence, in_input = read_input(request.input)
    questions, in_questions = read_questions(request.questions)
    unknown += [*in_input, *in_questions]
    return Decisions(request, tuple(evidence), tuple(questions)), unknown
