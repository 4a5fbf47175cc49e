"""A deterministic inference service on a real gRPC server, for tests of the adapter.

It answers with the text of the last message, one character for each token. Texts that begin with a command do what
the command says: `hang`, `hang-after N`, `abort`, `fail REASON`, `fail-after N [REASON]`, `unreachable N`, `slow S`,
`hold` until `Seen.released`, and `script` of `scripted_answers`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
import grpc
from grpc_status import rpc_status

from qwenvl.errors import BY_REASON, DOMAIN
from qwenvl.inference.v1 import (
    chat_service_pb2 as chat_pb,
)
from qwenvl.inference.v1 import (
    chat_service_pb2_grpc as chat_grpc,
)
from qwenvl.inference.v1 import (
    completion_service_pb2 as completion_pb,
)
from qwenvl.inference.v1 import (
    completion_service_pb2_grpc as completion_grpc,
)
from qwenvl.inference.v1 import (
    decision_service_pb2 as decision_pb,
)
from qwenvl.inference.v1 import (
    generation_pb2 as generation_pb,
)
from qwenvl.inference.v1 import (
    model_service_pb2 as model_pb,
)
from qwenvl.inference.v1 import (
    model_service_pb2_grpc as model_grpc,
)
from qwenvl.inference.v1 import (
    usage_pb2 as usage_pb,
)
from tests.rest_adapter.fake_outputs import effective_settings
from tests.rest_adapter.scripted_answers import add_reasoning_and_calls, scripted_events


CREATED = 1_700_000_000
NAMES = ("demo", "org/model", "qwen-vl")
FAILED_FIELD = "spec.sampling.temperature"


@dataclass
class Seen:
    """What the service received."""

    specs: list[chat_pb.ChatCompletionSpec] = field(default_factory=list)
    completion_specs: list[completion_pb.CompletionSpec] = field(default_factory=list)
    decision_specs: list[decision_pb.DecisionSpec] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    calls: int = 0
    context_tokens: int = 2**31
    running: int = 0
    cancelled: int = 0
    released: bool = False


async def refuse_too_long(
    spec: chat_pb.ChatCompletionSpec, context: grpc.aio.ServicerContext, context_tokens: int
) -> None:
    """A character is a token; of a text that is far too long a lower bound is told, as by the service."""
    tokens = sum(len(part.text) for message in spec.messages for part in message.parts)
    if tokens >= context_tokens:
        is_long = tokens > 4 * context_tokens
        told = {"min_prompt_tokens": tokens // 2} if is_long else {"prompt_tokens": tokens}
        sizes = told | {"max_context_tokens": context_tokens}
        await fail(context, "CONTEXT_LENGTH_EXCEEDED", "spec.messages", **sizes)


def token(character: str) -> usage_pb.TokenLogprob:
    return usage_pb.TokenLogprob(
        token_id=ord(character), token=character, bytes=character.encode(), logprob=-0.5, rank=1
    )


def entry(character: str, top: int) -> usage_pb.LogprobEntry:
    rivals = [token(character)] if top else []
    if top > 1:
        rivals.append(usage_pb.TokenLogprob(token_id=1, token="~", logprob=float("-inf"), rank=2))
    return usage_pb.LogprobEntry(chosen=token(character), top=rivals)


def end_entry(top: int) -> usage_pb.LogprobEntry:
    """Of the token that ends an answer, which has no text there."""
    end = entry("\x03", top)
    end.is_end = True
    return end


def prompt_entries(spec: chat_pb.ChatCompletionSpec) -> list[usage_pb.LogprobEntry]:
    if not spec.logprobs.HasField("prompt_logprobs"):
        return []
    return [usage_pb.LogprobEntry(), entry("b", spec.logprobs.prompt_logprobs)]


def question_of(spec: chat_pb.ChatCompletionSpec) -> str:
    return "".join(part.text for part in spec.messages[-1].parts)


def groundings_of(
    spec: chat_pb.ChatCompletionSpec | completion_pb.CompletionSpec,
) -> list[usage_pb.Grounding]:
    box = usage_pb.BoundingBox(x_min=1, y_min=2.25, x_max=66.8, y_max=100)
    return (
        [usage_pb.Grounding(label="猫", box=box, image_index=1)] if spec.response.grounding else []
    )


def details_of(reason: str, field: str = FAILED_FIELD, **sizes: int) -> list[any_pb2.Any]:
    mapping = BY_REASON[reason]
    messages = [
        error_details_pb2.ErrorInfo(
            reason=reason,
            domain=DOMAIN,
            metadata={name: str(value) for name, value in sizes.items()},
        ),
        error_details_pb2.BadRequest(
            field_violations=[error_details_pb2.BadRequest.FieldViolation(field=field)]
        ),
    ]
    if mapping.retry:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(2500)
        messages.append(retry)
    packed = [any_pb2.Any() for _ in messages]
    for target, message in zip(packed, messages, strict=True):
        target.Pack(message)
    return packed


async def fail(
    context: grpc.aio.ServicerContext, reason: str, field: str = FAILED_FIELD, **sizes: int
) -> None:
    mapping = BY_REASON[reason]
    status = status_pb2.Status(
        code=mapping.grpc_code.value[0],
        message=f"It is {reason}.",
        details=details_of(reason, field, **sizes),
    )
    rich = rpc_status.to_status(status)
    context.set_trailing_metadata(rich.trailing_metadata)
    await context.abort(rich.code, rich.details)


class FakeChat(chat_grpc.ChatServiceServicer):
    def __init__(self, seen: Seen) -> None:
        self.seen = seen

    async def _events(
        self, spec: chat_pb.ChatCompletionSpec, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[chat_pb.StreamChatCompletionResponse]:
        event = chat_pb.StreamChatCompletionResponse
        self.seen.specs.append(spec)
        self.seen.metadata.append(
            {
                key: value
                for key, value in context.invocation_metadata() or ()
                if isinstance(value, str)
            }
        )
        self.seen.calls += 1
        question = question_of(spec)
        command, _, argument = question.partition(" ")
        await self._refuse(spec, context, command, argument)
        n = spec.n if spec.HasField("n") else 1
        ids = [1, 2] if spec.response.return_prompt_token_ids else []
        started = generation_pb.Started(
            request_id=spec.request_id or f"r{self.seen.calls}",
            model=NAMES[0],
            created=CREATED,
            prompt_token_ids=ids,
            prompt_logprobs=prompt_entries(spec),
            prompt_usage=usage_of(spec, 0),
            effective_settings=effective_settings(spec),
        )
        yield event(started=started)
        if entries := prompt_entries(spec):
            yield event(delta=generation_pb.Delta(prompt_logprobs=entries))
        if command == "script":
            for scripted in scripted_events(argument):
                yield scripted
            return
        await self._wait(command, argument)
        for position, character in enumerate(question):
            if command in ("fail-after", "hang-after") and position == int(argument.split()[0]):
                await self._break_off(context, command, *argument.split()[1:])
            for index in range(n):
                is_last = position + 1 == len(question)
                yield event(delta=self._delta(spec, index, character, is_last=is_last))
        limited = spec.sampling.max_tokens == 1
        reason = usage_pb.FINISH_REASON_LENGTH if limited else usage_pb.FINISH_REASON_STOP
        stop = usage_pb.StopDetail(stop_string="!") if spec.stop.strings else None
        for index in range(n):
            reason = usage_pb.FINISH_REASON_ABORTED if command == "abort" else reason
            yield event(
                finished=generation_pb.Finished(
                    choice_index=index,
                    reason=reason,
                    stop_detail=stop,
                    groundings=groundings_of(spec),
                )
            )
        yield event(usage=usage_of(spec, n * len(question)))

    async def _wait(self, command: str, argument: str) -> None:
        if command == "hang":
            await asyncio.sleep(600)
        if command == "slow":
            await asyncio.sleep(float(argument))
        while command == "hold" and not self.seen.released:  # noqa: ASYNC110 - set in another thread
            await asyncio.sleep(0.01)

    async def _break_off(
        self, context: grpc.aio.ServicerContext, command: str, reason: str = "ENGINE_UNAVAILABLE"
    ) -> None:
        if command == "fail-after":
            await fail(context, reason)
        await asyncio.sleep(600)

    async def _refuse(
        self,
        spec: chat_pb.ChatCompletionSpec,
        context: grpc.aio.ServicerContext,
        command: str,
        argument: str,
    ) -> None:
        if spec.model not in NAMES:
            await fail(context, "MODEL_NOT_FOUND")
        await refuse_too_long(spec, context, self.seen.context_tokens)
        if command == "unreachable" and self.seen.calls <= int(argument):
            await context.abort(grpc.StatusCode.UNAVAILABLE, "10.0.0.1:1 refused")
        if command == "fail":
            await fail(context, argument)

    def _delta(
        self, spec: chat_pb.ChatCompletionSpec, index: int, character: str, *, is_last: bool
    ) -> generation_pb.Delta:
        delta = generation_pb.Delta(choice_index=index, text=character)
        if spec.response.return_token_ids:
            delta.token_ids.append(ord(character))
        if spec.logprobs.HasField("top_logprobs"):
            delta.logprobs.append(entry(character, spec.logprobs.top_logprobs))
            if is_last:
                delta.logprobs.append(end_entry(spec.logprobs.top_logprobs))
        return delta

    async def StreamChatCompletion(self, request, context):  # noqa: N802 - gRPC's name
        self.seen.running += 1
        try:
            async for event in self._events(request.spec, context):
                yield event
        except asyncio.CancelledError:
            self.seen.cancelled += 1
            raise
        finally:
            self.seen.running -= 1

    async def CreateChatCompletion(self, request, context):  # noqa: N802 - gRPC's name
        response = chat_pb.CreateChatCompletionResponse()
        choices: dict[int, generation_pb.Choice] = {}
        self.seen.running += 1
        try:
            async for event in self._events(request.spec, context):
                match event.WhichOneof("event"):
                    case "started":
                        response.started.CopyFrom(event.started)
                    case "usage":
                        response.usage.CopyFrom(event.usage)
                    case "delta":
                        delta = event.delta
                        choice = choices.setdefault(
                            delta.choice_index, generation_pb.Choice(index=delta.choice_index)
                        )
                        choice.text += delta.text
                        choice.token_ids.extend(delta.token_ids)
                        choice.logprobs.extend(delta.logprobs)
                        add_reasoning_and_calls(choice, delta)
                    case "finished":
                        index = event.finished.choice_index
                        choice = choices.setdefault(index, generation_pb.Choice(index=index))
                        choice.finish_reason = event.finished.reason
                        choice.stop_detail.CopyFrom(event.finished.stop_detail)
                        choice.groundings.extend(event.finished.groundings)
        except asyncio.CancelledError:
            self.seen.cancelled += 1
            raise
        finally:
            self.seen.running -= 1
        response.choices.extend(choices.values())
        return response

    async def CountTokens(self, request, context):  # noqa: N802 - gRPC's name
        self.seen.specs.append(request.spec)
        self.seen.calls += 1
        command, _, argument = question_of(request.spec).partition(" ")
        await self._refuse(request.spec, context, command, argument)
        return chat_pb.CountTokensResponse(usage=usage_of(request.spec, 0))


class FakeCompletions(completion_grpc.CompletionServiceServicer):
    """Choice i answers with the prompt i + 1 times over; the first token of choice 1 is early."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen

    async def StreamCompletion(self, request, context):  # noqa: N802 - gRPC's name
        event = completion_pb.StreamCompletionResponse
        spec = request.spec
        self.seen.completion_specs.append(spec)
        self.seen.calls += 1
        ids = spec.token_ids.ids
        prompt = spec.text or "".join(chr(i) for i in ids if 0 <= i < 0xD800)
        command, _, argument = prompt.partition(" ")
        refused = "MODEL_NOT_FOUND" if spec.model not in NAMES else None
        if refused or command == "fail" or not prompt:
            await fail(context, refused or argument or "INVALID_ARGUMENT")
        used = usage_pb.Usage(prompt_tokens=len(prompt), total_tokens=len(prompt))
        started = generation_pb.Started(
            request_id=spec.request_id,
            model=NAMES[0],
            created=CREATED,
            prompt_usage=used,
            prompt_text=prompt if spec.response.return_prompt_text else "",
        )
        if spec.response.return_prompt_token_ids:
            started.prompt_token_ids.extend(map(ord, prompt))
        yield event(started=started)
        if command == "hang":
            await self._hang()
        n = min(max(spec.n, 1), 4)
        answers = [prompt * (index + 1) for index in range(n)]
        deltas = [
            event(delta=self._delta(spec, index, character, is_last=position == len(answer)))
            for index, answer in enumerate(answers)
            for position, character in enumerate(answer, start=1)
        ]
        if n > 1:
            yield deltas.pop(len(prompt))
        if spec.logprobs.HasField("prompt_logprobs"):
            count = spec.logprobs.prompt_logprobs
            yield event(delta=generation_pb.Delta(prompt_logprobs=[usage_pb.LogprobEntry()]))
            entries = [entry(character, count) for character in prompt[1:]]
            yield event(delta=generation_pb.Delta(prompt_logprobs=entries))
        for position, delta in enumerate(deltas):
            if command == "fail-after" and position == int(argument.split()[0]):
                await fail(context, *(argument.split()[1:] or ["ENGINE_UNAVAILABLE"]))
            yield delta
        aborted = command == "abort"
        reason = usage_pb.FINISH_REASON_ABORTED if aborted else usage_pb.FINISH_REASON_LENGTH
        for index in range(n):
            boxes = groundings_of(spec)
            yield event(
                finished=generation_pb.Finished(choice_index=index, reason=reason, groundings=boxes)
            )
        completion_tokens = sum(map(len, answers))
        used.completion_tokens = completion_tokens
        used.total_tokens += completion_tokens
        yield event(usage=used)

    async def _hang(self) -> None:
        self.seen.running += 1
        try:
            await asyncio.sleep(600)
        finally:
            self.seen.running -= 1
            self.seen.cancelled += 1

    def _delta(
        self, spec: completion_pb.CompletionSpec, index: int, character: str, *, is_last: bool
    ) -> generation_pb.Delta:
        delta = generation_pb.Delta(choice_index=index, text=character)
        if spec.response.return_token_ids:
            delta.token_ids.append(ord(character))
        if spec.logprobs.HasField("top_logprobs"):
            delta.logprobs.append(entry(character, spec.logprobs.top_logprobs))
            if is_last:
                delta.logprobs.append(end_entry(spec.logprobs.top_logprobs))
        return delta

    async def CreateCompletion(self, request, context):  # noqa: N802 - gRPC's name
        response = completion_pb.CreateCompletionResponse()
        async for event in self.StreamCompletion(request, context):
            match event.WhichOneof("event"):
                case "started":
                    response.started.CopyFrom(event.started)
                    for index in range(min(max(request.spec.n, 1), 4)):
                        response.choices.add(index=index)
                case "usage":
                    response.usage.CopyFrom(event.usage)
                case "delta":
                    choice = response.choices[event.delta.choice_index]
                    choice.text += event.delta.text
                    choice.token_ids.extend(event.delta.token_ids)
                    choice.logprobs.extend(event.delta.logprobs)
                    response.started.prompt_logprobs.extend(event.delta.prompt_logprobs)
                case "finished":
                    choice = response.choices[event.finished.choice_index]
                    choice.finish_reason = event.finished.reason
                    choice.groundings.extend(event.finished.groundings)
        return response


