"""The backend that uses an engine: admits requests, limits callers, and has the requests answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
import contextlib
import dataclasses
import hashlib
from typing import TypeVar

from inference_service.backend.admission import Admission, draining
from inference_service.backend.answering import Answering
from inference_service.backend.base import (
    BackendInfo,
    BackendStartError,
    BackendState,
    Load,
    ModelDescription,
    Rendered,
    TokenCount,
    Vocabulary,
)
from inference_service.backend.rates import Amounts, RateLimits
from inference_service.backend.runtime import STATES, info_of, load_of
from inference_service.backend.served_model import Model
from inference_service.backend.turn import Shared
from inference_service.backend.vocabulary import ModelVocabulary
from inference_service.decisions import DecisionRequest, Decisions
from inference_service.domain import Event, GenerationOptions, Request
from inference_service.engine_client.interface import (
    Engine,
    EngineStartError,
    EngineState,
    nothing,
)
from inference_service.errors import EngineUnavailableError
from inference_service.grammar.checker import ConstraintChecker
from inference_service.media.prepare import MediaPreparer
from inference_service.settings import ServiceSettings


_Options = TypeVar("_Options", bound=GenerationOptions)


class LocalBackend:
    """A `Backend` that uses one engine."""

    def __init__(self, settings: ServiceSettings, model: Model, engine: Engine) -> None:
        self._settings = settings
        self._model = model
        self._engine = engine
        self._media = MediaPreparer.from_settings(settings, model.media)
        self._prompts = model.new_prompts(settings, engine)
        self._constraints = ConstraintChecker(model.directory, model.vocabulary)
        self._admission = Admission(settings.max_queue)
        self._rates = RateLimits.from_settings(settings)
        self._vocabulary = ModelVocabulary(model, self._prompts, self._admission, self._rates)
        self._shared = Shared.from_settings(settings)
        self._answering = Answering(
            settings,
            model,
            engine,
            media=self._media,
            prompts=self._prompts,
            constraints=self._constraints,
            rates=self._rates,
            shared=self._shared,
        )
        self._callbacks: list[Callable[[BackendState], None]] = []
        self._closing = False
        engine.on_state_change(lambda _: self._notify_state())

    # ---- the interface of Backend, documented there ----

    @property
    def state(self) -> BackendState:
        """See `Backend`. While draining, only the engine's failure is reported."""
        if self._admission.closed and self._engine.state is not EngineState.FAILED:
            return BackendState.DRAINING
        return STATES[self._engine.state]

    @property
    def names(self) -> tuple[str, ...]:
        """See `Backend`."""
        return self._model.names

    @property
    def info(self) -> BackendInfo:
        """See `Backend`."""
        return info_of(self._engine, self._settings)

    @property
    def in_flight(self) -> int:
        """See `Backend`."""
        return self._admission.in_flight

    @property
    def vocabulary(self) -> Vocabulary:
        """See `Backend`."""
        return self._vocabulary

    def describe(self) -> ModelDescription:
        """See `Backend`."""
        return self._model.describe(self._settings, self._engine.ready)

    def load(self) -> Load:
        """See `Backend`."""
        return load_of(self._engine, self._shared.waiting)

    def on_state_change(self, callback: Callable[[BackendState], None]) -> None:
        """See `Backend`."""
        self._callbacks.append(callback)

    async def start(self) -> None:
        """See `Backend`."""
        self._media.start()
        try:
            await self._engine.start()
        except EngineStartError as error:
            raise BackendStartError(str(error)) from error

    async def drain(self, timeout_s: float) -> None:
        """See `Backend`."""
        self._admission.close()
        self._notify_state()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._admission.wait_idle()

    async def close(self) -> None:
        """See `Backend`."""
        self._closing = True
        self._admission.close()
        self._admission.cut()
        await self._engine.close()
        await self._media.close()
        self._prompts.close()
        self._constraints.close()

    async def abort(self, request_id: str, caller: str | None = None) -> bool:
        """See `Backend`."""
        engine_ids = self._admission.abort(request_id, caller)
        for engine_id in engine_ids:
            await self._engine.abort(engine_id)
        return bool(engine_ids)

    def check_admission(self, caller: str) -> None:
        """See `Backend`."""
        self._admission.check(caller)
        self._rates.check(caller)

    async def count(self, request: Request, caller: str) -> TokenCount:
        """See `Backend`. A count occupies a place in the queue, as a generation does."""
        self._rates.check(caller)
        with self._admission.admit(request.request_id, caller, request.priority) as admitted:
            self._rates.take(caller, Amounts(requests=1))
            with self._answering.turn(request, admitted) as turn:
                prepared = await self._answering.prepare(request, admitted, turn)
            admitted.raise_if_aborted()
        return TokenCount(
            usage=prepared.usage,
            images=prepared.infos,
            prompt_token_ids=prepared.prompt.token_ids,
        )

    async def render(self, request: Request, caller: str) -> Rendered:
        """See `Backend`. As a count."""
        self._rates.check(caller)
        with self._admission.admit(request.request_id, caller, request.priority) as admitted:
            self._rates.take(caller, Amounts(requests=1))
            self._answering.check(request)
            with self._answering.turn(request, admitted) as turn:
                prompt = await self._answering.render(self._salted(request, caller), admitted, turn)
            admitted.raise_if_aborted()
        return prompt

    async def generate(self, request: Request, caller: str) -> AsyncGenerator[Event, None]:
        """See `Backend`."""
        self._rates.check(caller)
        with self._admission.admit(request.request_id, caller, request.priority) as admitted:
            self._rates.take(caller, Amounts(requests=1))
            self._answering.check(request)
            with self._answering.turn(request, admitted) as turn:
                events = self._answering.generate(self._salted(request, caller), admitted, turn)
                async with contextlib.aclosing(events):
                    try:
                        async for event in events:
                            yield event
                    except EngineUnavailableError:
                        if self._closing:
                            raise draining() from None
                        raise

    async def decide(
        self,
        request: DecisionRequest,
        caller: str,
        *,
        prepared: Callable[[], None] = nothing,
    ) -> Decisions:
        """See `Backend`. A part of the batch is left to others, however many questions there are."""
        evidence = request.evidence
        self._rates.check(caller)
        with self._admission.admit(evidence.request_id, caller) as admitted:
            self._rates.take(caller, Amounts(requests=1))
            self._model.decision_prompts()
            at_once = min(len(request.questions), max(1, self._settings.max_num_seqs // 4))
            salted = dataclasses.replace(request, evidence=self._salted(evidence, caller))
            with self._answering.turn(request.with_all_images, admitted, size=at_once) as turn:
                try:
                    return await self._answering.decide(salted, admitted, turn, prepared)
                except EngineUnavailableError:
                    if self._closing:
                        raise draining() from None
                    raise

    def _salted(self, request: _Options, caller: str) -> _Options:
        """The request with a cache salt that no other API key can choose; cached tokens would tell its prompts."""
        if not caller or not self._settings.cache_per_key:
            return request
        salt = hashlib.sha256(caller.encode() + b"\0" + request.cache_salt).digest()
        return dataclasses.replace(request, cache_salt=salt)

    def _notify_state(self) -> None:
        state = self.state
        for callback in self._callbacks:
            callback(state)
