"""DecisionService of `qwenvl.testing.FakeServer`: answers with the probabilities that a test wants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import math
from typing import Any, Final

import grpc

from qwenvl.fake.answers import CREATED, REQUEST_ID
from qwenvl.fake.checks import Refused, check_messages
from qwenvl.fake.model import FakeModel
from qwenvl.fake.servicers import Refusing
from qwenvl.inference.v1 import decision_service_pb2 as decision_pb
from qwenvl.inference.v1 import decision_service_pb2_grpc as decision_grpc
from qwenvl.inference.v1 import usage_pb2 as usage_pb


Deciding = Callable[[decision_pb.DecisionQuestion], Sequence[float] | None]
"""Returns the probability of each option or level in order, or of yes and no; None = the model refuses."""

_PROMPT_FORMAT: Final = 1
_MAX_QUESTIONS: Final = 400
_MAX_OPTIONS: Final = 255


def first(question: decision_pb.DecisionQuestion) -> Sequence[float]:
    """Certainly the first option: yes, or the lowest level."""
    return [1.0] + [0.0] * (_size(question) - 1)


class DecisionServicer(decision_grpc.DecisionServiceServicer):
    """Serves DecisionService."""

    def __init__(self, model: FakeModel, deciding: Deciding) -> None:
        self._model = model
        self._deciding = deciding

    def CreateDecisions(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - the proto's name
        """Decides all questions."""
        spec = request.spec
        with Refusing(self._model, context, spec.request_id):
            self._model.accept(spec)
            _check(spec)
            self._model.wait()
            answers = [self._answer(question, spec.diagnostics) for question in spec.questions]
        texts = [part.text for message in spec.messages for part in message.parts]
        texts += [part.text for question in spec.questions for part in question.instructions]
        tokens = sum(map(len, texts)) + len(spec.questions)
        return decision_pb.CreateDecisionsResponse(
            request_id=spec.request_id or REQUEST_ID,
            model=self._model.names[0],
            created=CREATED,
            answers=answers,
            usage=usage_pb.Usage(prompt_tokens=tokens, total_tokens=tokens),
            prompt_format=spec.prompt_format or _PROMPT_FORMAT,
        )

    def _answer(
        self, question: decision_pb.DecisionQuestion, diagnostics: bool
    ) -> decision_pb.DecisionAnswer:
        name = question.name if question.HasField("name") else None
        answer = decision_pb.DecisionAnswer(name=name)
        found = self._deciding(question)
        if diagnostics:
            answer.label_mass, answer.top_is_label = float(bool(found)), bool(found)
        if found is None:
            answer.refused.SetInParent()
            return answer
        probabilities = [float(p) for p in found]
        if len(probabilities) != _size(question) or not math.isclose(math.fsum(probabilities), 1):
            raise Refused(
                "INTERNAL", f"the test decides {probabilities} for {_size(question)} options"
            )
        _fill(answer, question, probabilities)
        return answer


def _fill(
    answer: decision_pb.DecisionAnswer,
    question: decision_pb.DecisionQuestion,
    probabilities: Sequence[float],
) -> None:
    n = len(probabilities)
    best = max(range(n), key=lambda index: probabilities[index])
    if question.HasField("predicate"):
        answer.predicate.probability = probabilities[0]
    elif question.HasField("choice"):
        answer.choice.option_index = best
        answer.choice.confidence = max(0.0, (n * probabilities[best] - 1) / (n - 1))
        answer.choice.probabilities.extend(probabilities)
    else:
        answer.score.score = sum(index * p for index, p in enumerate(probabilities))
        spread = sum(abs(index - best) * p for index, p in enumerate(probabilities))
        guess = sum(abs(index - (n - 1) / 2) for index in range(n)) / n
        answer.score.confidence = max(0.0, 1 - spread / guess) if guess else 1.0
        answer.score.probabilities.extend(probabilities)


def _size(question: decision_pb.DecisionQuestion) -> int:
    """Number of probabilities in the answer to a question."""
    if question.HasField("choice"):
        return len(question.choice.options)
    return len(question.score.levels) if question.HasField("score") else 2


def _check(spec: decision_pb.DecisionSpec) -> None:
    """Refuses what every inference service refuses, whatever its model.

    Raises:
        Refused: The request is invalid.
    """
    check_messages(spec.messages)
    count = len(spec.questions)
    if not 1 <= count <= _MAX_QUESTIONS:
        message = f"questions has {count} entries, but must have 1 to {_MAX_QUESTIONS}."
        raise Refused("INVALID_ARGUMENT", message, "spec.questions")
    for index, question in enumerate(spec.questions):
        path = f"spec.questions[{index}]"
        kind = question.WhichOneof("kind")
        if kind is None:
            raise Refused("INVALID_ARGUMENT", "The question has no kind.", path)
        if not any(part.text.strip() for part in question.instructions):
            message = "instructions has no text."
            raise Refused("INVALID_ARGUMENT", message, f"{path}.instructions")
        minimum = 2 if kind == "choice" else 1
        if not minimum <= _size(question) <= _MAX_OPTIONS:
            name = "choice.options" if kind == "choice" else "score.levels"
            message = f"{_size(question)} entries, but must have {minimum} to {_MAX_OPTIONS}."
            raise Refused("INVALID_ARGUMENT", message, f"{path}.{name}")