def usage_of(spec: chat_pb.ChatCompletionSpec, tokens: int) -> usage_pb.Usage:
    images = sum(part.HasField("image") for message in spec.messages for part in message.parts)
    return usage_pb.Usage(
        prompt_tokens=10 + images * 4,
        completion_tokens=tokens,
        total_tokens=10 + images * 4 + tokens,
        cached_tokens=3,
        cache_write_tokens=2,
        prompt_details=[
            usage_pb.ModalityTokenCount(modality=usage_pb.MODALITY_TEXT, tokens=10),
            usage_pb.ModalityTokenCount(modality=usage_pb.MODALITY_IMAGE, tokens=4 * images),
        ],
    )


def model_of(name: str) -> model_pb.Model:
    return model_pb.Model(
        name=name,
        canonical_name=NAMES[0],
        created=CREATED,
        max_context_tokens=4096,
        input_modalities=[usage_pb.MODALITY_TEXT, usage_pb.MODALITY_IMAGE],
        image_limits=model_pb.ImageLimits(
            max_images=4,
            pixel_step=32,
            min_pixels=4096,
            max_pixels=1_000_000,
            max_decoded_pixels=50_000_000,
            exif_transposed=True,
        ),
    )


class FakeModels(model_grpc.ModelServiceServicer):
    async def ListModels(self, request, context):  # noqa: N802 - gRPC's name
        return model_pb.ListModelsResponse(models=[model_of(name) for name in NAMES])

    async def GetModel(self, request, context):  # noqa: N802 - gRPC's name
        if request.name not in NAMES:
            await fail(context, "MODEL_NOT_FOUND")
        return model_pb.GetModelResponse(model=model_of(request.name))
