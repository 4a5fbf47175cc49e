"""The options of a request, typed for keyword arguments: the same words for every method of both clients.

An option that is not given, or is None, has the service's default.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
import difflib
import json
import reprlib
from typing import Any, Final, TypedDict

from qwenvl.fields import built
from qwenvl.images import Oversized, oversized_value
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.inference.v1 import sampling_pb2 as sampling_pb
from qwenvl.tools import check_tools, tool_choice


class Sampling(TypedDict, total=False):
    """How tokens are sampled: the fields of `SamplingOptions`, which document ranges and defaults.

    A seed has 64 bits: an unsigned one is sent as the signed number of the same bits, as the REST API does.
    """

    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    seed: int | None
    max_tokens: int | None
    min_tokens: int | None
    ignore_eos: bool | None
    logit_bias: Mapping[int, float] | None
    allowed_token_ids: Sequence[int] | None
    bad_words: Sequence[str] | None


class CompletionOptions(Sampling, total=False):
    """The options of a text completion.

    Attributes:
        model: A served name; the service's canonical model by default.
        stop: A string, or several, that end the answer.
        stop_token_ids: Token ids that end the answer.
        include_stop_string: Include the stop string at the end of the answer.
        n: Number of independent answers: `Answer.choices`.
        logprobs: Log probabilities of the tokens of the answer and of this many most likely ones; True = 0.
        prompt_logprobs: The same for the tokens of the prompt.
        return_token_ids: Return the token ids of the answers.
        return_prompt_token_ids: Return the token ids of the prompt.
        return_prompt_text: Return the text of the prompt, special tokens included.
        keep_special_tokens: Keep the model's special tokens in the text.
        grounding: Parse bounding boxes from the answer: `Answer.groundings`.
        min_pixels: Minimum number of pixels of each image that does not set its own.
        max_pixels: Maximum number of pixels of each image that does not set its own.
        oversized: What happens to an image with more pixels than its maximum: `downsize`, the default, or `reject`.
        request_id: Identifies the request for Abort and in the logs of the service.
        cache_salt: Only requests with the same salt share cached prefixes.
        priority: Of the caller's own waiting requests, those with the lowest number are computed first.
        json_object: The answer is a JSON object. At most one of this and the next four options.
        json_schema: The answer is JSON that matches this schema: an object, or its JSON text.
        regex: The answer matches this regular expression as a whole.
        choices: The answer is one of these.
        grammar: The answer matches this grammar in Lark notation.
    """

    model: str | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    include_stop_string: bool | None
    n: int | None
    logprobs: bool | int | None
    prompt_logprobs: int | None
    return_token_ids: bool | None
    return_prompt_token_ids: bool | None
    return_prompt_text: bool | None
    keep_special_tokens: bool | None
    grounding: bool | None
    min_pixels: int | None
    max_pixels: int | None
    oversized: Oversized | None
    request_id: str | None
    cache_salt: str | None
    priority: int | None
    json_object: bool | None
    json_schema: Mapping[str, Any] | str | None
    regex: str | None
    choices: Sequence[str] | None
    grammar: str | None


class ChatOptions(CompletionOptions, total=False):
    """The options of a chat: those of a text completion, and of the chat template.

    Attributes:
        system: A system message to put before the conversation.
        add_generation_prompt: Open an assistant turn after the last message.
        continue_final_message: Continue the last message, which must be the assistant's.
        enable_thinking: Enable reasoning, for models that support it.
        reasoning_effort: How much to reason: `none`, `minimal`, `low`, `medium`, `high`, `xhigh` or `max`.
        prefer_thinking: As `enable_thinking` where the model has a switch for it; no effect on other models.
        tools: Functions that the model may call: `qwenvl.tool(...)`. Calls are in `Answer.tool_calls`.
        tool_choice: `auto`, `none`, `required`, or the name of the function that must be called.
        allowed_tools: The names of the functions that may be called; by default all.
        parallel_tool_calls: One answer may have several calls.
    """

    system: str | None
    add_generation_prompt: bool | None
    continue_final_message: bool | None
    enable_thinking: bool | None
    reasoning_effort: str | None
    prefer_thinking: bool | None
    tools: Sequence[message_pb.Tool] | None
    tool_choice: str | None
    allowed_tools: Sequence[str] | None
    parallel_tool_calls: bool | None


_SAMPLING: Final = frozenset(Sampling.__annotations__)
_COMPLETION: Final = frozenset(CompletionOptions.__annotations__)
_CHAT: Final = frozenset(ChatOptions.__annotations__)
_STOP: Final = ("stop", "stop_token_ids", "include_stop_string")
_STOP_FIELDS: Final = {"stop": "strings", "stop_token_ids": "token_ids"}
_LOGPROB_FIELDS: Final = {"logprobs": "top_logprobs"}
_RESPONSE: Final = (
    *("return_token_ids", "return_prompt_token_ids", "return_prompt_text"),
    *("keep_special_tokens", "grounding"),
)
_CONSTRAINTS: Final = ("json_object", "json_schema", "regex", "choices", "grammar")
_TEMPLATE: Final = (
    *("add_generation_prompt", "continue_final_message", "enable_thinking", "reasoning_effort"),
    "prefer_thinking",
)
_TOOL_CHOICE: Final = ("tool_choice", "allowed_tools", "parallel_tool_calls")


def chat_fields(options: ChatOptions) -> dict[str, Any]:
    """The fields of a `ChatCompletionSpec`, but its messages.

    Raises:
        TypeError: An option is unknown, or has a value of another type.
        ValueError: A number does not fit its field, or options contradict each other.
    """
    _refuse_unknown(options, _CHAT)
    template = _given(options, _TEMPLATE)
    fields = _shared_fields(options) | {"template": built(chat_pb.TemplateOptions, template)}
    if (tools := options.get("tools")) is not None:
        fields["tools"] = check_tools(tools)
    if _given(options, _TOOL_CHOICE):
        fields["tool_choice"] = tool_choice(
            options.get("tool_choice"),
            options.get("allowed_tools"),
            options.get("parallel_tool_calls"),
        )
    return fields


def completion_fields(options: CompletionOptions) -> dict[str, Any]:
    """The fields of a `CompletionSpec`, but its prompt and images; errors as `chat_fields`."""
    _refuse_unknown(options, _COMPLETION)
    return _shared_fields(options)


def _shared_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that both kinds of specs have under the same names."""
    counts = _given(options, ("logprobs", "prompt_logprobs"))
    if isinstance(counts.get("logprobs"), bool):
        counts["logprobs"] = 0 if counts["logprobs"] else None
    stop = _given(options, _STOP)
    if isinstance(stop.get("stop"), str):
        stop["stop"] = [stop["stop"]]
    pixels = _given(options, ("min_pixels", "max_pixels"))
    pixels["oversized"] = oversized_value(options.get("oversized"))
    return {
        "sampling": _sampling(options),
        "stop": built(sampling_pb.StopOptions, stop, _STOP_FIELDS),
        "logprobs": built(sampling_pb.LogprobOptions, counts, _LOGPROB_FIELDS),
        "response": built(generation_pb.ResponseOptions, _given(options, _RESPONSE)),
        "media": built(generation_pb.MediaOptions, pixels),
        **_given(options, ("model", "n", "request_id", "cache_salt", "priority")),
        "constraint": _constraint(options),
    }


