"""Options: every field of the API has one, and none is dropped or misread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.inference.v1 import sampling_pb2 as sampling_pb
from qwenvl.options import ChatOptions, CompletionOptions
from qwenvl.specs import chat_spec, completion_spec
from qwenvl.tools import arguments_of, tool


EVERY: ChatOptions = {
    "model": "m",
    "temperature": 0.5,
    "top_p": 0.25,
    "top_k": 7,
    "min_p": 0.125,
    "repetition_penalty": 1.5,
    "presence_penalty": 0.75,
    "frequency_penalty": -0.5,
    "seed": 11,
    "max_tokens": 12,
    "min_tokens": 3,
    "ignore_eos": True,
    "logit_bias": {5: -1.0},
    "allowed_token_ids": [5, 6],
    "bad_words": ["no"],
    "stop": ["a", "b"],
    "stop_token_ids": [9],
    "include_stop_string": True,
    "n": 2,
    "logprobs": 4,
    "prompt_logprobs": 1,
    "return_token_ids": True,
    "return_prompt_token_ids": True,
    "return_prompt_text": True,
    "keep_special_tokens": True,
    "grounding": True,
    "min_pixels": 100,
    "max_pixels": 200,
    "oversized": "reject",
    "request_id": "r",
    "cache_salt": "s",
    "priority": -2,
    "json_schema": {"type": "object"},
    "add_generation_prompt": True,
    "continue_final_message": True,
    "enable_thinking": False,
    "reasoning_effort": "low",
    "prefer_thinking": False,
    "tools": [tool("f", "Does it.", {"type": "object"}, strict=True)],
    "tool_choice": "required",
    "allowed_tools": ["f"],
    "parallel_tool_calls": False,
}
OF_CHAT = {
    *("add_generation_prompt", "continue_final_message", "enable_thinking", "reasoning_effort"),
    *("prefer_thinking", "tools", "tool_choice", "allowed_tools", "parallel_tool_calls"),
}
# At most one of these is set.
OTHER_FORMS = {
    *(f"constraint.{name}" for name in ("json_object", "regex", "choices.values", "grammar")),
    "tool_choice.function_name",
}
CONTENT = {"messages", "text", "token_ids", "images"}


def fields(kind: Any, path: str = "") -> Iterator[str]:
    """The paths of all fields that are not deprecated, but those of `CONTENT`."""
    for field in kind.fields:
        if field.GetOptions().deprecated or (field.name in CONTENT and not path):
            continue
        inner = field.message_type
        if inner is None or inner.GetOptions().map_entry:
            yield path + field.name
        else:
            yield from fields(inner, f"{path}{field.name}.")


def set_fields(message: Any, path: str = "") -> Iterator[str]:
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            yield path + field.name
        else:
            one = value[0] if field.name == "tools" else value
            yield from set_fields(one, f"{path}{field.name}.")


def test_every_field_of_the_api_has_an_option() -> None:
    spec = chat_spec("x", None, EVERY)
    spec.ClearField("messages")
    assert set(set_fields(spec)) == set(fields(chat_pb.ChatCompletionSpec.DESCRIPTOR)) - OTHER_FORMS
    completion: CompletionOptions = {k: v for k, v in EVERY.items() if k not in OF_CHAT}  # type: ignore[assignment]
    raw = completion_spec("x", None, completion)
    raw.ClearField("text")
    every = set(fields(completion_pb.CompletionSpec.DESCRIPTOR))
    assert set(set_fields(raw)) == every - OTHER_FORMS


def test_values_arrive() -> None:
    spec = chat_spec("x", None, EVERY)
    assert (spec.model, spec.n, spec.request_id, spec.cache_salt) == ("m", 2, "r", "s")
    assert spec.priority == -2
    assert (spec.sampling.temperature, spec.sampling.logit_bias[5]) == (0.5, -1.0)
    assert (list(spec.stop.strings), list(spec.stop.token_ids)) == (["a", "b"], [9])
    assert (spec.logprobs.top_logprobs, spec.logprobs.prompt_logprobs) == (4, 1)
    assert (spec.media.min_pixels, spec.media.max_pixels) == (100, 200)
    assert spec.media.oversized == message_pb.OVERSIZED_IMAGE_REJECT
    assert spec.template.HasField("enable_thinking")


def test_what_is_not_given_or_none_is_not_set() -> None:
    nothing: Any = dict.fromkeys(EVERY)
    empty: Any = {}
    for options in (empty, nothing):
        spec = chat_spec("x", None, options)
        spec.ClearField("messages")
        assert list(set_fields(spec)) == []


@pytest.mark.parametrize(
    ("options", "constraint"),
    [
        ({"json_object": True}, sampling_pb.Constraint(json_object=True)),
        (
            {"json_schema": {"b": 1, "a": "é"}},
            sampling_pb.Constraint(json_schema='{"b": 1, "a": "é"}'),
        ),
        ({"json_schema": "{}"}, sampling_pb.Constraint(json_schema="{}")),
        ({"regex": "a+"}, sampling_pb.Constraint(regex="a+")),
        ({"choices": ("a", "b")}, sampling_pb.Constraint(choices={"values": ["a", "b"]})),
        ({"grammar": "start: /a/"}, sampling_pb.Constraint(grammar="start: /a/")),
        ({"json_object": False, "regex": "a"}, sampling_pb.Constraint(regex="a")),
    ],
)
def test_the_form_of_an_answer(options: Any, constraint: sampling_pb.Constraint) -> None:
    assert chat_spec("x", None, options).constraint == constraint
    assert completion_spec("x", None, options).constraint == constraint


def test_an_answer_has_one_form() -> None:
    with pytest.raises(ValueError, match="choices is given, as regex is"):
        chat_spec("x", None, {"choices": ["a"], "regex": "a"})
    assert not chat_spec("x", None, {"json_object": False}).HasField("constraint")


def test_zero_and_false_are_values() -> None:
    spec = chat_spec("x", None, {"temperature": 0, "seed": 0, "n": 0, "ignore_eos": False})
    assert spec.HasField("n")
    assert all(spec.sampling.HasField(name) for name in ("temperature", "seed", "ignore_eos"))


def test_one_stop_string_is_not_taken_apart() -> None:
    assert chat_spec("x", None, {"stop": "END"}).stop.strings == ["END"]
    assert chat_spec("x", None, {"stop": ""}).stop.strings == [""]  # for the service to refuse


@pytest.mark.parametrize(("given", "top"), [(True, 0), (0, 0), (5, 5), (False, None), (None, None)])
def test_logprobs(given: Any, top: int | None) -> None:
    options = chat_spec("x", None, {"logprobs": given}).logprobs
    assert (options.top_logprobs if options.HasField("top_logprobs") else None) == top


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temprature": 1}, "temprature.*did you mean 'temperature'"),
        ({"zzz": 1}, "unknown option 'zzz'"),
        ({"temperature": "hot"}, "temperature"),
        ({"n": "2"}, "n"),
    ],
)
def test_a_wrong_option_is_a_type_error(options: Any, message: str) -> None:
    for build in (chat_spec, completion_spec):
        with pytest.raises(TypeError, match=message):
            build("x", None, options)


@pytest.mark.parametrize("name", sorted(OF_CHAT | {"system"}))
def test_a_raw_prompt_has_no_template(name: str) -> None:
    with pytest.raises(TypeError, match="unknown option"):
        completion_spec("x", None, {name: None})  # type: ignore[misc]


def test_prompts() -> None:
    assert completion_spec("x", None, {}).text == "x"
    assert completion_spec([1, 2], None, {}).token_ids.ids == [1, 2]
    with pytest.raises(TypeError, match="bytes"):
        completion_spec(b"x", None, {})


@pytest.mark.parametrize("option", sorted(ChatOptions.__annotations__))
def test_an_option_of_any_wrong_type_is_named(option: str) -> None:
    """Whatever a program passes, the error is a TypeError or ValueError that begins with the option."""
    said = []
    for value in (b"x", 10**30, object(), [object()], {"a": "b"}, range(-1, 1)):
        try:
            chat_spec("question", None, {option: value})  # type: ignore[misc]  # on purpose
        except (TypeError, ValueError) as error:
            said.append(str(error))
    assert len(said) >= 4
    assert {text.partition(" is ")[0] for text in said} == {option}
    assert max(map(len, said)) < 200


@pytest.mark.parametrize(
    ("seed", "sent"),
    [(2**63 - 1, 2**63 - 1), (2**63, -(2**63)), (2**64 - 1, -1), (-1, -1), (-(2**63), -(2**63))],
)
def test_a_seed_is_signed_or_unsigned(seed: int, sent: int) -> None:
    assert chat_spec("Hi", None, {"seed": seed}).sampling.seed == sent


@pytest.mark.parametrize(
    ("options", "limits"),
    [
        ({"max_tokens": 2**31}, "max_tokens is 2147483648, .* between -2147483648 and 2147483647"),
        ({"seed": 2**64}, "seed is 18446744073709551616, .* between -9223372036854775808 and"),
        ({"n": 2**40}, "n is 1099511627776, but must be between"),
    ],
)
def test_a_number_that_does_not_fit_is_told_the_limits(options: Any, limits: str) -> None:
    with pytest.raises(ValueError, match=limits):
        chat_spec("Hi", None, options)


def test_bytes_are_no_text_and_no_numbers() -> None:
    for options in ({"stop_token_ids": b"ab"}, {"request_id": b"x"}, {"system": b"x"}):
        with pytest.raises(TypeError, match=f"^{next(iter(options))} is "):
            chat_spec("question", None, options)  # type: ignore[arg-type]  # on purpose


def test_tools_and_the_choice_among_them() -> None:
    now = tool("now")
    weather = tool("weather", parameters='{"type": "object"}')
    spec = chat_spec("x", None, {"tools": (now, weather), "tool_choice": "now"})
    assert list(spec.tools) == [now, weather]
    assert spec.tool_choice == message_pb.ToolChoice(function_name="now")
    modes = {"auto": 1, "none": 2, "required": 3}
    for name, mode in modes.items():
        assert chat_spec("x", None, {"tool_choice": name}).tool_choice.mode == mode
    allowed = chat_spec("x", None, {"allowed_tools": ["now"], "parallel_tool_calls": False})
    assert allowed.tool_choice == message_pb.ToolChoice(allowed_names=["now"], parallel=False)


@pytest.mark.parametrize(
    "options",
    [
        {"tools": [{"name": "f"}]},
        {"tools": tool("f")},
        {"tools": "f"},
        {"allowed_tools": "f"},
        {"tool_choice": 5},
        {"parallel_tool_calls": "no"},
    ],
)
def test_wrong_tools_are_type_errors(options: Any) -> None:
    [name] = options
    with pytest.raises(TypeError, match=name):
        chat_spec("x", None, options)
    with pytest.raises(TypeError, match="parameters"):
        tool("f", parameters={"a": object()})


def test_arguments_of_a_call() -> None:
    assert arguments_of(message_pb.ToolCall(arguments_json='{"a": [1]}')) == {"a": [1]}
    assert arguments_of(message_pb.ToolCall()) == {}
    for broken in ('{"a": ', "[1]"):
        with pytest.raises(ValueError, match=r"."):
            arguments_of(message_pb.ToolCall(arguments_json=broken))
