"""Tokens of the deterministic inference service: a character is a token; the prompt is the text of the last message.

A text `fail REASON` or `fail-at FIELD` does what it says.
"""

from __future__ import annotations

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from qwenvl.inference.v1 import tokenize_service_pb2 as tokenize_pb
from qwenvl.inference.v1 import tokenize_service_pb2_grpc as tokenize_grpc
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from tests.rest_adapter.fake_outputs import effective_settings
from tests.rest_adapter.fake_service import (
    CREATED,
    NAMES,
    FakeChat,
    FakeCompletions,
    Seen,
    fail,
    question_of,
    refuse_too_long,
)


CONTEXT = 4096


class RenderingChat(FakeChat):
    async def RenderChatCompletion(self, request, context):  # noqa: N802 - gRPC's name
        spec = request.spec
        self.seen.specs.append(spec)
        self.seen.calls += 1
        text = question_of(spec)
        command, _, argument = text.partition(" ")
        if spec.model and spec.model not in NAMES:
            await fail(context, "MODEL_NOT_FOUND", "spec.model")
        if command in ("fail", "fail-at"):
            reason = argument if command == "fail" else "INVALID_ARGUMENT"
            await fail(context, reason, "spec.sampling.top_p" if command == "fail" else argument)
        await refuse_too_long(spec, context, self.seen.context_tokens)
        images = [part.image for message in spec.messages for part in message.parts]
        images = [image for image in images if image.uri or image.data]
        sizes = {"original_width": 8, "original_height": 8, "processed_width": 64}
        return chat_pb.RenderChatCompletionResponse(
            started=generation_pb.Started(
                request_id=spec.request_id,
                model=NAMES[0],
                created=CREATED,
                effective_settings=effective_settings(spec),
                prompt_usage=usage_pb.Usage(prompt_tokens=len(text), total_tokens=len(text)),
                images=[
                    usage_pb.ProcessedImage(processed_height=64, tokens=4, uuid=i.uuid, **sizes)
                    for i in images
                ],
                prompt_token_ids=map(ord, text),
                prompt_text=text,
            ),
            placeholders=[
                chat_pb.MediaPlaceholder(offset=4 * index, length=4, key=bytes([index]))
                for index in range(len(images))
            ],
            token_strings=text if request.return_token_strings else "",
            max_context_tokens=CONTEXT,
        )


class RenderingCompletions(FakeCompletions):
    async def RenderCompletion(self, request, context):  # noqa: N802
        spec = request.spec
        self.seen.completion_specs.append(spec)
        self.seen.calls += 1
        text = spec.text or "".join(map(chr, spec.token_ids.ids))
        if spec.model not in NAMES:
            await fail(context, "MODEL_NOT_FOUND", "spec.model")
        if text.startswith("fail-at "):
            await fail(context, "INVALID_ARGUMENT", text.removeprefix("fail-at "))
        return completion_pb.RenderCompletionResponse(
            started=generation_pb.Started(
                request_id=spec.request_id,
                model=NAMES[0],
                created=CREATED,
                effective_settings=effective_settings(spec),
                prompt_usage=usage_pb.Usage(prompt_tokens=len(text), total_tokens=len(text)),
                prompt_token_ids=map(ord, text),
                prompt_text=text,
            ),
            placeholders=[
                chat_pb.MediaPlaceholder(offset=index, length=1, key=bytes([index]))
                for index in range(len(spec.images))
            ],
            token_strings=text if request.return_token_strings else "",
            max_context_tokens=CONTEXT,
        )


class FakeTokens(tokenize_grpc.TokenizeServiceServicer):
    def __init__(self, seen: Seen) -> None:
        self.seen = seen

    async def Tokenize(self, request, context):  # noqa: N802
        self.seen.calls += 1
        if request.model and request.model not in NAMES:
            await fail(context, "MODEL_NOT_FOUND", "model")
        if request.text == "too long":
            await fail(context, "CONTEXT_LENGTH_EXCEEDED", "text")
        # Special tokens are recognised as one token.
        text = request.text.replace("<end>", "!") if request.parse_special else request.text
        return tokenize_pb.TokenizeResponse(
            token_ids=map(ord, text),
            token_strings=text if request.return_token_strings else "",
            max_context_tokens=CONTEXT,
        )

    async def Detokenize(self, request, context):  # noqa: N802
        self.seen.calls += 1
        if any(not 0 <= token_id < 1000 for token_id in request.token_ids):
            await fail(context, "INVALID_ARGUMENT", "token_ids")
        kept = [i for i in request.token_ids if i != 33 or not request.skip_special_tokens]
        return tokenize_pb.DetokenizeResponse(text="".join(map(chr, kept)))
