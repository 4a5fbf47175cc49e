"""Translates the JSON of `/v1/decisions` to the proto and back: pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import re
from typing import Any, Final

from qwenvl.inference.v1 import decision_service_pb2 as decision_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from rest_adapter.errors import of_reason
from rest_adapter.media import OVERSIZED, ImageSources
from rest_adapter.openai.content import Content
from rest_adapter.openai.decisions.questions import Option, Question
from rest_adapter.openai.decisions.schema import Decisions
from rest_adapter.proto_fields import set_fields


_PATH: Final = re.compile(
    r"(?P<list>messages|questions)\[(?P<index>\d+)\](?:\.(?P<field>parts|instructions|\w+\.(?:options|levels))"
    r"(?:\[(?P<place>\d+)\](?:\.(?P<rest>.*))?)?)?"
)
_PARAMS: Final = {
    "messages": "input",
    "cache_salt": "prompt_cache_key",
    "media.oversized": "mm_processor_kwargs.oversized_image",
}
_PIXELS: Final = ("min_pixels", "max_pixels")


def to_spec(asked: Decisions, *, max_media_bytes: int) -> decision_pb.DecisionSpec:
    """Converts a request to the proto.

    Args:
        asked: The validated JSON.
        max_media_bytes: Maximum total bytes of all decoded images.

    Raises:
        ApiError: An image's URI cannot be decoded, or the images are too large.
    """
    request = asked.request
    if not request.model:  # over gRPC that is the canonical model, in OpenAI's API an unknown name
        message = "model is empty; GET /v1/models lists the names of the models."
        raise of_reason("MODEL_NOT_FOUND", message, param="model")
    spec = decision_pb.DecisionSpec(
        model=request.model,
        request_id=request.request_id or "",
        cache_salt=request.prompt_cache_key or "",
        diagnostics=bool(request.diagnostics),
        prompt_format=request.prompt_format,
        rotations=request.rotations,
    )
    set_fields(spec.media, request, _PIXELS)
    if request.mm_processor_kwargs is not None:
        set_fields(spec.media, request.mm_processor_kwargs, _PIXELS)
        if (oversized := request.mm_processor_kwargs.oversized_image) is not None:
            spec.media.oversized = OVERSIZED[oversized]
    sources = ImageSources(max_media_bytes)
    for item in asked.evidence:
        target = spec.messages.add(role=item.role)
        for content in item.contents:
            content.add_to(target, sources)
    for question in asked.questions:
        _add_question(spec.questions.add(name=question.name), question, sources)
    return spec


def _add_question(
    target: decision_pb.DecisionQuestion, question: Question, sources: ImageSources
) -> None:
    held = message_pb.Message()
    for content in question.instructions:
        content.add_to(held, sources)
    target.instructions.extend(held.parts)
    if question.kind == "predicate":
        target.predicate.SetInParent()
    elif question.kind == "choice":
        target.choice.options.extend(map(_option, question.options))
        target.choice.SetInParent()
    else:
        target.score.levels.extend(map(_option, question.options))
        target.score.SetInParent()


def _option(option: Option) -> decision_pb.DecisionOption:
    value: Any = {"flag" if isinstance(option.value, bool) else "text": option.value}
    return decision_pb.DecisionOption(description=option.description, **value)


@dataclass(frozen=True, slots=True)
class FieldPaths:
    """Maps proto fields of one request to fields of its JSON."""

    asked: Decisions

    def param_of(self, field: str) -> str | None:
        """Turns `spec.questions[0].choice.options[1].text` into `questions[0].choices[1].value`."""
        path = field.removeprefix("spec.")
        if not path:
            return None
        found = _PATH.match(path)
        if found is not None and found["list"] == "messages":
            return self._message_param(int(found["index"]), found["place"], found["rest"] or "")
        if found is not None:
            return self._question_param(int(found["index"]), found)
        return self._pixels_param(path) or _PARAMS.get(path, path)

    def _message_param(self, index: int, place: str | None, rest: str) -> str:
        if index >= len(self.asked.evidence):
            return "input"
        item = self.asked.evidence[index]
        return self._content_param(item.contents, place, rest) or item.path

    def _question_param(self, index: int, found: re.Match[str]) -> str:
        if index >= len(self.asked.questions):
            return "questions"
        question = self.asked.questions[index]
        field, place, rest = found["field"], found["place"], found["rest"] or ""
        if field is None:
            return question.path
        if field == "instructions":
            path = self._content_param(question.instructions, place, rest)
            return path or f"{question.path}.instructions"
        name, value = ("choices", "value") if question.kind == "choice" else ("levels", "label")
        path = f"{question.path}.{name}"
        if place is None:
            return path
        return f"{path}[{place}].{value}" if rest in ("text", "flag") else f"{path}[{place}]"

    def _content_param(
        self, contents: Sequence[Content], place: str | None, rest: str
    ) -> str | None:
        if place is None or int(place) >= len(contents):
            return None
        content = contents[int(place)]
        return content.param(rest) or self._pixels_param(rest) or content.param("")

    def _pixels_param(self, path: str) -> str | None:
        """The field in which the caller set the request's pixel budget."""
        name, request = path.rpartition(".")[2], self.asked.request
        if name not in _PIXELS:
            return None
        nested = request.mm_processor_kwargs
        if nested is not None and getattr(nested, name) is not None:
            return f"mm_processor_kwargs.{name}"
        return name if getattr(request, name) is not None else None


def document(response: decision_pb.CreateDecisionsResponse, asked: Decisions) -> dict[str, Any]:
    """OpenAI's `Decision`; with the request's `diagnostics` also what the model's labels weigh."""
    answers = []
    for answer, question in zip(response.answers, asked.questions, strict=True):
        shape = _answer(answer, question) | {"name": question.name}
        if asked.request.diagnostics:
            shape |= {"label_mass": answer.label_mass, "top_is_label": answer.top_is_label}
        answers.append(shape)
    whole: dict[str, Any] = {
        "model": response.model,
        "answers": answers,
        "usage": _usage(response.usage),
    }
    if asked.request.diagnostics:
        whole["prompt_format"] = response.prompt_format
    return whole


def _answer(answer: decision_pb.DecisionAnswer, question: Question) -> dict[str, Any]:
    kind = answer.WhichOneof("kind")
    if kind == "predicate":
        return {"type": "predicate", "probability": answer.predicate.probability}
    if kind == "choice":
        choice = answer.choice
        return {
            "type": "choice",
            "choice": question.options[choice.option_index].value,
            "confidence": choice.confidence,
            "probabilities": [
                {"value": option.value, "probability": probability}
                for option, probability in zip(question.options, choice.probabilities, strict=True)
            ],
        }
    if kind == "score":
        score = answer.score
        return {
            "type": "score",
            "score": score.score,
            "confidence": score.confidence,
            "probabilities": [
                {"value": value, "label": level.value, "probability": probability}
                for value, (level, probability) in enumerate(
                    zip(question.options, score.probabilities, strict=True)
                )
            ],
        }
    return {"type": "refusal"}


def _usage(usage: usage_pb.Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }
