"""From engine outputs to events, without an engine."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Any, cast

import pytest

from inference_service.backend.prompts import PreparedPrompt
from inference_service.backend.run import run, run_aborted
from inference_service.domain import Delta, EndReason, Finished, TokenUsage
from inference_service.engine_client.interface import Engine
from inference_service.engine_protocol.messages import (
    ChoiceOutput,
    EngineFailure,
    EngineRequest,
    FinishReason,
    SamplingParams,
)
from inference_service.errors import ERRORS_BY_REASON, InternalError, ServiceError
from inference_service.text.output.answer import Answer
from inference_service.text.prompt import Prompt


PREPARED = PreparedPrompt(
    prompt=Prompt(token_ids=(1, 2), images=()),
    pixels=[b"abc"],
    infos=(),
    usage=TokenUsage(prompt_tokens=2, image_tokens=0),
)
STOP = 99


class ScriptedEngine:
    """Gives outputs from a list, and notes what is asked of it between them."""

    def __init__(self, outputs: Sequence[ChoiceOutput]) -> None:
        self._outputs = outputs
        self.log: list[object] = []

    async def generate(
        self, request: EngineRequest, pixels: list[bytes], **_: Callable[..., None]
    ) -> AsyncGenerator[ChoiceOutput, None]:
        assert (request.request_id, pixels) == ("r", PREPARED.pixels)
        try:
            for output in self._outputs:
                self.log.append(output.choice_index)
                yield output
        finally:
            self.log.append("closed")

    async def abort(self, request_id: str, choice_index: int | None = None) -> None:
        self.log.append(("abort", request_id, choice_index))


class CountingAnswer:
    """An answer whose text is its tokens' numbers, and which STOP ends as a stop string would."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.finished = False
        self.completion_tokens = 0
        self.reasoning_tokens = 0

    def push(self, output: ChoiceOutput) -> Iterator[Delta | Finished]:
        assert not self.finished
        self.completion_tokens += len(output.token_ids)
        if output.token_ids:
            yield Delta(choice_index=self.index, text=str(output.token_ids[0]))
        if STOP in output.token_ids or output.finish_reason is not None:
            self.finished = True
            yield Finished(choice_index=self.index, reason=EndReason.STOP)


def said(choice: int, *tokens: int, **fields: Any) -> ChoiceOutput:
    return ChoiceOutput(request_id="r", choice_index=choice, token_ids=tokens, **fields)


def ended(choice: int, reason: FinishReason = FinishReason.EOS, **fields: Any) -> ChoiceOutput:
    return said(choice, finish_reason=reason, **fields)


def answers_of(choices: int) -> list[Answer]:
    return [cast("Answer", CountingAnswer(index)) for index in range(choices)]


async def events_of(engine: ScriptedEngine, choices: int) -> list[object]:
    request = EngineRequest(
        request_id="r",
        prompt_token_ids=(1, 2),
        sampling=SamplingParams(max_tokens=5),
        num_choices=choices,
    )
    events = run(cast("Engine", engine), request, PREPARED, answers_of(choices), "spec.messages")
    return [event async for event in events]


async def test_a_choice_that_found_its_stop_string_is_aborted_while_the_others_go_on() -> None:
    engine = ScriptedEngine(
        [
            said(0, 5, num_cached_tokens=1, num_cache_write_tokens=1),
            said(1, 6, num_cached_tokens=2, num_cache_write_tokens=1),
            said(0, STOP),
            said(0, 7),  # computed before the abort arrived
            said(1, 8),
            ended(0, FinishReason.ABORTED),
            ended(1),
        ]
    )
    events = await events_of(engine, 2)
    texts = [(e.choice_index, e.text) for e in events if isinstance(e, Delta)]
    assert texts == [(0, "5"), (1, "6"), (0, str(STOP)), (1, "8")]
    assert [e.choice_index for e in events if isinstance(e, Finished)] == [0, 1]
    assert engine.log == [0, 1, 0, ("abort", "r", 0), 0, 1, 0, 1, "closed"]
    assert events[-1] == TokenUsage(
        prompt_tokens=2,
        image_tokens=0,
        cached_tokens=1,
        cache_write_tokens=1,  # never more than what was not found
        completion_tokens=4,
    )


async def test_the_last_choice_to_find_its_stop_string_ends_the_request_at_once() -> None:
    engine = ScriptedEngine([said(0, STOP), ended(1), said(1, 1)])
    await events_of(engine, 2)
    assert engine.log == [0, ("abort", "r", 0), 1, "closed"]


async def test_a_choice_that_fails_after_its_stop_string_is_no_error() -> None:
    failure = EngineFailure.of(InternalError("It broke."))
    late = ended(0, FinishReason.ERROR, failure=failure)
    events = await events_of(ScriptedEngine([said(0, STOP), late, ended(1)]), 2)
    assert isinstance(events[-1], TokenUsage)


@pytest.mark.parametrize("reason", sorted(ERRORS_BY_REASON))
async def test_every_reason_crosses_the_engine_border(reason: str) -> None:
    failure = EngineFailure(
        reason=reason, message="It says 7.", metadata={"tokens": "7"}, retry_after_s=2.0
    )
    engine = ScriptedEngine([ended(0, FinishReason.ERROR, failure=failure)])
    with pytest.raises(ServiceError) as caught:
        await events_of(engine, 1)
    error = caught.value
    assert type(error) is ERRORS_BY_REASON[reason]
    assert (error.reason, error.message, error.metadata) == (reason, "It says 7.", {"tokens": "7"})
    assert error.retry_after_s == 2.0
    assert engine.log == [0, "closed"]


async def test_an_unknown_reason_is_an_internal_error_without_details() -> None:
    failure = EngineFailure(reason="NEW", message="secret", metadata={"secret": "1"})
    with pytest.raises(InternalError) as caught:
        await events_of(ScriptedEngine([ended(0, FinishReason.ERROR, failure=failure)]), 1)
    assert "secret" not in f"{caught.value.message}{caught.value.metadata}"


async def test_a_request_aborted_before_the_engine_knows_ends_every_choice() -> None:
    request = EngineRequest(
        request_id="r", prompt_token_ids=(1,), sampling=SamplingParams(max_tokens=1), num_choices=2
    )
    events = [event async for event in run_aborted(request, PREPARED, answers_of(2))]
    assert [e.choice_index for e in events if isinstance(e, Finished)] == [0, 1]
    assert events[-1] == PREPARED.usage
