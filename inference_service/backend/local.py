"""The backend that uses this project's engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
import contextlib
import dataclasses
import hashlib
import time
from typing import Final, TypeVar

from inference_service.backend.admission import Admission, AdmittedRequest, draining
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
from inference_service.backend.decisions import check_lengths, run_decisions
from inference_service.backend.defaults import operator_defaults
from inference_service.backend.forms import (
    check_grounding,
    form_begins_after,
    form_field,
    new_answers,
    with_form,
)
from inference_service.backend.line import Line
from inference_service.backend.prompts import PreparedPrompt
from inference_service.backend.rates import Amounts, RateLimits
from inference_service.backend.rendering import rendered
from inference_service.backend.run import run, run_aborted
from inference_service.backend.runtime import STATES, info_of, load_of
from inference_service.backend.sampling import (
    check_token_ids,
    effective_options,
    engine_params,
    wanted_tokens,
)
from inference_service.backend.served_model import Model
from inference_service.backend.turn import Shared, Turn
from inference_service.backend.vocabulary import ModelVocabulary
from inference_service.decisions import DecisionRequest, Decisions
from inference_service.domain import (
    Event,
    GenerationOptions,
    Request,
    Started,
    TokenUsage,
    forget_files,
)
from inference_service.engine_client.interface import (
    Engine,
    EngineStartError,
    EngineState,
    nothing,
)
from inference_service.engine_protocol.messages import EngineRequest
from inference_service.errors import EngineUnavailableError, ModelLoadingError
from inference_service.grammar.checker import ConstraintChecker
from inference_service.media.prepare import MediaPreparer, PreparedMedia
from inference_service.media.turn import set_turn
from inference_service.sampling import Sampling
from inference_service.settings import ServiceSettings
from inference_service.text.output.tool_calls import forbidden_tokens


_Options = TypeVar("_Options", bound=GenerationOptions)

_SPARE_PART: Final = 8
"""The part of what callers share that is left to those who have nothing of it."""


class LocalBackend:
    """A `Backend` that uses one engine."""

    def __init__(self, settings: ServiceSettings, model: Model, engine: Engine) -> None:
        self._settings = settings
        self._model = model
        self._engine = engine
        self._defaults = operator_defaults(settings).over(model.defaults)
        self._media = MediaPreparer.from_settings(settings, model.media)
        self._prompts = model.new_prompts(settings, engine)
        self._constraints = ConstraintChecker(model.directory, model.vocabulary)
        self._admission = Admission(settings.max_queue)
        self._rates = RateLimits.from_settings(settings)
        self._vocabulary = ModelVocabulary(model, self._prompts, self._admission, self._rates)
        few = max(2, settings.max_num_seqs // _SPARE_PART)
        pixel_bytes = settings.pixel_budget_mib * 2**20
        self._shared = Shared(
            # A few more than the batch holds, so that the engine never waits for the front; workers the same.
            batch=Line(settings.max_num_seqs + 2 * few, spare=few),
            tokens=Line(1),  # as many as the loaded engine has
            decoders=Line(4 * settings.media_workers, spare=settings.media_workers),
            pixels=Line(pixel_bytes, spare=pixel_bytes // _SPARE_PART),
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
        return load_of(self._engine, self._shared.batch.waiting)

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
            with self._turn(request, admitted) as turn:
                prepared = await self._prepare(request, admitted, turn)
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
            self._check(request)
            with self._turn(request, admitted) as turn:
                # First, as in `_generate`: a request must have the same error in both.
                context_tokens = self._context_tokens()
                async with admitted.abortable():
                    checked = await with_form(request, self._model, self._constraints)
                prepared = await self._prepare(self._salted(checked, caller), admitted, turn)
                options = self._options(request, prepared, context_tokens)
                form_begins_after(checked, prepared, self._model.tokenizer)
            admitted.raise_if_aborted()
        whole = dataclasses.replace(request, return_prompt_token_ids=True, return_prompt_text=True)
        return rendered(self._started(whole, prepared, options), prepared.prompt)

    async def generate(self, request: Request, caller: str) -> AsyncGenerator[Event, None]:
        """See `Backend`."""
        self._rates.check(caller)
        with self._admission.admit(request.request_id, caller, request.priority) as admitted:
            self._rates.take(caller, Amounts(requests=1))
            self._check(request)
            with self._turn(request, admitted) as turn:
                events = self._generate(self._salted(request, caller), admitted, turn)
                async with contextlib.aclosing(events):
                    try:
                        async for event in events:
                            self._count_use(caller, event)
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
            with self._turn(request.with_all_images, admitted, size=at_once) as turn:
                try:
                    decided = await self._decide(salted, admitted, turn, prepared)
                except EngineUnavailableError:
                    if self._closing:
                        raise draining() from None
                    raise
            self._count_use(caller, decided.usage)
            return decided

    # ---- steps of a request ----

    async def _decide(
        self,
        request: DecisionRequest,
        admitted: AdmittedRequest,
        turn: Turn,
        prepared: Callable[[], None],
    ) -> Decisions:
        builder = self._model.decision_prompts()
        context_tokens = self._context_tokens()
        media = await self._prepare_media(request.with_all_images, admitted, turn)
        prompts = await self._prompts.run(
            request.num_characters, lambda: builder.build(request, media.images)
        )
        prepared()
        self._rates.take(
            admitted.caller, Amounts(image_bytes=sum(len(image.pixels) for image in media.images))
        )
        check_lengths(request.questions, prompts, context_tokens)
        async with admitted.abortable():
            await turn.reserve_tokens(prompts.max_tokens(turn.size), 0)
        return await run_decisions(
            self._engine, request, prompts, media, admitted, at_once=turn.size
        )

    async def _generate(
        self, request: Request, admitted: AdmittedRequest, turn: Turn
    ) -> AsyncGenerator[Event, None]:
        context_tokens = self._context_tokens()
        asked_in = form_field(request)
        async with admitted.abortable():
            request = await with_form(request, self._model, self._constraints)
        prepared = await self._prepare(request, admitted, turn)
        self._rates.take(
            admitted.caller, Amounts(image_bytes=sum(memoryview(p).nbytes for p in prepared.pixels))
        )
        options = self._options(request, prepared, context_tokens)
        if not admitted.aborted:
            async with admitted.abortable():
                await turn.reserve_tokens(prepared.usage.prompt_tokens, options.max_tokens)
        engine_request = self._engine_request(request, admitted, prepared, options)
        answers = new_answers(request, prepared, self._model, prepared.infos)
        if admitted.aborted:
            events = run_aborted(engine_request, prepared, answers)
        else:
            field = request.prompt_field
            events = run(
                self._engine,
                engine_request,
                prepared,
                answers,
                field,
                form_field=asked_in,
                begun=turn.free_pixels,
                computed=turn.leave,
            )
        async with contextlib.aclosing(events):
            # The engine begins now, whether the client reads or not: it would keep its place in the batch for nothing.
            first = asyncio.ensure_future(anext(events, None))
            try:
                yield self._started(request, prepared, options)
                event = await first
            finally:
                first.cancel()
                await asyncio.gather(first, return_exceptions=True)
            while event is not None:
                yield event
                event = await anext(events, None)

    def _turn(self, request: Request, admitted: AdmittedRequest, size: int | None = None) -> Turn:
        return Turn(
            admitted,
            size=request.n if size is None else size,
            pixel_bytes=self._media.max_pixel_bytes(request),
            shared=self._shared,
        )

    def _salted(self, request: _Options, caller: str) -> _Options:
        """The request with a cache salt that no other API key can choose; cached tokens would tell its prompts."""
        if not caller or not self._settings.cache_per_key:
            return request
        salt = hashlib.sha256(caller.encode() + b"\0" + request.cache_salt).digest()
        return dataclasses.replace(request, cache_salt=salt)

    def _count_use(self, caller: str, event: Event) -> None:
        if isinstance(event, TokenUsage):
            tokens = event.prompt_tokens + event.completion_tokens
            self._rates.take(caller, Amounts(tokens=tokens))

    async def _prepare(
        self, request: Request, admitted: AdmittedRequest, turn: Turn
    ) -> PreparedPrompt:
        media = await self._prepare_media(request, admitted, turn)
        return await self._prompts.prepare(request, media)

    async def _prepare_media(
        self, request: Request, admitted: AdmittedRequest, turn: Turn
    ) -> PreparedMedia:
        """Prepares media; an abort ends only what may take long: the wait for the turn, and the media."""
        state = self._engine.ready
        if state is not None:
            await self._prompts.refuse_too_long(request, state.max_model_len)
        set_turn(turn.decoding)
        try:
            async with admitted.abortable():
                media = await self._media.prepare(request, admitted.caller)
                await turn.arrive()
        finally:
            forget_files(request)
        turn.decoded(sum(len(image.pixels) for image in media.images))
        return media

    def _options(self, request: Request, prepared: PreparedPrompt, context_tokens: int) -> Sampling:
        return effective_options(
            request,
            self._defaults,
            prompt_tokens=prepared.usage.prompt_tokens,
            max_model_len=context_tokens,
            strict_max_tokens=self._settings.strict_max_tokens,
        )

    def _check(self, request: Request) -> None:
        """Checks what depends on the model, but not on the prompt."""
        check_token_ids(request, self._model.vocab_size)
        check_grounding(request, self._model.box_notation)

    def _context_tokens(self) -> int:
        """The context window of the engine in tokens; smaller than the model's if memory is short."""
        state, ready = self._engine.state, self._engine.ready
        if state is EngineState.READY and ready is not None:
            # For callers who have nothing there, the engine makes room by preemption.
            tokens, capacity = self._shared.tokens, ready.kv_pages_total * ready.kv_page_tokens
            tokens.spare = capacity // _SPARE_PART
            tokens.places = max(1, capacity + tokens.spare)
            return ready.max_model_len
        if state is EngineState.STARTING:
            raise ModelLoadingError("The model is loading; try again later.", retry_after_s=5.0)
        if state in (EngineState.RESTARTING, EngineState.SILENT):
            raise EngineUnavailableError(
                "The engine is restarting; try again later.", retry_after_s=2.0
            )
        raise EngineUnavailableError("The engine has failed and will not be restarted.")

    def _started(self, request: Request, prepared: PreparedPrompt, options: Sampling) -> Started:
        token_ids = prepared.prompt.token_ids
        text = ""
        if request.return_prompt_text:
            text = self._model.tokenizer.decode(token_ids, skip_special_tokens=False)
        return Started(
            request_id=request.request_id,
            created=int(time.time()),
            sampling=options,
            stop_strings=request.stop_strings,
            stop_token_ids=request.stop_token_ids,
            include_stop_string=request.include_stop_string,
            n=request.n,
            usage=prepared.usage,
            images=prepared.infos,
            prompt_token_ids=token_ids if request.return_prompt_token_ids else (),
            prompt_text=text,
        )

    def _engine_request(
        self,
        request: Request,
        admitted: AdmittedRequest,
        prepared: PreparedPrompt,
        options: Sampling,
    ) -> EngineRequest:
        return EngineRequest(
            request_id=admitted.engine_id,
            prompt_token_ids=prepared.prompt.token_ids,
            images=prepared.prompt.images,
            num_choices=request.n,
            cache_salt=request.cache_salt,
            caller=admitted.caller,
            sampling=engine_params(
                options,
                request,
                wanted=wanted_tokens(request, self._defaults),
                eos_token_ids=self._model.eos_token_ids,
                banned=forbidden_tokens(request, self._model.tokenizer),
            ),
            constraint=request.constraint,
            constraint_after=form_begins_after(request, prepared, self._model.tokenizer),
            source=prepared.prompt.source,
        )

    def _notify_state(self) -> None:
        state = self.state
        for callback in self._callbacks:
            callback(state)
