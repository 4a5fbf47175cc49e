"""DecisionService of the deterministic inference service, for tests of the adapter.

A text at the end of the input that begins with a command does what the command says: `hang`, `fail REASON`, `fail-at
FIELD`.
"""

from __future__ import annotations

import asyncio

from qwenvl.inference.v1 import decision_service_pb2 as decision_pb
from qwenvl.inference.v1 import decision_service_pb2_grpc as decision_grpc
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from tests.rest_adapter.fake_service import CREATED, NAMES, Seen, fail


class FakeDecisions(decision_grpc.DecisionServiceServicer):
    """The last option is the most likely; a question with the text `refuse` is refused."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen

    async def CreateDecisions(self, request, context):  # noqa: N802 - gRPC's name
        spec = request.spec
        self.seen.decision_specs.append(spec)
        self.seen.calls += 1
        command, _, argument = spec.messages[-1].parts[-1].text.partition(" ")
        if spec.model not in NAMES:
            await fail(context, "MODEL_NOT_FOUND")
        if command == "fail":
            await fail(context, argument)
        if command == "fail-at":
            await fail(context, "INVALID_ARGUMENT", argument)
        if command == "hang":
            await self._hang()
        return decision_pb.CreateDecisionsResponse(
            request_id=spec.request_id,
            model=NAMES[0],
            created=CREATED,
            answers=[self._answer(question, spec.diagnostics) for question in spec.questions],
            usage=usage_pb.Usage(
                prompt_tokens=12, total_tokens=12, cached_tokens=3, cache_write_tokens=8
            ),
            prompt_format=spec.prompt_format or 1,
        )

    async def _hang(self) -> None:
        self.seen.running += 1
        try:
            await asyncio.sleep(600)
        finally:
            self.seen.running -= 1
            self.seen.cancelled += 1

    def _answer(
        self, question: decision_pb.DecisionQuestion, diagnostics: bool
    ) -> decision_pb.DecisionAnswer:
        answer = decision_pb.DecisionAnswer()
        if diagnostics:
            answer.label_mass, answer.top_is_label = 0.9, True
        options = [*question.choice.options, *question.score.levels]
        n = len(options)
        probabilities = [0.5 / (n - 1)] * (n - 1) + [0.5] if n > 1 else [1.0]
        if any(part.text == "refuse" for part in question.instructions):
            answer.refused.SetInParent()
        elif question.HasField("predicate"):
            answer.predicate.probability = 0.75
        elif question.HasField("choice"):
            answer.choice.option_index = n - 1
            answer.choice.confidence = 0.25
            answer.choice.probabilities.extend(probabilities)
        else:
            answer.score.score = sum(i * p for i, p in enumerate(probabilities))
            answer.score.confidence = 0.125
            answer.score.probabilities.extend(probabilities)
        return answer
