"""Translates the JSON of `/v1/completions` to the proto and back: pure functions.

Each prompt of a request becomes a separate proto request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
import re
from typing import Any, Final

from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from rest_adapter.errors import ApiError, invalid, too_large
from rest_adapter.media import ImageSources
from rest_adapter.openai import answer
from rest_adapter.openai.completions.logprobs import LegacyLogprobs
from rest_adapter.openai.completions.schema import CompletionRequest
from rest_adapter.openai.constraints import form_param
from rest_adapter.openai.field_paths import own_param, plain_param
from rest_adapter.openai.image_parts import read_image_url
from rest_adapter.openai.sampling import set_options
from rest_adapter.rendered import rendered_prompt


MAX_PROMPTS: Final = 64
MAX_COMMON_BYTES: Final = 2**20
"""Maximum size of what several prompts share: the ids of a whole vocabulary, a schema and biases take less."""

_IMAGE_PATH: Final = re.compile(r"images\[(\d+)\](?:\.(.*))?$")

Prompt = str | Sequence[int]


def prompts_of(request: CompletionRequest) -> list[Prompt]:
    """The prompts of a request, in order.

    Raises:
        ApiError: There are no prompts, or too many.
    """
    prompt = request.prompt
    several = isinstance(prompt, list) and not (prompt and isinstance(prompt[0], int))
    prompts: list[Any] = prompt if several and isinstance(prompt, list) else [prompt]
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise invalid(
            f"'prompt' has {len(prompts)} prompts, but must have 1 to {MAX_PROMPTS}.", "prompt"
        )
    return prompts


def common_spec(
    request: CompletionRequest, *, max_media_bytes: int
) -> completion_pb.CompletionSpec:
    """The proto request without a prompt and without an id.

    Args:
        request: The validated JSON.
        max_media_bytes: Maximum total bytes of all decoded images.

    Raises:
        ApiError: An image's URI cannot be decoded, the images are too large, there are images for several prompts, the
            fields of several prompts are too large, or a field cannot be converted.
    """
    count = len(prompts_of(request))
    common = _common(request)
    sources = ImageSources(max_media_bytes)
    for index, value in enumerate(request.images or ()):
        read_image_url(value, f"images[{index}]")[0].set(common.images.add(), sources)
    if common.images and count > 1:
        raise invalid(f"'images' requires a single prompt, but the request has {count}.", "images")
    if count > 1 and common.ByteSize() > MAX_COMMON_BYTES:
        raise _too_large_to_repeat(request, common.ByteSize(), count)
    return common


def copies_bytes(request: CompletionRequest, common: completion_pb.CompletionSpec) -> int:
    """How many bytes `to_specs` copies."""
    return common.ByteSize() * (len(prompts_of(request)) - 1)


def to_specs(
    request: CompletionRequest, common: completion_pb.CompletionSpec, request_id: str
) -> list[completion_pb.CompletionSpec]:
    """Creates one proto request per prompt.

    Args:
        request: The validated JSON.
        common: All but the prompts; changed and used if there is only one.
        request_id: The request's id; for several prompts, `-0`, `-1`, ... is appended.
    """
    prompts = prompts_of(request)
    specs = []
    for index, prompt in enumerate(prompts):
        spec = common
        if len(prompts) > 1:  # without images, which are large
            spec = completion_pb.CompletionSpec()
            spec.CopyFrom(common)
        spec.request_id = request_id if len(prompts) == 1 else f"{request_id}-{index}"
        if isinstance(prompt, str):
            spec.text = prompt
        else:
            spec.token_ids.ids.extend(prompt)
        specs.append(spec)
    return specs


def _too_large_to_repeat(request: CompletionRequest, size: int, count: int) -> ApiError:
    """The error for several prompts with large other fields, of which each prompt has a copy."""
    names = request.model_fields_set - {"prompt"}
    largest = max(names, key=lambda name: len(request.model_dump_json(include={name})))
    return too_large(
        f"The fields beside 'prompt' have {size} bytes, but at most {MAX_COMMON_BYTES} where there are several"
        f" prompts ({count}), each of which needs a copy; the largest field is '{largest}'.",
        largest,
    )


def only_prompt(request: CompletionRequest) -> bool:
    """Whether only the prompt is requested (to score it): `echo` with `max_tokens` 0."""
    return bool(request.echo) and request.max_tokens == 0


def _common(request: CompletionRequest) -> completion_pb.CompletionSpec:
    spec = completion_pb.CompletionSpec()
    set_options(spec, request, None)
    if only_prompt(request):
        # The engine always generates at least one token; `without_answer` drops it.
        spec.sampling.max_tokens = 1
    if request.logprobs is not None:
        spec.logprobs.top_logprobs = request.logprobs
    echoed = request.logprobs if request.echo else None
    wanted = [count for count in (request.prompt_logprobs, echoed) if count is not None]
    if wanted:
        spec.logprobs.prompt_logprobs = max(wanted)
    spec.response.return_prompt_text = bool(request.echo)
    if request.stream and request.stream_options and request.stream_options.continuous_usage_stats:
        spec.response.return_token_ids = True  # to count them
    return spec


@dataclass(frozen=True, slots=True)
class FieldPaths:
    """Maps proto fields of one request to fields of its JSON."""

    request: CompletionRequest

    def param_of(self, field: str) -> str | None:
        """The JSON field of a proto field: `prompt` for `spec.token_ids`."""
        path = field.removeprefix("spec.")
        if match := _IMAGE_PATH.match(path):
            return self._image_param(int(match[1]), match[2] or "")
        if path in ("text", "token_ids"):
            return "prompt"
        asked = form_param(self.request, path) or own_param(self.request, path)
        path = asked or plain_param(path)
        return "logprobs" if path == "top_logprobs" else path or None

    def _image_param(self, index: int, rest: str) -> str:
        images = self.request.images or []
        if not 0 <= index < len(images):
            return "images"
        image, _ = read_image_url(images[index], f"images[{index}]")
        return image.param(rest) or own_param(self.request, rest) or image.param("")


def completion(
    responses: Sequence[completion_pb.CreateCompletionResponse],
    request: CompletionRequest,
    request_id: str,
    version: str,
) -> dict[str, Any]:
    """OpenAI's `text_completion`, with choices in order of the prompts.

    Raises:
        ApiError: An answer was aborted.
    """
    if only_prompt(request):
        responses = list(map(_without_answers, responses))
    choices: list[dict[str, Any]] = []
    for prompt, response in zip(prompts_of(request), responses, strict=True):
        choices += [
            _choice(choice, response.started, prompt, request, len(choices))
            for choice in response.choices
        ]
    for index, choice in enumerate(choices):
        choice["index"] = index
    return head(responses[0].started, request_id, version) | {
        "choices": choices,
        "usage": usage([response.usage for response in responses]),
    }


def rendered(
    found: Sequence[completion_pb.RenderCompletionResponse],
    request: CompletionRequest,
    *,
    strings: bool,
) -> list[dict[str, Any]]:
    """The prompts, in order; with `strings`, their tokens as the vocabulary writes them, too."""
    return [
        rendered_prompt(
            each,
            usage([each.started.prompt_usage]),
            stream=bool(request.stream),
            only_prompt=only_prompt(request),
            cache_salt=request.cache_salt,
            strings=strings,
        )
        for each in found
    ]


def _without_answers(
    response: completion_pb.CreateCompletionResponse,
) -> completion_pb.CreateCompletionResponse:
    return completion_pb.CreateCompletionResponse(
        started=response.started,
        choices=[
            generation_pb.Choice(index=choice.index, finish_reason=usage_pb.FINISH_REASON_LENGTH)
            for choice in response.choices
        ],
        usage=_without_completion(response.usage),
    )


def without_answer(
    event: completion_pb.StreamCompletionResponse,
) -> completion_pb.StreamCompletionResponse:
    """An event of a stream without the tokens generated after the prompt."""
    match event.WhichOneof("event"):
        case "delta":
            delta = generation_pb.Delta(prompt_logprobs=event.delta.prompt_logprobs)
            return completion_pb.StreamCompletionResponse(delta=delta)
        case "finished":
            finished = generation_pb.Finished(
                choice_index=event.finished.choice_index, reason=usage_pb.FINISH_REASON_LENGTH
            )
            return completion_pb.StreamCompletionResponse(finished=finished)
        case "usage":
            usage = _without_completion(event.usage)
            return completion_pb.StreamCompletionResponse(usage=usage)
    return event


def _without_completion(usage: usage_pb.Usage) -> usage_pb.Usage:
    rest = usage_pb.Usage()
    rest.CopyFrom(usage)
    rest.completion_tokens, rest.total_tokens = 0, usage.prompt_tokens
    return rest


def head(started: generation_pb.Started, request_id: str, version: str) -> dict[str, Any]:
    """The common fields of a complete answer and of all chunks of a stream."""
    return {
        "id": f"cmpl-{request_id}",
        "object": "text_completion",
        "created": started.created,
        "model": started.model,
        "system_fingerprint": answer.fingerprint(started.model, version),
    }


def usage(values: Sequence[usage_pb.Usage]) -> dict[str, Any]:
    """OpenAI's `usage`, summed over all prompts."""
    total = usage_pb.Usage()
    for value in values:
        total.prompt_tokens += value.prompt_tokens
        total.completion_tokens += value.completion_tokens
        total.total_tokens += value.total_tokens
        total.cached_tokens += value.cached_tokens
        total.cache_write_tokens += value.cache_write_tokens
        total.reasoning_tokens += value.reasoning_tokens
        total.prompt_details.extend(value.prompt_details)
    return answer.usage(total)


