"""Completes or renders the prompts of one request concurrently."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from qwenvl.aio import AsyncService, Events, Metadata
from qwenvl.answers import CompletionEvent
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from rest_adapter.reply import CollectedAnswers


_Asked = TypeVar("_Asked")
_Answer = TypeVar("_Answer")
PromptEvent = tuple[int, CompletionEvent]
"""The index of a prompt in its request, from 0, and its event."""


async def create_all(
    service: AsyncService,
    specs: Sequence[completion_pb.CompletionSpec],
    metadata: Metadata,
    spec_bytes: int,
    collected: CollectedAnswers | None,
) -> list[completion_pb.CreateCompletionResponse]:
    """Completes the prompts; the first failure, or a lack of memory for the answers, ends all."""

    def call(spec: completion_pb.CompletionSpec) -> Coroutine[Any, Any, Any]:
        return service.create_completion(spec, metadata=metadata, spec_bytes=spec_bytes)

    return await _all([asyncio.create_task(_held(call, spec, collected)) for spec in specs])


async def render_all(
    service: AsyncService,
    requests: Sequence[completion_pb.RenderCompletionRequest],
    metadata: Metadata,
    spec_bytes: int,
    collected: CollectedAnswers | None,
) -> list[completion_pb.RenderCompletionResponse]:
    """Renders the prompts; as `create_all`."""

    def call(request: completion_pb.RenderCompletionRequest) -> Coroutine[Any, Any, Any]:
        return service.render_completion(request, metadata=metadata, spec_bytes=spec_bytes)

    return await _all([asyncio.create_task(_held(call, one, collected)) for one in requests])


async def stream_all(
    service: AsyncService,
    specs: Sequence[completion_pb.CompletionSpec],
    metadata: Metadata,
    spec_bytes: int,
) -> Events[PromptEvent]:
    """Starts to complete the prompts; returns after the first event of each."""
    calls = [
        service.stream_completion(spec, metadata=metadata, spec_bytes=spec_bytes) for spec in specs
    ]
    tasks = [asyncio.create_task(call) for call in calls]
    try:
        return _PromptEvents(await _all(tasks))
    except BaseException:
        for task in tasks:
            if not task.cancelled() and task.exception() is None:
                task.result().cancel()
        raise


class _PromptEvents:
    """The events of all prompts, in order of the prompts."""

    def __init__(self, streams: Sequence[Events[CompletionEvent]]) -> None:
        self._streams = streams

    async def __aiter__(self) -> AsyncIterator[PromptEvent]:
        for index, stream in enumerate(self._streams):
            async for event in stream:
                yield index, event

    def cancel(self) -> None:
        for stream in self._streams:
            stream.cancel()


async def _held(
    call: Callable[[_Asked], Coroutine[Any, Any, _Answer]],
    asked: _Asked,
    collected: CollectedAnswers | None,
) -> _Answer:
    """The result of a call, once there is memory for it."""
    answer = await call(asked)
    if collected is not None:
        await collected.hold(answer)
    return answer


async def _all(tasks: Sequence[asyncio.Task[_Answer]]) -> list[_Answer]:
    """All results; if one fails or the caller is cancelled, cancels the others and waits for them."""
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
