"""Composes what the engine gets of a request, and what the caller is told when its answers begin."""

from __future__ import annotations

import time

from inference_service.backend.admission import AdmittedRequest
from inference_service.backend.forms import form_begins_after
from inference_service.backend.prompts import PreparedPrompt
from inference_service.backend.sampling import effective_options, engine_params, wanted_tokens
from inference_service.backend.served_model import Model
from inference_service.backend.token_lists import TokenLists
from inference_service.domain import Request, Started
from inference_service.engine_protocol.messages import EngineRequest
from inference_service.sampling import Sampling, SamplingOptions
from inference_service.text.output.tool_calls import forbidden_tokens


class Composer:
    """Composes requests to one model.

    Args:
        model: The model.
        defaults: Settings of the operator and the model, for what a request leaves open.
        strict_max_tokens: See `effective_options`.
    """

    def __init__(self, model: Model, defaults: SamplingOptions, *, strict_max_tokens: bool) -> None:
        self._model = model
        self._defaults = defaults
        self._strict_max_tokens = strict_max_tokens

    def options(self, request: Request, prepared: PreparedPrompt, max_model_len: int) -> Sampling:
        """The effective settings of a request; see `effective_options`."""
        return effective_options(
            request,
            self._defaults,
            prompt_tokens=prepared.usage.prompt_tokens,
            max_model_len=max_model_len,
            strict_max_tokens=self._strict_max_tokens,
        )

    def engine_request(
        self,
        request: Request,
        admitted: AdmittedRequest,
        prepared: PreparedPrompt,
        options: Sampling,
        lists: TokenLists,
    ) -> EngineRequest:
        """The request for the engine.

        Raises:
            UnsupportedParameterError: See `form_begins_after`.
        """
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
                lists=lists,
            ),
            constraint=request.constraint,
            constraint_after=form_begins_after(request, prepared, self._model.tokenizer),
            source=prepared.prompt.source,
        )

    def started(self, request: Request, prepared: PreparedPrompt, options: Sampling) -> Started:
        """What is known when the answers begin."""
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
