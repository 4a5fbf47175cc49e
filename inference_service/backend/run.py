"""Runs a request on the engine and turns the engine's outputs into events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
import contextlib
import dataclasses
from typing import NamedTuple

from inference_service.backend.prompts import PreparedPrompt
from inference_service.domain import Delta, Finished, TokenUsage
from inference_service.engine_client.interface import Engine, nothing
from inference_service.engine_protocol.messages import (
    ChoiceOutput,
    EngineRequest,
    ProbeResult,
)
from inference_service.errors import (
    ERRORS_BY_REASON,
    AbortedError,
    ConstraintFailedError,
    InternalError,
    InvalidArgumentError,
)
from inference_service.metrics.requests import current_request
from inference_service.text.output.answer import Answer


Push = Callable[[Answer, ChoiceOutput], Awaitable[Iterable[Delta | Finished]]]
"""Gives an output to an answer, and the events of it."""


async def push_here(answer: Answer, output: ChoiceOutput) -> Iterable[Delta | Finished]:
    """In the event loop, whatever it costs."""
    return answer.push(output)


async def run(
    engine: Engine,
    engine_request: EngineRequest,
    prepared: PreparedPrompt,
    answers: Sequence[Answer],
    prompt_field: str,
    *,
    form_field: str = "spec.constraint",
    begun: Callable[[], None] = nothing,
    counted: Callable[[int], None] = nothing,
    computed: Callable[[], None] = nothing,
    aborted: Callable[[], bool] = lambda: False,
    push: Push = push_here,
) -> AsyncGenerator[Delta | Finished | TokenUsage, None]:
    """Runs a request on the engine and yields the events of its answers; closing the iterator aborts it.

    Args:
        engine: The engine.
        engine_request: The request.
        prepared: Its pixels and its prompt usage; the final usage adds the tokens of the answers.
        answers: One for every choice.
        prompt_field: The field that errors about the prompt name.
        form_field: The field that errors about the form of the answers name.
        begun: Called when the engine has the request and its pixels.
        counted: Called with the number of tokens of each output that the engine computes, also if nobody takes it.
        computed: Called when the engine computes the request no more.
        aborted: Whether the request was aborted before the engine knows it; afterwards, the engine is told.
        push: Gives outputs to the answers.

    Raises:
        ServiceError: The engine refused the request or failed on it.
    """
    # Here and not before: the caller's abort may come in the turn of the loop in which this iterator is begun.
    if aborted():
        async for event in run_aborted(engine_request, prepared, answers, push):
            yield event
        return
    cached_tokens = written_tokens = 0
    open_choices = set(range(len(answers)))
    outputs = engine.generate(engine_request, prepared.pixels, counted=counted, computed=computed)
    async with contextlib.aclosing(outputs):
        async for output in outputs:
            begun()
            written_tokens += output.num_cache_write_tokens
            current_request().take(output.choice_index, len(output.token_ids), output.timings)
            if output.choice_index not in open_choices:
                continue  # computed before the abort for a stop string reached the engine
            _raise_failure(output, prompt_field, form_field)
            if output.choice_index == 0 and output.num_cached_tokens is not None:
                cached_tokens = output.num_cached_tokens
            answer = answers[output.choice_index]
            for event in await push(answer, output):
                yield event
            if answer.finished:
                open_choices.remove(output.choice_index)
                if not open_choices:
                    break
                if output.finish_reason is None:
                    await engine.abort(output.request_id, output.choice_index)
    yield _usage(prepared, answers, cached_tokens, written_tokens)


def _usage(
    prepared: PreparedPrompt, answers: Sequence[Answer], cached_tokens: int, written_tokens: int
) -> TokenUsage:
    return dataclasses.replace(
        prepared.usage,
        cached_tokens=cached_tokens,
        # A page that was evicted before the first token has been written twice.
        cache_write_tokens=min(written_tokens, prepared.usage.prompt_tokens - cached_tokens),
        completion_tokens=sum(answer.completion_tokens for answer in answers),
        reasoning_tokens=sum(answer.reasoning_tokens for answer in answers),
    )


async def run_aborted(
    engine_request: EngineRequest,
    prepared: PreparedPrompt,
    answers: Sequence[Answer],
    push: Push = push_here,
) -> AsyncGenerator[Delta | Finished | TokenUsage, None]:
    """Yields the events of a request that was aborted before it was sent to the engine."""
    for choice_index, answer in enumerate(answers):
        aborted = ChoiceOutput.aborted(engine_request.request_id, choice_index)
        for event in await push(answer, aborted):
            yield event
    yield prepared.usage


class CacheUse(NamedTuple):
    """Prompt tokens that were found in the prefix cache, and those that were added to it."""

    found: int
    written: int


async def run_probes(
    engine: Engine,
    engine_request: EngineRequest,
    pixels: Sequence[bytes | memoryview],
    prompt_field: str,
    *,
    is_first: bool,
) -> tuple[list[ProbeResult], CacheUse]:
    """Runs the probes of a request on the engine; cancelling it aborts them.

    Args:
        engine: The engine.
        engine_request: The request.
        pixels: The pixels of its images.
        prompt_field: The field that errors about the prompt name.
        is_first: It is the first engine request for a caller's one, whose timings are measured.

    Returns:
        The results in the order of the probes; the tokens of the first one found in the prefix cache, and those of all
        that were added to it.

    Raises:
        AbortedError: The request was aborted.
        ServiceError: The engine refused the request or failed on it.
    """
    record = current_request()
    results: dict[int, ProbeResult] = {}
    found = written = 0
    async with contextlib.aclosing(engine.generate(engine_request, list(pixels))) as outputs:
        async for output in outputs:
            _raise_failure(output, prompt_field)
            if output.probe is None:
                raise AbortedError("The request was aborted.")
            record.take(output.choice_index, 0, output.timings if is_first else None)
            results[output.choice_index] = output.probe
            if output.choice_index == 0:
                found = output.num_cached_tokens or 0
            written += output.num_cache_write_tokens
    ordered = [results[index] for index in range(len(engine_request.probes))]
    return ordered, CacheUse(found, written)


def _raise_failure(
    output: ChoiceOutput, prompt_field: str, form_field: str = "spec.constraint"
) -> None:
    """Raises the error of a failed output; but for the constraint, an invalid argument always concerns the prompt."""
    failure = output.failure
    if failure is None:
        return
    kind = ERRORS_BY_REASON.get(failure.reason)
    if kind is None:
        raise InternalError("The engine failed on this request.")
    field = form_field if kind is ConstraintFailedError else prompt_field
    raise kind(
        failure.message,
        field=field if issubclass(kind, InvalidArgumentError) else "",
        metadata=failure.metadata,
        retry_after_s=failure.retry_after_s,
    )
