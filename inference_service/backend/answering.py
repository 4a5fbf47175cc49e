"""The steps of a request from its admission to the events of its answers: media, prompt, engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
import contextlib
import dataclasses
import functools
from typing import Final

from inference_service.backend.admission import AdmittedRequest
from inference_service.backend.base import Rendered
from inference_service.backend.composing import Composer
from inference_service.backend.decisions import check_lengths, run_decisions, usage_of
from inference_service.backend.defaults import operator_defaults
from inference_service.backend.forms import (
    check_grounding,
    form_begins_after,
    new_answers,
    with_form,
)
from inference_service.backend.prompts import PreparedPrompt, Prompts
from inference_service.backend.rates import Amounts, RateLimits
from inference_service.backend.rendering import rendered
from inference_service.backend.run import run
from inference_service.backend.sampling import check_token_ids
from inference_service.backend.served_model import Model
from inference_service.backend.token_lists import NO_LISTS, TokenLists, token_lists
from inference_service.backend.tool_forms import form_field
from inference_service.backend.turn import Shared, Turn
from inference_service.decisions import DecisionRequest, Decisions
from inference_service.domain import Delta, Event, Finished, Request, forget_files
from inference_service.engine_client.interface import Engine, EngineState
from inference_service.engine_protocol.messages import ChoiceOutput
from inference_service.errors import EngineUnavailableError, ModelLoadingError
from inference_service.grammar.checker import ConstraintChecker
from inference_service.media.prepare import MediaPreparer, PreparedMedia
from inference_service.media.turn import set_turn
from inference_service.metrics import families
from inference_service.metrics.requests import current_request
from inference_service.settings import ServiceSettings
from inference_service.text.output.answer import Answer


_CHARACTERS_HERE: Final = 2048
"""Text that is read for boxes in the event loop: a few milliseconds, some ten of nothing but braces."""


class Answering:
    """Answers admitted requests, each with its turn, by one engine.

    Args:
        settings: The operator's settings.
        model: The model.
        engine: The engine.
        media: Prepares the media of requests.
        prompts: Makes their prompts.
        constraints: Tries their constraints.
        rates: Counts the bytes of their images, and the tokens of their prompts and answers.
        shared: What they share.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        model: Model,
        engine: Engine,
        *,
        media: MediaPreparer,
        prompts: Prompts,
        constraints: ConstraintChecker,
        rates: RateLimits,
        shared: Shared,
    ) -> None:
        self._model = model
        self._engine = engine
        self._media = media
        self._prompts = prompts
        self._constraints = constraints
        self._rates = rates
        self._shared = shared
        self._composer = Composer(
            model,
            operator_defaults(settings).over(model.defaults),
            strict_max_tokens=settings.strict_max_tokens,
        )

    def check(self, request: Request) -> None:
        """Checks what depends on the model, but not on the prompt.

        Raises:
            ServiceError: The model cannot do it.
        """
        check_token_ids(request, self._model.vocab_size)
        check_grounding(request, self._model.box_notation)

    def turn(self, request: Request, admitted: AdmittedRequest, size: int | None = None) -> Turn:
        """The turn of a request with so many answers or probes at a time; None = as many answers as it asks for."""
        return Turn(
            admitted,
            size=request.n if size is None else size,
            pixel_bytes=self._media.max_pixel_bytes(request),
            shared=self._shared,
        )

    async def prepare(
        self, request: Request, admitted: AdmittedRequest, turn: Turn
    ) -> PreparedPrompt:
        """The prompt of a request, with its media.

        Raises:
            ServiceError: Media or prompt are refused.
        """
        media = await self._prepare_media(request, admitted, turn)
        return await self._prompts.prepare(request, media, admitted)

    async def render(self, request: Request, admitted: AdmittedRequest, turn: Turn) -> Rendered:
        """The prompt of a request as callers see it, with the errors that `generate` would have; see `Backend`."""
        # First, as in `generate`: a request must have the same error in both.
        context_tokens = self._context_tokens()
        async with admitted.abortable():
            caller = admitted.caller
            checked = await with_form(
                request, self._model, self._prompts, self._constraints, caller
            )
            await self._token_lists(request, caller)
        prepared = await self.prepare(checked, admitted, turn)
        options = self._composer.options(request, prepared, context_tokens)
        form_begins_after(checked, prepared, self._model.tokenizer)
        whole = dataclasses.replace(request, return_prompt_token_ids=True, return_prompt_text=True)
        return rendered(self._composer.started(whole, prepared, options), prepared.prompt)

    async def generate(
        self, request: Request, admitted: AdmittedRequest, turn: Turn
    ) -> AsyncGenerator[Event, None]:
        """Yields the events of a request; closing the iterator aborts it in the engine. See `Backend`."""
        context_tokens = self._context_tokens()
        asked_in = form_field(request)
        async with admitted.abortable():
            caller = admitted.caller
            request = await with_form(
                request, self._model, self._prompts, self._constraints, caller
            )
            lists = await self._token_lists(request, caller)
        media = await self._prepare_media(request, admitted, turn)
        self._count_images(admitted.caller, media)
        prepared = await self._prompts.prepare(request, media, admitted)
        del media  # its pixels are freed when the engine has those of `prepared`
        options = self._composer.options(request, prepared, context_tokens)
        if not admitted.aborted:
            async with admitted.abortable():
                await turn.reserve_tokens(prepared.usage.prompt_tokens, options.max_tokens)
        # Now, and not at its end, to which a client need not stay.
        self._rates.take(admitted.caller, Amounts(tokens=prepared.usage.prompt_tokens))
        engine_request = self._composer.engine_request(request, admitted, prepared, options, lists)
        answers = new_answers(request, prepared, self._model, prepared.infos)
        events = run(
            self._engine,
            engine_request,
            prepared,
            answers,
            request.prompt_field,
            form_field=asked_in,
            begun=turn.free_pixels,
            counted=functools.partial(self._count, admitted.caller),
            computed=turn.leave,
            aborted=lambda: admitted.aborted,
            push=functools.partial(self._push, admitted.caller),
        )
        async with contextlib.aclosing(events):
            # The engine begins now, whether the client reads or not: it would keep its place in the batch for nothing.
            first = asyncio.ensure_future(anext(events, None))
            try:
                yield self._composer.started(request, prepared, options)
                event = await first
            finally:
                first.cancel()
                await asyncio.gather(first, return_exceptions=True)
            while event is not None:
                yield event
                event = await anext(events, None)

    async def decide(
        self,
        request: DecisionRequest,
        admitted: AdmittedRequest,
        turn: Turn,
        prepared: Callable[[], None],
    ) -> Decisions:
        """Decides questions, as many at a time as the turn has places; see `Backend`."""
        builder = self._model.decision_prompts()
        context_tokens = self._context_tokens()
        media = await self._prepare_media(request.with_all_images, admitted, turn)
        self._count_images(admitted.caller, media)
        steps = builder.steps(request, media.images, context_tokens, self._prompts.min_tokens)
        prompts = None
        # Other callers take their turns between steps, and it may be cancelled.
        while prompts is None:
            prompts = await self._prompts.run(
                request.num_characters, admitted.caller, lambda: next(steps)
            )
        prepared()
        check_lengths(request.questions, prompts, context_tokens)
        async with admitted.abortable():
            await turn.reserve_tokens(prompts.max_tokens(turn.size), 0)
        usage = usage_of(prompts, media.video_tokens)
        self._rates.take(admitted.caller, Amounts(tokens=usage.prompt_tokens))
        current_request().prompted(usage)
        return await run_decisions(
            self._engine, request, prompts, media, admitted, at_once=turn.size
        )

    async def _push(
        self, caller: str, answer: Answer, output: ChoiceOutput
    ) -> Iterable[Delta | Finished]:
        """Gives an output to an answer; if it has ended and is long, reads its boxes in a thread."""
        characters = answer.characters_read
        if characters <= _CHARACTERS_HERE:
            return answer.push(output)
        events = list(answer.push(output, reads_boxes=False))
        if answer.unread is None:
            return events
        found = await self._prompts.run(characters, caller, answer.unread)
        return [
            dataclasses.replace(event, groundings=found) if isinstance(event, Finished) else event
            for event in events
        ]

    def _count_images(self, caller: str, media: PreparedMedia) -> None:
        """Counts images once they are decoded."""
        pixel_bytes = sum(memoryview(image.pixels).nbytes for image in media.images)
        self._rates.take(caller, Amounts(image_bytes=pixel_bytes))

    def _count(self, caller: str, tokens: int) -> None:
        """Counts tokens of answers as the engine computes them: a client may leave without reading them."""
        families.GENERATION_TOKENS.inc(tokens)
        self._rates.take(caller, Amounts(tokens=tokens))

    async def _token_lists(self, request: Request, caller: str) -> TokenLists:
        """The lists of tokens and words to which a request restricts its answers."""
        sampling, model = request.sampling, self._model
        allowed, words = sampling.allowed_token_ids or (), sampling.bad_words or ()
        if not (allowed or words):
            return NO_LISTS
        return await self._prompts.run(
            len(allowed) + sum(map(len, words)),
            caller,
            lambda: token_lists(sampling, model.tokenizer, model.vocab_size),
        )

    async def _prepare_media(
        self, request: Request, admitted: AdmittedRequest, turn: Turn
    ) -> PreparedMedia:
        """Prepares media; an abort ends only what may take long: the wait for the turn, and the media."""
        state = self._engine.ready
        if state is not None:
            await self._prompts.refuse_too_long(request, state.max_model_len, admitted.caller)
        set_turn(turn.decoding)
        try:
            async with admitted.abortable():
                media = await self._media.prepare(request, admitted.caller)
                await turn.arrive()
        finally:
            forget_files(request)
        turn.decoded(sum(len(image.pixels) for image in media.images))
        return media

    def _context_tokens(self) -> int:
        """The context window of the engine in tokens; smaller than the model's if memory is short."""
        state, ready = self._engine.state, self._engine.ready
        if state is EngineState.READY and ready is not None:
            self._shared.hold_tokens(ready.kv_pages_total * ready.kv_page_tokens)
            return ready.max_model_len
        if state is EngineState.STARTING:
            raise ModelLoadingError("The model is loading; try again later.", retry_after_s=5.0)
        if state in (EngineState.RESTARTING, EngineState.SILENT):
            raise EngineUnavailableError(
                "The engine is restarting; try again later.", retry_after_s=2.0
            )
        raise EngineUnavailableError("The engine has failed and will not be restarted.")
