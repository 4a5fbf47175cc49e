"""Serves DecisionService: questions about one input, decided by the model's own probabilities."""

from __future__ import annotations

from functools import partial
from typing import Final

from inference_service.backend.base import Backend
from inference_service.decisions import Decision, DecisionRequest, Decisions, QuestionKind
from inference_service.grpc_api import work
from inference_service.grpc_api.call_context import Context, this_call
from inference_service.grpc_api.decision_requests import decision_request
from inference_service.grpc_api.generation import Generation
from inference_service.grpc_api.responses import image_message, usage_message
from inference_service.grpc_api.wire import message_bytes
from inference_service.settings import ServiceSettings
from qwenvl.inference.v1 import decision_service_pb2 as decision_pb
from qwenvl.inference.v1 import decision_service_pb2_grpc as decision_grpc


_BYTES_PER_FIGURE: Final = 8


class DecisionServicer(decision_grpc.DecisionServiceServicer):
    """Serves DecisionService."""

    def __init__(self, backend: Backend, settings: ServiceSettings) -> None:
        self._generation = Generation(backend)
        self._settings = settings

    async def CreateDecisions(  # noqa: N802 - the proto's name
        self, request: decision_pb.CreateDecisionsRequest, context: Context
    ) -> decision_pb.CreateDecisionsResponse:
        """Decides all questions."""
        del context
        asked = await self._domain_request(request.spec)
        del request
        decided = await self._generation.decide(asked)
        return await work.for_size(
            _BYTES_PER_FIGURE * sum(len(answer.probabilities) for answer in decided.answers),
            partial(_response, asked, decided),
        )

    async def _domain_request(self, spec: decision_pb.DecisionSpec) -> DecisionRequest:
        model = self._generation.canonical_name(spec.model)
        convert = partial(decision_request, spec, model, this_call().request_id, self._settings)
        return await work.for_size(message_bytes(), convert)


def _response(asked: DecisionRequest, decided: Decisions) -> decision_pb.CreateDecisionsResponse:
    return decision_pb.CreateDecisionsResponse(
        request_id=asked.evidence.request_id,
        model=asked.evidence.model,
        created=decided.created,
        answers=[_answer(answer, diagnostics=asked.diagnostics) for answer in decided.answers],
        usage=usage_message(decided.usage),
        images=map(image_message, decided.images),
        prompt_format=decided.prompt_format,
    )


def _answer(decision: Decision, *, diagnostics: bool) -> decision_pb.DecisionAnswer:
    answer = decision_pb.DecisionAnswer(name=decision.name)
    if decision.refused:
        answer.refused.SetInParent()
    elif decision.kind is QuestionKind.PREDICATE:
        answer.predicate.probability = decision.probabilities[0]
    elif decision.kind is QuestionKind.CHOICE:
        answer.choice.option_index = decision.best
        answer.choice.confidence = decision.confidence
        answer.choice.probabilities.extend(decision.probabilities)
    else:
        answer.score.score = decision.score
        answer.score.confidence = decision.confidence
        answer.score.probabilities.extend(decision.probabilities)
    if diagnostics:
        answer.label_mass = decision.label_mass
        answer.top_is_label = decision.top_is_label
    return answer
