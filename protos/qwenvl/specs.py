"""Builds the requests of the synchronous and the asyncio client."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from qwenvl.fields import built
from qwenvl.images import Images, images_of
from qwenvl.inference.v1 import admin_service_pb2 as admin_pb
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import tokenize_service_pb2 as tokenize_pb
from qwenvl.messages import Question, messages_of
from qwenvl.options import ChatOptions, CompletionOptions, chat_fields, completion_fields


Prompt = str | Sequence[int]
"""A raw prompt: text, or token ids."""


def chat_spec(
    question: Question, images: Images | None, options: ChatOptions
) -> chat_pb.ChatCompletionSpec:
    """The request for a question or a conversation.

    Args:
        question: A question, or a conversation.
        images: Images for the question, or for the last user message of the conversation.
        options: The options.

    Raises:
        TypeError: The conversation, an image or an option has another type.
        ValueError: An image or the conversation is invalid, or a number does not fit its field.
        OSError: An image cannot be read.
    """
    messages = messages_of(question, images, options.get("system"))
    spec = built(chat_pb.ChatCompletionSpec, chat_fields(options))
    spec.messages.extend(messages)
    return spec


def completion_spec(
    prompt: Prompt, images: Images | None, options: CompletionOptions
) -> completion_pb.CompletionSpec:
    """The request for a raw prompt; errors as `chat_spec`.

    Args:
        prompt: Text without a chat template, or token ids.
        images: Images, in the order of their placeholders in the prompt.
        options: The options.
    """
    spec = built(completion_pb.CompletionSpec, completion_fields(options))
    spec.images.extend(images_of(images))
    if isinstance(prompt, str):
        spec.text = prompt
    elif isinstance(prompt, Iterable) and not isinstance(prompt, (bytes, bytearray, memoryview)):
        spec.token_ids.CopyFrom(
            built(completion_pb.TokenIds, {"prompt": prompt}, {"prompt": "ids"})
        )
    else:
        raise TypeError(f"a prompt is text or token ids, not {type(prompt).__name__}")
    return spec


def tokenize_request(
    text: str, model: str, *, parse_special: bool, strings: bool
) -> tokenize_pb.TokenizeRequest:
    """The request for the token ids of a text.

    Raises:
        TypeError: Something has another type.
    """
    fields = {"model": model, "text": text}
    flags = {"parse_special": parse_special, "return_token_strings": strings}
    return built(tokenize_pb.TokenizeRequest, fields | flags)


def abort_request(request_ids: Iterable[str | Iterable[str]]) -> admin_pb.AbortRequest:
    """The request that ends requests; lists among the ids count as their members.

    Raises:
        TypeError: Something is neither an id nor a list of ids.
    """
    ids: list[object] = []
    for given in request_ids:
        is_list = isinstance(given, Iterable) and not isinstance(given, (str, bytes, Mapping))
        ids.extend(given if is_list else [given])
    return built(admin_pb.AbortRequest, {"request_ids": ids})


def detokenize_request(
    token_ids: Sequence[int], model: str, *, skip_special_tokens: bool
) -> tokenize_pb.DetokenizeRequest:
    """The request for the text of token ids.

    Raises:
        TypeError: Something has another type.
        ValueError: An id does not fit its field.
    """
    fields = {"model": model, "token_ids": token_ids, "skip_special_tokens": skip_special_tokens}
    return built(tokenize_pb.DetokenizeRequest, fields)