def _choice(
    choice: generation_pb.Choice,
    started: generation_pb.Started,
    prompt: Prompt,
    request: CompletionRequest,
    index: int,
) -> dict[str, Any]:
    form = LegacyLogprobs(request.logprobs or 0)
    echo = request.echo
    if echo:
        form.add_prompt(started)
    form.add(choice.logprobs)
    document: dict[str, Any] = {
        "index": index,
        "text": (echoed_text(prompt, started) if echo else "") + choice.text,
        "logprobs": None if request.logprobs is None else form.take(),
        "finish_reason": answer.finish_reason(choice.finish_reason),
        "stop_reason": answer.stop_reason(choice.stop_detail),
    }
    if request.return_token_ids:
        document["token_ids"] = list(choice.token_ids)
    if request.grounding:
        document["grounding"] = answer.groundings(choice.groundings)
    if choice.index == 0:
        document |= prompt_fields(started, request)
        document["effective_max_tokens"] = max_tokens(started, request)
    return document


def max_tokens(started: generation_pb.Started, request: CompletionRequest) -> int:
    """Maximum tokens of the answer; the service's is 1 where none is wanted."""
    return 0 if only_prompt(request) else answer.max_tokens(started)


def prompt_fields(started: generation_pb.Started, request: CompletionRequest) -> dict[str, Any]:
    """The requested fields about a prompt in its first choice."""
    fields: dict[str, Any] = {}
    if request.return_token_ids:
        fields["prompt_token_ids"] = list(started.prompt_token_ids)
    if request.prompt_logprobs is not None:
        entries = _cut(started.prompt_logprobs, request.prompt_logprobs)
        fields["prompt_logprobs"] = answer.prompt_logprobs(entries)
    return fields


def _cut(entries: Sequence[usage_pb.LogprobEntry], count: int) -> Iterator[usage_pb.LogprobEntry]:
    """The entries with `count` most likely tokens: `echo` may have requested more than `prompt_logprobs`."""
    for entry in entries:
        yield usage_pb.LogprobEntry(
            chosen=entry.chosen if entry.HasField("chosen") else None, top=entry.top[:count]
        )


def echoed_text(prompt: Prompt, started: generation_pb.Started) -> str:
    """The prompt as the caller wrote it, or the text of its ids."""
    return prompt if isinstance(prompt, str) else started.prompt_text
