"""Runs the requests of all services on the backend: model name, deadline, events as messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
import contextlib
from dataclasses import dataclass
import time
from typing import Any

from inference_service.backend.base import Backend, Rendered, TokenCount
from inference_service.decisions import DecisionRequest, Decisions
from inference_service.domain import Event, Request, Started
from inference_service.errors import DeadlineError
from inference_service.grpc_api import work
from inference_service.grpc_api.call_context import this_call
from inference_service.grpc_api.model_names import canonical_name
from inference_service.grpc_api.packed import Packed
from inference_service.grpc_api.responses import event_fields, gather, started_message
from inference_service.grpc_api.wire import expect_answer, release_message
from inference_service.metrics.requests import current_request
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    """The prompt of a request.

    Attributes:
        rendered: The prompt.
        strings: Its tokens as the vocabulary writes them, if they are wanted.
        model: The canonical name of the model.
        max_context_tokens: The context window in tokens.
    """

    rendered: Rendered
    strings: Sequence[str]
    model: str
    max_context_tokens: int

    @property
    def size(self) -> int:
        """About how many bytes its message has."""
        return work.BYTES_PER_TOKEN * len(self.rendered.started.prompt_token_ids)

    def fields(self) -> dict[str, Any]:
        """The fields that the responses of both services have, without `token_strings`."""
        return {
            "started": started_message(self.rendered.started, self.model),
            "placeholders": [
                chat_pb.MediaPlaceholder(offset=each.offset, length=each.length, key=each.key)
                for each in self.rendered.placeholders
            ],
            "max_context_tokens": self.max_context_tokens,
        }


class Generation:
    """Runs requests of each service on the backend."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def canonical_name(self, name: str) -> str:
        """See `model_names`."""
        return canonical_name(name, self._backend.names, field="spec.model")

    async def unary(self, request: Request) -> Packed:
        """The unary response of both services: all events of a request in one message."""
        async with contextlib.aclosing(self._events(request)) as events:
            answer = await gather(events, request)
        return answer.packed()

    async def stream_fields(self, request: Request) -> AsyncGenerator[dict[str, Any], None]:
        """The fields of every message of a stream, one message for each event."""
        async with contextlib.aclosing(self._events(request)) as events:
            async for event in events:
                yield event_fields(event, request.model)

    async def count(self, request: Request) -> TokenCount:
        """Counts the tokens of a request's prompt."""
        call = this_call()
        async with until(call.deadline):
            return await self._backend.count(request, call.caller)

    async def render(self, request: Request, *, strings: bool) -> RenderedPrompt:
        """The prompt of a request; with `strings`, its tokens as the vocabulary writes them, too."""
        call = this_call()
        async with until(call.deadline):
            rendered = await self._backend.render(request, call.caller)
            written: Sequence[str] = ()
            if strings:
                token_ids = rendered.started.prompt_token_ids
                await expect_answer(work.MAX_TOKEN_BYTES * len(token_ids))
                written = await self._backend.vocabulary.strings(token_ids, call.caller)
        context_tokens = self._backend.describe().max_context_tokens
        return RenderedPrompt(rendered, written, request.model, context_tokens)

    async def decide(self, request: DecisionRequest) -> Decisions:
        """Decides the questions of a request."""
        call = this_call()
        _tell(request.evidence, len(request.questions))
        async with until(call.deadline):
            decisions = await self._backend.decide(request, call.caller, prepared=release_message)
        current_request().decided(decisions.usage)
        return decisions

    async def _events(self, request: Request) -> AsyncGenerator[Event, None]:
        call = this_call()
        _tell(request, request.n)
        async with contextlib.aclosing(self._backend.generate(request, call.caller)) as events:
            while True:
                # Not across the yield: the time that the client takes to read has a limit of its own, see `wire`.
                async with until(call.deadline):
                    event = await anext(events, None)
                if event is None:
                    return
                if isinstance(event, Started):  # its images are decoded and its text is tokenised
                    release_message()
                current_request().observe(event)
                yield event


def _tell(request: Request, choices: int) -> None:
    """Tells the request's record what is asked; a request names the model by its canonical name."""
    current_request().serves(request.model, choices=choices, images=len(request.media))


@contextlib.asynccontextmanager
async def until(deadline: float | None) -> AsyncIterator[None]:
    """Cancels the body at a moment of `time.monotonic()`, the loop's clock.

    Raises:
        DeadlineError: The moment has passed, before the body or during it.
    """
    if deadline is not None and time.monotonic() >= deadline:
        raise _deadline_error()
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise _deadline_error() from None


def _deadline_error() -> DeadlineError:
    return DeadlineError(
        "The request did not finish before its deadline (the client's, else --request-timeout-s)."
    )
