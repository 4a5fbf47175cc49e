"""The events of an answer of the fake service: each character is one token."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from qwenvl.fake.checks import Spec
from qwenvl.fake.model import FakeModel, last_text
from qwenvl.fake.tools import call_pieces
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb


REQUEST_ID: Final = "fake"
CREATED: Final = 1_700_000_000
_IMAGE_TOKENS: Final = 64
_PIECE: Final = 4
"""Characters of a delta."""


def events_of(model: FakeModel, spec: Spec) -> Iterator[dict[str, Any]]:
    """The fields of every event of an answer.

    Raises:
        Refused: The request is invalid, or was to fail.
    """
    reply = model.receive(spec)
    text, finished = _cut(reply.text, spec)
    choices = range(spec.n if spec.HasField("n") else 1)
    yield {"started": started_of(spec, model.names[0], len(choices))}
    for index in choices if (thought := reply.reasoning) else ():
        yield {"delta": generation_pb.Delta(choice_index=index, reasoning=thought)}
    for start in range(0, len(text), _PIECE):
        for index in choices:
            yield {"delta": _delta(spec, index, text[start : start + _PIECE])}
    calls = () if finished.reason != usage_pb.FINISH_REASON_STOP else reply.tool_calls
    for index in choices if calls else ():
        finished.reason = usage_pb.FINISH_REASON_TOOL_CALLS
        yield {"delta": generation_pb.Delta(choice_index=index, tool_calls=call_pieces(calls))}
    if spec.response.grounding:
        finished.groundings.extend(reply.groundings)
    for index in choices:
        finished.choice_index = index
        yield {"finished": finished}
    tokens = (len(text) + sum(len(call.arguments_json) for call in calls)) * len(choices)
    yield {"usage": usage_of(spec, tokens, len(thought) * len(choices))}


def started_of(spec: Spec, model: str, n: int) -> generation_pb.Started:
    """What is known when an answer begins."""
    settings = generation_pb.EffectiveSettings(sampling=spec.sampling, stop=spec.stop, n=n)
    response, prompt = spec.response, last_text(spec)
    return generation_pb.Started(
        request_id=spec.request_id or REQUEST_ID,
        model=model,
        created=CREATED,
        effective_settings=settings,
        prompt_usage=usage_of(spec, 0),
        images=[usage_pb.ProcessedImage(tokens=_IMAGE_TOKENS, uuid=i.uuid) for i in _images(spec)],
        prompt_token_ids=map(ord, prompt) if response.return_prompt_token_ids else (),
        prompt_text=prompt if response.return_prompt_text else "",
    )


def _delta(spec: Spec, index: int, piece: str) -> generation_pb.Delta:
    delta = generation_pb.Delta(choice_index=index, text=piece)
    if spec.response.return_token_ids:
        delta.token_ids.extend(map(ord, piece))
    if spec.logprobs.HasField("top_logprobs"):
        for character in piece:
            token = usage_pb.TokenLogprob(
                token_id=ord(character), token=character, bytes=character.encode(), rank=1
            )
            top = [token] * min(1, spec.logprobs.top_logprobs)
            delta.logprobs.append(usage_pb.LogprobEntry(chosen=token, top=top))
    return delta


def _cut(text: str, spec: Spec) -> tuple[str, generation_pb.Finished]:
    """Applies `stop` and `max_tokens`: the text, and why it ended."""
    ends = [(at, stop) for stop in spec.stop.strings if (at := text.find(stop)) >= 0]
    detail = usage_pb.StopDetail()
    reason = usage_pb.FINISH_REASON_STOP
    if ends:
        at, stop = min(ends)
        text = text[: at + len(stop) * spec.stop.include_stop_string]
        detail.stop_string = stop
    limit = spec.sampling.max_tokens if spec.sampling.HasField("max_tokens") else len(text) + 1
    if len(text) >= limit:
        text, reason, detail = text[:limit], usage_pb.FINISH_REASON_LENGTH, usage_pb.StopDetail()
    return text, generation_pb.Finished(reason=reason, stop_detail=detail)


def usage_of(spec: Spec, spoken_tokens: int, reasoning_tokens: int = 0) -> usage_pb.Usage:
    """What a request has cost so far."""
    text, images = len(last_text(spec)) + 1, len(_images(spec)) * _IMAGE_TOKENS
    counts = ((usage_pb.MODALITY_TEXT, text), (usage_pb.MODALITY_IMAGE, images))
    return usage_pb.Usage(
        prompt_tokens=text + images,
        completion_tokens=spoken_tokens + reasoning_tokens,
        reasoning_tokens=reasoning_tokens,
        total_tokens=text + images + spoken_tokens + reasoning_tokens,
        prompt_details=[
            usage_pb.ModalityTokenCount(modality=modality, tokens=tokens)
            for modality, tokens in counts
            if tokens
        ],
    )


def _images(spec: Spec) -> list[message_pb.Image]:
    if isinstance(spec, completion_pb.CompletionSpec):
        return list(spec.images)
    parts = (part for message in spec.messages for part in message.parts)
    return [part.image for part in parts if part.HasField("image")]
