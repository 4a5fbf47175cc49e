"""ChatService: the proto's face of `Completions`.

Owns the translation of events into messages. Must not know how an answer comes about.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
import contextlib
from typing import Any

import grpc.aio

from inference_service.domain import (
    ChatRequest,
    Delta,
    EndReason,
    Event,
    Finished,
    LogprobEntry,
    PictureInfo,
    Started,
    StopTrigger,
    TokenLogprob,
    TokenUsage,
)
from inference_service.errors import DeadlineError, ModelNotFoundError
from inference_service.server.completion import Completions
from inference_service.server.convert import chat_request
from inference_service.server.interceptors import request_id_of_call
from inference_service.settings import ServiceSettings
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc
from qwenvl.inference.v1 import sampling_pb2 as sampling_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb


_REASONS = {
    EndReason.STOP: usage_pb.FINISH_REASON_STOP,
    EndReason.LENGTH: usage_pb.FINISH_REASON_LENGTH,
    EndReason.CONTEXT_LENGTH: usage_pb.FINISH_REASON_CONTEXT_LENGTH,
    EndReason.ABORTED: usage_pb.FINISH_REASON_ABORTED,
}

Context = grpc.aio.ServicerContext[Any, Any]


class ChatServicer(chat_grpc.ChatServiceServicer):
    """Answers conversations."""

    def __init__(self, completions: Completions, settings: ServiceSettings) -> None:
        self._completions = completions
        self._settings = settings

    async def CreateChatCompletion(  # noqa: N802 - the proto's name
        self, request: chat_pb.CreateChatCompletionRequest, context: Context
    ) -> chat_pb.CreateChatCompletionResponse:
        """Gathers the events of a request into one message."""
        response = chat_pb.CreateChatCompletionResponse()
        choices: dict[int, chat_pb.Choice] = {}
        async with contextlib.aclosing(self._events(request.spec, context)) as events:
            async for event in events:
                match event:
                    case Started():
                        response.started.CopyFrom(_started(event, self._completions.model.name))
                        for index in range(event.n):
                            choices[index] = response.choices.add(index=index)
                    case Delta():
                        _gather(choices[event.choice_index], response.started, event)
                    case Finished():
                        choice = choices[event.choice_index]
                        choice.finish_reason = _REASONS[event.reason]
                        choice.stop_detail.CopyFrom(_stop_detail(event.trigger))
                    case TokenUsage():
                        response.usage.CopyFrom(_usage(event))
        return response

    async def StreamChatCompletion(  # noqa: N802
        self, request: chat_pb.StreamChatCompletionRequest, context: Context
    ) -> AsyncIterator[chat_pb.StreamChatCompletionResponse]:
        """Sends every event as it comes."""
        name = self._completions.model.name
        async with contextlib.aclosing(self._events(request.spec, context)) as events:
            async for event in events:
                yield _stream_event(event, name)

    async def CountTokens(  # noqa: N802
        self, request: chat_pb.CountTokensRequest, context: Context
    ) -> chat_pb.CountTokensResponse:
        """Does all that precedes the engine."""
        asked = self._domain_request(request.spec)
        async with _until(self._deadline(context)):
            prepared = await self._completions.count(asked)
        ids = prepared.prompt.token_ids if asked.return_prompt_token_ids else ()
        return chat_pb.CountTokensResponse(
            usage=_usage(prepared.usage),
            images=map(_picture, prepared.infos),
            prompt_token_ids=ids,
        )

    async def _events(
        self, spec: chat_pb.ChatCompletionSpec, context: Context
    ) -> AsyncGenerator[Event, None]:
        asked = self._domain_request(spec)
        deadline = self._deadline(context)
        async with contextlib.aclosing(self._completions.answer(asked)) as events:
            while True:
                # Never across the yield: there the task is gRPC's, which would end the call without a status.
                async with _until(deadline):
                    event = await anext(events, None)
                if event is None:
                    return
                yield event

    def _domain_request(self, spec: chat_pb.ChatCompletionSpec) -> ChatRequest:
        model = self._completions.model
        if spec.model not in model.names:
            raise ModelNotFoundError(
                f"The model {spec.model[:100]!r} is not served here.",
                field="spec.model",
                metadata={"model": spec.model[:100]},
            )
        return chat_request(spec, model.name, request_id_of_call.get(), self._settings)

    def _deadline(self, context: Context) -> float | None:
        """When a request without a deadline ends, in the loop's time; a caller's own cancels the call by itself."""
        if context.time_remaining() is not None:
            return None
        return asyncio.get_running_loop().time() + self._settings.request_timeout_s


@contextlib.asynccontextmanager
async def _until(deadline: float | None) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise DeadlineError("The request took too long.") from None


def _gather(choice: chat_pb.Choice, started: chat_pb.Started, delta: Delta) -> None:
    choice.text += delta.text
    choice.token_ids.extend(delta.token_ids)
    choice.logprobs.extend(map(_logprob_entry, delta.logprobs))
    started.prompt_logprobs.extend(map(_logprob_entry, delta.prompt_logprobs))


def _stream_event(event: Event, model: str) -> chat_pb.StreamChatCompletionResponse:
    match event:
        case Started():
            return chat_pb.StreamChatCompletionResponse(started=_started(event, model))
        case Delta():
            delta = chat_pb.Delta(
                choice_index=event.choice_index,
                text=event.text,
                token_ids=event.token_ids,
                logprobs=map(_logprob_entry, event.logprobs),
                prompt_logprobs=map(_logprob_entry, event.prompt_logprobs),
            )
            return chat_pb.StreamChatCompletionResponse(delta=delta)
        case Finished():
            finished = chat_pb.Finished(
                choice_index=event.choice_index,
                reason=_REASONS[event.reason],
                stop_detail=_stop_detail(event.trigger),
            )
            return chat_pb.StreamChatCompletionResponse(finished=finished)
        case TokenUsage():
            return chat_pb.StreamChatCompletionResponse(usage=_usage(event))


def _started(event: Started, model: str) -> chat_pb.Started:
    options = event.sampling
    settings = chat_pb.EffectiveSettings(
        sampling=sampling_pb.SamplingOptions(
            temperature=options.temperature,
            top_p=options.top_p,
            top_k=options.top_k,
            min_p=options.min_p,
            repetition_penalty=options.repetition_penalty,
            presence_penalty=options.presence_penalty,
            frequency_penalty=options.frequency_penalty,
            seed=options.seed,
            max_tokens=options.max_tokens,
            min_tokens=options.min_tokens,
            ignore_eos=options.ignore_eos,
            logit_bias=dict(options.logit_bias),
        ),
        stop=sampling_pb.StopOptions(
            strings=event.stop_strings,
            token_ids=event.stop_token_ids,
            include_stop_string=event.include_stop_string,
        ),
        n=event.n,
    )
    return chat_pb.Started(
        request_id=event.request_id,
        model=model,
        created=event.created,
        effective_settings=settings,
        prompt_usage=_usage(event.usage),
        images=map(_picture, event.pictures),
        prompt_token_ids=event.prompt_token_ids,
    )


def _usage(usage: TokenUsage) -> usage_pb.Usage:
    counts = {
        usage_pb.MODALITY_TEXT: usage.prompt_tokens - usage.image_tokens,
        usage_pb.MODALITY_IMAGE: usage.image_tokens,
    }
    return usage_pb.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
        prompt_details=[
            usage_pb.ModalityTokenCount(modality=modality, tokens=tokens)
            for modality, tokens in counts.items()
            if tokens
        ],
    )


def _picture(info: PictureInfo) -> usage_pb.ProcessedImage:
    return usage_pb.ProcessedImage(
        original_width=info.original_width,
        original_height=info.original_height,
        processed_width=info.processed_width,
        processed_height=info.processed_height,
        tokens=info.tokens,
        uuid=info.uuid,
    )


def _stop_detail(trigger: StopTrigger) -> usage_pb.StopDetail:
    return usage_pb.StopDetail(
        eos_token_id=trigger.eos_token_id,
        stop_token_id=trigger.stop_token_id,
        stop_string=trigger.stop_string,
    )


def _logprob_entry(entry: LogprobEntry) -> usage_pb.LogprobEntry:
    chosen = None if entry.chosen is None else _token_logprob(entry.chosen)
    return usage_pb.LogprobEntry(chosen=chosen, top=map(_token_logprob, entry.top))


def _token_logprob(token: TokenLogprob) -> usage_pb.TokenLogprob:
    return usage_pb.TokenLogprob(
        token_id=token.token_id,
        token=token.text,
        bytes=token.data,
        logprob=token.logprob,
        rank=token.rank,
    )
