"""Builds requests and answers for the synchronous and the asyncio client."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.inference.v1 import sampling_pb2 as sampling_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb


Image = bytes | Path | str
"""An image: its encoded bytes, a local file, or an http(s) URL that the service fetches."""

Question = str | Sequence[message_pb.Message]
"""A question, or a conversation."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer."""

    text: str
    finish_reason: str
    usage: usage_pb.Usage
    response: chat_pb.CreateChatCompletionResponse | completion_pb.CreateCompletionResponse


def answer_of(
    response: chat_pb.CreateChatCompletionResponse | completion_pb.CreateCompletionResponse,
) -> Answer:
    """The first choice of a response as an answer."""
    choice = response.choices[0]
    reason = usage_pb.FinishReason.Name(choice.finish_reason).removeprefix("FINISH_REASON_")
    return Answer(choice.text, reason.lower(), response.usage, response)


def image_of(image: Image) -> message_pb.Image:
    """The proto message of an image."""
    if isinstance(image, bytes):
        return message_pb.Image(data=image)
    if isinstance(image, Path):
        return message_pb.Image(data=image.read_bytes())
    return message_pb.Image(uri=image)


def chat_spec(
    question: Question,
    images: Iterable[Image],
    model: str,
    sampling: Mapping[str, Any],
    *,
    grounding: bool = False,
) -> chat_pb.ChatCompletionSpec:
    """The request for a question or a conversation; `images` are put before a question that is text."""
    if isinstance(question, str):
        parts = [message_pb.Part(image=image_of(image)) for image in images]
        parts.append(message_pb.Part(text=question))
        question = [message_pb.Message(role=message_pb.ROLE_USER, parts=parts)]
    spec = chat_pb.ChatCompletionSpec(
        model=model, messages=question, sampling=sampling_pb.SamplingOptions(**sampling)
    )
    spec.response.grounding = grounding
    return spec


def completion_spec(
    prompt: str | Sequence[int], images: Iterable[Image], model: str, sampling: Mapping[str, Any]
) -> completion_pb.CompletionSpec:
    """The request for a prompt as text or token ids; `images` belong to the placeholders in it."""
    spec = completion_pb.CompletionSpec(
        model=model,
        images=[image_of(image) for image in images],
        sampling=sampling_pb.SamplingOptions(**sampling),
    )
    if isinstance(prompt, str):
        spec.text = prompt
    else:
        spec.token_ids.ids.extend(prompt)
    return spec
