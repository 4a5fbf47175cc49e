"""The answer as Server-Sent Events: which chunk an event becomes, and how chunks leave.

Owns the bytes of chunks and the life of the response.
What all chunks of a stream share is rendered once: a token costs one `orjson.dumps` of its text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

import grpc
import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from rest_adapter import translate
from rest_adapter.backend import Events
from rest_adapter.errors import ApiError, internal


DONE: Final = b"data: [DONE]\n\n"
HEARTBEAT: Final = b": still here\n\n"
_END: Final = b"]}\n\n"
_Event = TypeVar("_Event")
_Event_contra = TypeVar("_Event_contra", contravariant=True)


class Writer(Protocol[_Event_contra]):
    """Renders the events of one stream, in their order."""

    def render(self, event: _Event_contra, /) -> bytes:
        """The bytes of an event: no, one or several chunks.

        Raises:
            ApiError: The answer was aborted.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkOptions:
    """What a stream contains besides the text.

    Attributes:
        n: Number of answers.
        usage: A last chunk with the usage; every other chunk then has `"usage": null`.
        logprobs: `choices[].logprobs` are filled.
        token_ids: `choices[].token_ids` in every chunk, and the prompt's in the first.
        grounding: `choices[].grounding` in the last chunk of a choice.
    """

    n: int
    usage: bool
    logprobs: bool
    token_ids: bool
    grounding: bool = False


class ChunkWriter:
    """Renders the events of one conversation's answer, in their order."""

    def __init__(self, options: ChunkOptions, version: str) -> None:
        self._options = options
        self._version = version
        self._shared = b""
        self._head = b""

    def render(self, event: chat_pb.StreamChatCompletionResponse) -> bytes:
        """The bytes of an event: no, one or several chunks.

        Raises:
            ApiError: The answer was aborted.
        """
        match event.WhichOneof("event"):
            case "delta":
                return self._delta(event.delta)
            case "started":
                return self._started(event.started)
            case "finished":
                return self._finished(event.finished)
            case "usage" if self._options.usage:
                return self._shared + b'"usage":%b,"choices":[%b' % (
                    orjson.dumps(translate.usage(event.usage)),
                    _END,
                )
            case _:
                return b""

    def _started(self, started: generation_pb.Started) -> bytes:
        shared = {
            "id": translate.completion_id(started),
            "object": "chat.completion.chunk",
            "created": started.created,
            "model": started.model,
            "system_fingerprint": translate.fingerprint(started.model, self._version),
        }
        self._shared = b"data: " + orjson.dumps(shared)[:-1] + b","
        self._head = self._shared + (b'"usage":null,' if self._options.usage else b"")
        extra: dict[str, Any] = {}
        if self._options.token_ids:
            extra["prompt_token_ids"] = list(started.prompt_token_ids)
        chunks = []
        for index in range(self._options.n):
            chunks.append(self._chunk(index, b'{"role":"assistant","content":""}', extra))
            extra = {}
        return b"".join(chunks)

    def _delta(self, delta: generation_pb.Delta) -> bytes:
        entries = self._options.logprobs and delta.logprobs
        ids = self._options.token_ids and delta.token_ids
        if not (delta.text or delta.reasoning or entries or ids or delta.prompt_logprobs):
            return b""
        content = b'{"content":' + orjson.dumps(delta.text)
        if delta.reasoning:
            content += b',"reasoning_content":' + orjson.dumps(delta.reasoning)
        extra = {}
        if delta.prompt_logprobs:
            extra["prompt_logprobs"] = translate.prompt_logprobs(delta.prompt_logprobs)
        return self._chunk(
            delta.choice_index,
            content + b"}",
            extra,
            logprobs=orjson.dumps(translate.logprobs(delta.logprobs)) if entries else b"null",
            token_ids=list(delta.token_ids) if ids else (),
        )

    def _finished(self, finished: generation_pb.Finished) -> bytes:
        stop = orjson.dumps(translate.stop_reason(finished.stop_detail))
        reason = orjson.dumps(translate.finish_reason(finished.reason))
        finish = reason + b',"stop_reason":' + stop
        if self._options.grounding:
            finish += b',"grounding":' + orjson.dumps(translate.groundings(finished.groundings))
        return self._chunk(finished.choice_index, b"{}", {}, finish=finish)

    def _chunk(
        self,
        index: int,
        delta: bytes,
        extra: MutableMapping[str, Any],
        *,
        logprobs: bytes = b"null",
        finish: bytes = b"null",
        token_ids: list[int] | tuple[()] = (),
    ) -> bytes:
        """One chunk of one choice.

        Args:
            index: Which choice.
            delta: `choices[].delta` in JSON.
            extra: Further fields beside `choices`.
            logprobs: `choices[].logprobs` in JSON.
            finish: `choices[].finish_reason` in JSON, and what follows it.
            token_ids: The new tokens, if asked for.
        """
        parts = [self._head]
        if extra:
            parts += (orjson.dumps(extra)[1:-1], b",")
        parts += (b'"choices":[{"index":%d,"delta":' % index, delta, b',"logprobs":', logprobs)
        parts += (b',"finish_reason":', finish)
        if self._options.token_ids:
            parts += (b',"token_ids":', orjson.dumps(token_ids))
        parts += (b"}", _END)
        return b"".join(parts)


class EventStream(Response, Generic[_Event]):
    """A streamed answer: ends with `[DONE]`, or with an error event and without it.

    When the client goes away, the gRPC call is cancelled; a slow client slows the call down.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: Events[_Event],
        writer: Writer[_Event],
        *,
        heartbeat_s: float,
        to_error: Callable[[grpc.aio.AioRpcError], ApiError],
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._writer = writer
        self._heartbeat_s = heartbeat_s
        self._to_error = to_error
        self._last_sent_s = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events until they end or the client goes away."""
        del scope
        pump = asyncio.create_task(self._pump(send))
        others = (
            asyncio.create_task(until_disconnected(receive)),
            asyncio.create_task(self._beat(send)),
        )
        try:
            await asyncio.wait((pump, *others), return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                pump.result()
        finally:
            self._events.cancel()
            for task in (pump, *others):
                task.cancel()
            await asyncio.gather(pump, *others, return_exceptions=True)

    async def _pump(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        last = DONE
        try:
            async for event in self._events:
                if chunk := self._writer.render(event):
                    await self._send(send, chunk)
        except grpc.aio.AioRpcError as error:
            last = _error_event(self._to_error(error))
        except ApiError as error:
            last = _error_event(error)
        except Exception:
            # The status line is out, so the caller can only be told here; the log gets the rest.
            await self._send(send, _error_event(internal()), more=False)
            raise
        await self._send(send, last, more=False)

    async def _beat(self, send: Send) -> None:
        """Keeps proxies from closing a connection that is silent during a long prefill."""
        clock = asyncio.get_running_loop().time
        self._last_sent_s = clock()
        while True:
            await asyncio.sleep(max(0.0, self._last_sent_s + self._heartbeat_s - clock()))
            if clock() - self._last_sent_s >= self._heartbeat_s:
                await self._send(send, HEARTBEAT)

    async def _send(self, send: Send, body: bytes, *, more: bool = True) -> None:
        self._last_sent_s = asyncio.get_running_loop().time()
        await send({"type": "http.response.body", "body": body, "more_body": more})


async def until_disconnected(receive: Receive) -> None:
    """Returns when the client has gone; the body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _error_event(error: ApiError) -> bytes:
    return b"data: " + error.body() + b"\n\n"
