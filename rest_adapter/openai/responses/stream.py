"""Streams a response while it is generated, and keeps it when it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc.aio

from qwenvl.aio import Events
from qwenvl.answers import ChatEvent
from rest_adapter.errors import ApiError, from_rpc, internal
from rest_adapter.openai.responses.in_flight import InFlight, Run
from rest_adapter.openai.responses.writer import ResponseWriter


class ResponseEvents:
    """The frames of one response, as the events of an `EventStream`.

    Args:
        events: The service's events, for cancelling them.
        rest: The same events after the first one, which `writer` knows.
        writer: Writes the response.
        caller: Who made the request.
        in_flight: Where the response is while it is generated.
        keep: Keeps the response after its end.
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
        param_of: Callable[[str], str | None],
    ) -> None:
        self._events = events
        self._rest = rest
        self._writer = writer
        self._run = Run(caller, writer, events.cancel)
        self._in_flight = in_flight
        self._keep = keep
        self._param_of = param_of
        self._failure: bytes | None = None

    def cancel(self) -> None:
        """Ends the generation."""
        self._events.cancel()
        self._in_flight.leave(self._run)

    def render_error(self, error: ApiError) -> bytes:
        """The last frames of a stream that fails."""
        return self._writer.fail(error) if self._failure is None else self._failure

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yields the frames; when the last ones come, the response has been kept.

        Raises:
            ApiError: The service failed; `render_error` then has the last frames.
        """
        self._in_flight.enter(self._run)
        yield self._writer.begin()
        try:
            async for event in self._rest:
                frames = self._writer.add(event)
                if self._writer.is_ended:
                    await self._run.keep(self._keep)
                    self._in_flight.leave(self._run)
                if frames:
                    yield frames
            if not self._writer.is_ended:
                raise internal()
        except grpc.aio.AioRpcError as error:
            failure = from_rpc(error, self._param_of)
            self._failure = self._writer.fail(failure)
            await self._run.keep(self._keep)
            raise failure from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._run.is_cancelled or (task is not None and task.cancelling()):
                raise
            # The call was cancelled, not this task.
            frames = self._writer.cancel()
            await self._run.keep(self._keep)
            self._in_flight.leave(self._run)
            yield frames
        finally:
            self._in_flight.leave(self._run)