def _sampling(options: Mapping[str, Any]) -> sampling_pb.SamplingOptions:
    fields = _given(options, _SAMPLING)
    seed = fields.get("seed")
    if isinstance(seed, int) and 2**63 <= seed < 2**64:
        fields["seed"] = seed - 2**64
    return built(sampling_pb.SamplingOptions, fields)


def _constraint(options: Mapping[str, Any]) -> sampling_pb.Constraint | None:
    """The form that the options ask for; None if they do not."""
    given = _given(options, _CONSTRAINTS)
    if given.get("json_object") is False:
        del given["json_object"]
    if not given:
        return None
    if len(given) > 1:
        first, second, *_ = given
        raise ValueError(f"{second} is given, as {first} is: an answer can have one form only")
    if isinstance(schema := given.get("json_schema"), Mapping):
        try:
            given["json_schema"] = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise type(error)(f"json_schema is {reprlib.repr(schema)}: {error}") from None
    if "choices" in given:
        if isinstance(given["choices"], (str, bytes, bytearray, Mapping)):
            raise TypeError(
                f"choices is {reprlib.repr(given['choices'])}: expected a list of texts"
            )
        given = {"choices": built(sampling_pb.Choices, given, {"choices": "values"})}
    return built(sampling_pb.Constraint, given)


def _given(options: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name in names if (value := options.get(name)) is not None}


def _refuse_unknown(options: Mapping[str, object], known: Collection[str]) -> None:
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise TypeError(f"unknown option {name!r}{hint}")
