"""Validates the requests of DecisionService and converts them to the domain's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from inference_service.decisions import DecisionRequest, Option, Question, QuestionKind
from inference_service.domain import ChatRequest, ImagePart, TextPart
from inference_service.errors import InvalidArgumentError
from inference_service.grpc_api.field_checks import optional, optional_integer, quoted
from inference_service.grpc_api.request_messages import chat_messages, image_part
from inference_service.grpc_api.request_options import decision_options
from inference_service.grpc_api.requests import check_images, option_fields
from inference_service.sampling import Range
from inference_service.settings import ServiceSettings
from qwenvl.inference.v1 import decision_service_pb2 as decision_pb
from qwenvl.inference.v1 import message_pb2 as message_pb


MAX_QUESTIONS: Final = 400
MAX_OPTIONS: Final = 255
_MIN_CHOICES: Final = 2
_PROMPT_FORMATS: Final = (1, 2)
_ROTATIONS: Final = Range(1, 8)


def decision_request(
    spec: decision_pb.DecisionSpec, model: str, fallback_id: str, settings: ServiceSettings
) -> DecisionRequest:
    """Validates a request; arguments and errors as `requests.chat_request`."""
    if not spec.messages:
        raise InvalidArgumentError(
            "messages is empty, but at least one message is required.", field="spec.messages"
        )
    if not 1 <= len(spec.questions) <= MAX_QUESTIONS:
        raise InvalidArgumentError(
            f"questions has {len(spec.questions)} entries, but must have 1 to {MAX_QUESTIONS}.",
            field="spec.questions",
        )
    request = DecisionRequest(
        evidence=ChatRequest(
            messages=chat_messages(spec.messages),
            **option_fields(decision_options(spec, model, fallback_id)),
        ),
        questions=tuple(
            _question(question, f"spec.questions[{index}]")
            for index, question in enumerate(spec.questions)
        ),
        diagnostics=spec.diagnostics,
        prompt_format=_prompt_format(spec),
        rotations=optional_integer(spec, "rotations", _ROTATIONS, "spec") or 1,
    )
    check_images(request.with_all_images.media, "spec.messages", settings)
    return request


def _prompt_format(spec: decision_pb.DecisionSpec) -> int | None:
    number: int | None = optional(spec, "prompt_format")
    if number is not None and number not in _PROMPT_FORMATS:
        raise InvalidArgumentError(
            f"prompt_format is {number}, but must be one of {', '.join(map(str, _PROMPT_FORMATS))}.",
            field="spec.prompt_format",
        )
    return number


def _question(question: decision_pb.DecisionQuestion, path: str) -> Question:
    kind = question.WhichOneof("kind")
    if kind is None:
        raise InvalidArgumentError(
            "The question has no kind: set predicate, choice or score.", field=path
        )
    options: tuple[Option, ...] = ()
    if kind == "choice":
        options = _options(question.choice.options, f"{path}.choice.options", _MIN_CHOICES)
        _refuse_duplicates(options, f"{path}.choice.options")
    elif kind == "score":
        options = _options(question.score.levels, f"{path}.score.levels", 1)
    instructions = tuple(
        _instruction(part, f"{path}.instructions[{index}]")
        for index, part in enumerate(question.instructions)
    )
    checked = Question(
        name=optional(question, "name"),
        kind=QuestionKind(kind),
        instructions=instructions,
        options=options,
        field=path,
    )
    if not checked.text:
        raise InvalidArgumentError(
            "instructions has no text, but a text that is not blank is required.",
            field=f"{path}.instructions",
        )
    return checked


def _instruction(part: message_pb.Part, path: str) -> TextPart | ImagePart:
    kind = part.WhichOneof("kind")
    if kind == "text":
        return TextPart(text=part.text)
    if kind == "image":
        return image_part(part.image, f"{path}.image")
    raise InvalidArgumentError(
        f"The part is {kind or 'empty'}, but instructions have texts and images only.", field=path
    )


def _options(
    options: Sequence[decision_pb.DecisionOption], path: str, minimum: int
) -> tuple[Option, ...]:
    name = path.rpartition(".")[2]
    if not minimum <= len(options) <= MAX_OPTIONS:
        raise InvalidArgumentError(
            f"{name} has {len(options)} entries, but must have {minimum} to {MAX_OPTIONS}.",
            field=path,
        )
    return tuple(
        _option(option, f"{path}[{index}]", is_level=name == "levels")
        for index, option in enumerate(options)
    )


def _option(option: decision_pb.DecisionOption, path: str, *, is_level: bool) -> Option:
    kind = option.WhichOneof("value")
    if kind is None or (kind == "flag" and is_level):
        allowed = "text" if is_level else "text or flag"
        raise InvalidArgumentError(f"The option has no value: set {allowed}.", field=path)
    if kind == "flag":
        return Option(value=option.flag, description=option.description)
    if not option.text.strip():
        raise InvalidArgumentError(
            f"text is {quoted(option.text)}, but must not be blank.", field=f"{path}.text"
        )
    return Option(value=option.text, description=option.description)


def _refuse_duplicates(options: Sequence[Option], path: str) -> None:
    seen: dict[tuple[type, str | bool], int] = {}
    for index, option in enumerate(options):
        key = type(option.value), option.value
        if key in seen:
            kind = "flag" if isinstance(option.value, bool) else "text"
            raise InvalidArgumentError(
                f"{kind} is the same as that of the option at index {seen[key]}: {quoted(str(option.value))}; each must"
                " be different.",
                field=f"{path}[{index}].{kind}",
            )
        seen[key] = index
