"""Converts the events of an answer to proto messages."""

from __future__ import annotations

from collections.abc import AsyncIterable
from dataclasses import dataclass, field
from typing import Any

from inference_service.domain import (
    Delta,
    EndReason,
    Event,
    Finished,
    Grounding,
    ImageInfo,
    LogprobEntry,
    Request,
    Started,
    StopTrigger,
    TokenLogprob,
    TokenUsage,
    ToolCallDelta,
)
from inference_service.grpc_api.logprob_room import LogprobRoom
from inference_service.grpc_api.packed import Packed, embedded
from inference_service.sampling import SCALARS, Sampling
from qwenvl.growing import GrowingTexts
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from qwenvl.inference.v1 import sampling_pb2 as sampling_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb


_REASONS = {
    EndReason.STOP: usage_pb.FINISH_REASON_STOP,
    EndReason.TOOL_CALLS: usage_pb.FINISH_REASON_TOOL_CALLS,
    EndReason.LENGTH: usage_pb.FINISH_REASON_LENGTH,
    EndReason.CONTEXT_LENGTH: usage_pb.FINISH_REASON_CONTEXT_LENGTH,
    EndReason.ABORTED: usage_pb.FINISH_REASON_ABORTED,
}


@dataclass(slots=True)
class UnaryAnswer:
    """A unary response, collected from all events of a request.

    Its log probabilities may be most of it, as some hundred thousand small messages, and are serialised as they come.

    Attributes:
        started: The field without them.
        choices: The field without them.
        usage: The field.
        prompt_logprobs: The rest of `started`, serialised in parts.
        logprobs: The rest of each choice, serialised in parts.
    """

    started: generation_pb.Started = field(default_factory=generation_pb.Started)
    choices: list[generation_pb.Choice] = field(default_factory=list)
    usage: usage_pb.Usage = field(default_factory=usage_pb.Usage)
    prompt_logprobs: list[bytes] = field(default_factory=list)
    logprobs: list[list[bytes]] = field(default_factory=list)

    def packed(self) -> Packed:
        """The CreateChatCompletionResponse, or the CreateCompletionResponse, whose fields have the same numbers."""
        number = chat_pb.CreateChatCompletionResponse
        parts = embedded(
            number.STARTED_FIELD_NUMBER, [self.started.SerializeToString(), *self.prompt_logprobs]
        )
        for choice, logprobs in zip(self.choices, self.logprobs, strict=True):
            whole = [choice.SerializeToString(), *logprobs]
            parts += embedded(number.CHOICES_FIELD_NUMBER, whole)
        parts += embedded(number.USAGE_FIELD_NUMBER, [self.usage.SerializeToString()])
        return Packed(b"".join(parts))


async def gather(events: AsyncIterable[Event], request: Request) -> UnaryAnswer:
    """Collects the events of a request.

    Args:
        events: All of them, in their order.
        request: The request; it names the model by its canonical name.

    Raises:
        InvalidArgumentError: Its log probabilities are more than a message holds.
    """
    answer = UnaryAnswer()
    texts: list[GrowingTexts] = []
    room = LogprobRoom(request)
    async for event in events:
        match event:
            case Started():
                room.begin(event.usage)
                answer.started = started_message(event, request.model)
                answer.choices = [generation_pb.Choice(index=index) for index in range(event.n)]
                answer.logprobs = [[] for _ in range(event.n)]
                texts = [GrowingTexts() for _ in range(event.n)]
            case Delta():
                _gather(answer, texts[event.choice_index], event, room)
            case Finished():
                choice = answer.choices[event.choice_index]
                choice.finish_reason = _REASONS[event.reason]
                choice.stop_detail.CopyFrom(_stop_detail(event.trigger))
                choice.groundings.extend(map(_grounding, event.groundings))
            case TokenUsage():
                answer.usage = usage_message(event)
    for choice, pieces in zip(answer.choices, texts, strict=True):
        pieces.fill(choice)
    return answer


