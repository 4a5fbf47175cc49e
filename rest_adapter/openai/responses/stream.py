"""Streams a response while it is generated, and keeps it when it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import grpc.aio

from qwenvl.aio import Events
from qwenvl.answers import ChatEvent
from rest_adapter.errors import ApiError, from_rpc, internal
from rest_adapter.off_loop import off_loop
from rest_adapter.openai.responses.in_flight import InFlight, Run
from rest_adapter.openai.responses.writer import Frames, ResponseWriter
from rest_adapter.reply import AnswerMemory


_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class ResponseEvents:
    """The frames of one response, as the events of an `EventStream`.

    Args:
        events: The service's events, for cancelling them.
        rest: The same events after the first one, which `writer` knows.
        writer: Writes the response.
        caller: Who made the request.
        in_flight: Where the response is while it is generated.
        keep: Keeps the response after its end.
        body_bytes: The size of the request's body, of which the first frames repeat a part.
        take: Takes memory of the answer until the end of the request.
        param_of: Turns a proto field path into a path of the request's JSON.
    """

    def __init__(
        self,
        events: Events[ChatEvent],
        rest: AsyncIterator[ChatEvent],
        writer: ResponseWriter,
        *,
        caller: str,
        in_flight: InFlight,
        keep: Callable[[], Awaitable[None]],
        body_bytes: int,
        take: Callable[[int], None],
        param_of: Callable[[str], str | None],
    ) -> None:
        self._events = events
        self._rest = rest
        self._writer = writer
        self._run = Run(caller, writer, events.cancel)
        self._in_flight = in_flight
        self._keep = keep
        self._body_bytes = body_bytes
        self._memory = AnswerMemory(take)
        self._param_of = param_of
        self._is_told = False  # whether the last frame has been sent

    def cancel(self) -> None:
        """Ends the generation."""
        self._events.cancel()
        self._in_flight.leave(self._run)

    def render_error(self, error: ApiError) -> bytes:
        """The last frames of a stream that fails; empty if its end has been sent.

        A response that has ended but whose last frame has not been sent fails for its client, also if it was kept.
        """
        return b"" if self._is_told else b"".join(self._writer.fail(error))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yields the frames; when the last ones come, the response has been kept.

        Raises:
            ApiError: The service failed, or there is no memory; the last frames have told it.
            Exception: The response cannot be kept; `render_error` then has the last frames.
        """
        self._in_flight.enter(self._run)
        try:
            yield await _whole(off_loop(self._body_bytes, self._begin))
            self._memory.hold(self._writer.num_bytes)
            async for frames in self._running():
                yield frames
        except (grpc.aio.AioRpcError, ApiError) as error:
            failure = error if isinstance(error, ApiError) else from_rpc(error, self._param_of)
            if not self._is_told:
                async for frame in self._ending(self._writer.fail, failure):
                    yield frame
            raise failure from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._run.is_cancelled or (task is not None and task.cancelling()):
                raise
            # The call was cancelled, not this task.
            async for frame in self._ending(self._writer.cancel):
                yield frame
        finally:
            self._in_flight.leave(self._run)

    def _begin(self) -> bytes:
        return b"".join(self._writer.begin())

    async def _running(self) -> AsyncIterator[bytes]:
        async for event in self._rest:
            if event.WhichOneof("event") == "usage":
                async for frame in self._ending(self._writer.add, event):
                    yield frame
            elif frames := b"".join(self._writer.add(event)):
                yield frames
                self._memory.hold(self._writer.num_bytes)
        if not self._writer.is_ended:
            raise internal()

    async def _ending(
        self, end: Callable[_Arguments, Frames], *args: _Arguments.args, **kwargs: _Arguments.kwargs
    ) -> AsyncIterator[bytes]:
        """Ends the response, keeps it, and yields its last frames, of which each can be as large as all of it."""
        size = self._writer.num_bytes
        frames = await _whole(off_loop(size, end, *args, **kwargs))
        await self._run.keep(self._keep)
        self._in_flight.leave(self._run)
        rest = iter(frames)
        for left in reversed(range(len(frames))):
            yield await _whole(off_loop(size, next, rest))
            # Only now it has been sent.
            self._is_told = left == 0


async def _whole(work: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of work in a thread; if the caller is cancelled, waits for its end, as nobody else may interfere."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