def _gather(answer: UnaryAnswer, texts: GrowingTexts, delta: Delta, room: LogprobRoom) -> None:
    choice = answer.choices[delta.choice_index]
    texts.text.append(delta.text)
    texts.reasoning.append(delta.reasoning)
    for call in delta.tool_calls:
        if call.index == len(choice.tool_calls):
            choice.tool_calls.add(id=call.id, name=call.name)
        texts.add_arguments(call.index, call.arguments)
    choice.token_ids.extend(delta.token_ids)
    of_prompt = list(map(_logprob_entry, delta.prompt_logprobs))
    of_answer = list(map(_logprob_entry, delta.logprobs))
    room.take(of_prompt, of_answer)
    if of_prompt:
        part = generation_pb.Started(prompt_logprobs=of_prompt)
        answer.prompt_logprobs.append(part.SerializeToString())
    if of_answer:
        rest = generation_pb.Choice(logprobs=of_answer)
        answer.logprobs[delta.choice_index].append(rest.SerializeToString())


def event_fields(event: Event, model: str) -> dict[str, Any]:
    """The fields of one message of StreamChatCompletion or StreamCompletion; `model` is the canonical name."""
    match event:
        case Started():
            return {"started": started_message(event, model)}
        case Delta():
            delta = generation_pb.Delta(
                choice_index=event.choice_index,
                text=event.text,
                reasoning=event.reasoning,
                tool_calls=map(_call_delta, event.tool_calls),
                token_ids=event.token_ids,
                logprobs=map(_logprob_entry, event.logprobs),
                prompt_logprobs=map(_logprob_entry, event.prompt_logprobs),
            )
            return {"delta": delta}
        case Finished():
            finished = generation_pb.Finished(
                choice_index=event.choice_index,
                reason=_REASONS[event.reason],
                stop_detail=_stop_detail(event.trigger),
                groundings=map(_grounding, event.groundings),
            )
            return {"finished": finished}
        case TokenUsage():
            return {"usage": usage_message(event)}


def _call_delta(delta: ToolCallDelta) -> generation_pb.ToolCallDelta:
    return generation_pb.ToolCallDelta(
        index=delta.index, id=delta.id, name=delta.name, arguments_json=delta.arguments
    )


def started_message(event: Started, model: str) -> generation_pb.Started:
    """The beginning of an answer as a proto message; `model` is the canonical name."""
    settings = generation_pb.EffectiveSettings(
        sampling=_sampling(event.sampling),
        stop=sampling_pb.StopOptions(
            strings=event.stop_strings,
            token_ids=event.stop_token_ids,
            include_stop_string=event.include_stop_string,
        ),
        n=event.n,
    )
    return generation_pb.Started(
        request_id=event.request_id,
        model=model,
        created=event.created,
        effective_settings=settings,
        prompt_usage=usage_message(event.usage),
        images=map(image_message, event.images),
        prompt_token_ids=event.prompt_token_ids,
        prompt_text=event.prompt_text,
    )


def _sampling(sampling: Sampling) -> sampling_pb.SamplingOptions:
    message = sampling_pb.SamplingOptions(
        logit_bias=dict(sampling.logit_bias),
        allowed_token_ids=sampling.allowed_token_ids,
        bad_words=sampling.bad_words,
    )
    for name in SCALARS:
        setattr(message, name, getattr(sampling, name))
    return message


def usage_message(usage: TokenUsage) -> usage_pb.Usage:
    """The usage as a proto message."""
    counts = {
        usage_pb.MODALITY_TEXT: usage.prompt_tokens - usage.image_tokens - usage.video_tokens,
        usage_pb.MODALITY_IMAGE: usage.image_tokens,
        usage_pb.MODALITY_VIDEO: usage.video_tokens,
    }
    return usage_pb.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        prompt_details=[
            usage_pb.ModalityTokenCount(modality=modality, tokens=tokens)
            for modality, tokens in counts.items()
            if tokens
        ],
    )


def image_message(info: ImageInfo) -> usage_pb.ProcessedImage:
    """The processed image as a proto message."""
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


def _grounding(found: Grounding) -> usage_pb.Grounding:
    box = usage_pb.BoundingBox(
        x_min=found.x_min, y_min=found.y_min, x_max=found.x_max, y_max=found.y_max
    )
    return usage_pb.Grounding(label=found.label, box=box, image_index=found.image_index)


def _logprob_entry(entry: LogprobEntry) -> usage_pb.LogprobEntry:
    chosen = None if entry.chosen is None else _token_logprob(entry.chosen)
    return usage_pb.LogprobEntry(
        chosen=chosen, top=map(_token_logprob, entry.top), is_end=entry.is_end
    )


def _token_logprob(token: TokenLogprob) -> usage_pb.TokenLogprob:
    return usage_pb.TokenLogprob(
        token_id=token.token_id,
        token=token.text,
        bytes=token.data,
        logprob=token.logprob,
        rank=token.rank,
    )
