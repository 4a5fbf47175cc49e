"""What a field of the JSON becomes in the proto, and how a path in the proto reads in the JSON."""

from __future__ import annotations

import base64
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
import pytest

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from rest_adapter.errors import ApiError
from rest_adapter.openai import fields as answer_fields
from rest_adapter.openai.chat.schema import parse_chat
from rest_adapter.openai.chat.translate import FieldPaths, to_spec
from rest_adapter.openai.errors import type_and_code


TEXT = {"type": "text", "text": "x"}
PNG = bytes(range(256)) * 3
PNG_BASE64 = base64.b64encode(PNG).decode()


def spec_of(**fields: Any) -> chat_pb.ChatCompletionSpec:
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]} | fields
    request, unknown = parse_chat(json.loads(json.dumps(body)))
    assert not unknown
    return to_spec(request, max_media_bytes=2**20)


def refused(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        spec_of(**fields)
    assert caught.value.status == 400
    return caught.value


def code_of(error: ApiError) -> str:
    return type_and_code(error)[1]


def with_parts(*parts: object) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def image_of(part: dict[str, Any]) -> message_pb.Image:
    return spec_of(messages=with_parts(part)).messages[0].parts[0].image


SAMPLING = {
    "temperature": 0.0,
    "top_p": 0.5,
    "top_k": -1,
    "min_p": 0.1,
    "repetition_penalty": 1.25,
    "presence_penalty": -2.0,
    "frequency_penalty": 0.5,
    "seed": -(2**63),
    "max_tokens": 7,
    "min_tokens": 0,
    "ignore_eos": True,
}


@pytest.mark.parametrize("name", SAMPLING)
def test_sampling_field(name: str) -> None:
    options = spec_of(**{name: SAMPLING[name]}).sampling
    assert options.HasField(name)
    assert getattr(options, name) == SAMPLING[name]
    assert not spec_of(**{name: None}).sampling.HasField(name)


def test_absent_scalars_stay_absent() -> None:
    spec = spec_of()
    assert not spec.sampling.ListFields()
    assert not spec.HasField("n")
    assert not spec.logprobs.ListFields()
    assert not spec.template.ListFields()
    assert not spec.media.ListFields()


def test_integers_are_numbers() -> None:
    assert spec_of(temperature=1).sampling.temperature == 1.0


def test_max_completion_tokens_wins() -> None:
    assert spec_of(max_tokens=5, max_completion_tokens=9).sampling.max_tokens == 9


def test_logit_bias() -> None:
    assert dict(spec_of(logit_bias={"17": -100, "0": 0.5}).sampling.logit_bias) == {
        17: -100,
        0: 0.5,
    }
    for key in ("x", "-1", "1.5", "", "99999999999", "１"):
        assert refused(logit_bias={key: 1}).param == "logit_bias"


def test_logit_bias_as_text_is_no_way_around_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The values in it are not counted with those of the body, so that a long text is not read."""
    whole = {str(100_000 + number): -100.0 for number in range(4096)}
    assert len(spec_of(logit_bias=json.dumps(whole)).sampling.logit_bias) == 4096
    assert refused(logit_bias=json.dumps(whole | {"1": 1})).param == "logit_bias"
    monkeypatch.setattr(answer_fields, "orjson", None)  # nothing is read
    error = refused(logit_bias="[" + "[]," * 50_000 + "[]]")
    assert (error.status, error.param) == (400, "logit_bias")
    assert "at most 131072 characters (it has 150004)" in error.message


def test_allowed_tokens_and_bad_words() -> None:
    sampling = spec_of(allowed_token_ids=[3, 5.0], bad_words=["a", " b"]).sampling
    assert (list(sampling.allowed_token_ids), list(sampling.bad_words)) == ([3, 5], ["a", " b"])
    assert not spec_of(allowed_token_ids=None, bad_words=[]).sampling.ListFields()
    for field, value, param in (
        ("allowed_token_ids", ["5"], "allowed_token_ids[0]"),
        ("allowed_token_ids", [2**31], "allowed_token_ids[0]"),
        ("bad_words", "a", "bad_words"),
        ("bad_words", [5], "bad_words[0]"),
    ):
        assert refused(**{field: value}).param == param


def test_stop_strings_and_token_ids() -> None:
    assert list(spec_of(stop="a").stop.strings) == ["a"]
    stop = spec_of(stop=["a", "b"], stop_token_ids=[3], include_stop_str_in_output=True).stop
    assert (list(stop.strings), list(stop.token_ids), stop.include_stop_string) == (
        ["a", "b"],
        [3],
        True,
    )


def test_logprobs() -> None:
    assert spec_of(logprobs=True).logprobs.top_logprobs == 0
    assert spec_of(logprobs=True).logprobs.HasField("top_logprobs")
    assert spec_of(logprobs=True, top_logprobs=20).logprobs.top_logprobs == 20
    assert not spec_of(logprobs=False).logprobs.HasField("top_logprobs")
    assert spec_of(prompt_logprobs=0).logprobs.HasField("prompt_logprobs")
    assert refused(top_logprobs=3).param == "top_logprobs"


def test_other_extensions() -> None:
    spec = spec_of(
        n=3,
        return_token_ids=True,
        skip_special_tokens=False,
        add_generation_prompt=False,
        continue_final_message=True,
        chat_template_kwargs={"enable_thinking": False},
        mm_processor_kwargs={"min_pixels": 1, "max_pixels": 2},
        cache_salt="salt",
        priority=-3,
        request_id="mine",
    )
    assert spec.n == 3
    assert spec.response.return_token_ids
    assert spec.response.return_prompt_token_ids
    assert spec.response.keep_special_tokens
    assert not spec.template.add_generation_prompt
    assert spec.template.continue_final_message
    assert spec.template.HasField("enable_thinking")
    assert not spec.template.enable_thinking
    assert (spec.media.min_pixels, spec.media.max_pixels) == (1, 2)
    assert (spec.cache_salt, spec.request_id, spec.priority) == ("salt", "mine", -3)


def test_roles_are_translated() -> None:
    messages = [
        {"role": "system", "content": "a"},
        {"role": "developer", "content": "b"},
        {"role": "user", "content": "c", "name": "bob"},
        {"role": "assistant", "content": None, "refusal": "no"},
        {"role": "user", "content": [TEXT, {"type": "input_text", "text": "y"}]},
    ]
    spec = spec_of(messages=messages)
    assert [message.role for message in spec.messages] == [1, 1, 2, 3, 2]
    assert spec.messages[2].name == "bob"
    assert spec.messages[3].parts[0].refusal == "no"
    assert [part.text for part in spec.messages[4].parts] == ["x", "y"]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "https://h/x.png"}},
        {"type": "image_url", "image_url": "https://h/x.png"},
        {"type": "input_image", "image_url": "https://h/x.png"},
        {"type": "image", "image": "https://h/x.png"},
        {"type": "image", "image_url": {"url": "https://h/x.png"}},
    ],
)
def test_spellings_of_an_image(part: dict[str, Any]) -> None:
    assert image_of(part).uri == "https://h/x.png"
    assert image_of(part).WhichOneof("source") == "uri"


def test_file_url_is_passed_on() -> None:
    """Whether it may be read is the service's decision."""
    assert image_of({"type": "image_url", "image_url": {"url": "file:///x"}}).uri == "file:///x"


def test_hints_of_an_image() -> None:
    url = "https://h/x.png"
    nested = image_of({"type": "image_url", "image_url": {"url": url, "detail": "low"}})
    assert nested.detail == message_pb.IMAGE_DETAIL_LOW
    beside = image_of(
        {
            "type": "input_image",
            "image_url": url,
            "detail": "high",
            "min_pixels": 5,
            "max_pixels": 6,
            "uuid": "u",
        }
    )
    assert beside.detail == message_pb.IMAGE_DETAIL_HIGH
    assert (beside.min_pixels, beside.max_pixels, beside.uuid) == (5, 6, "u")
    assert not nested.HasField("min_pixels")


@pytest.mark.parametrize(
    "uri",
    [
        "data:image/png;base64," + PNG_BASE64,
        "DATA:IMAGE/PNG;BASE64," + PNG_BASE64,
        "data:image;base64," + PNG_BASE64,
        "data:;base64," + PNG_BASE64,
        "data:image/png;charset=utf-8;base64," + PNG_BASE64,
        "data:image/png; base64, " + PNG_BASE64,
        "data:image/png;base64," + PNG_BASE64.rstrip("="),
        "data:image/png;base64," + PNG_BASE64.replace("+", "-").replace("/", "_"),
        "data:image/png;base64," + PNG_BASE64.replace("+", "%2B").replace("/", "%2f"),
        "data:image/png;base64," + "\r\n".join(PNG_BASE64[i : i + 76] for i in range(0, 1024, 76)),
    ],
)
def test_spellings_of_a_data_uri(uri: str) -> None:
    assert image_of({"type": "image_url", "image_url": {"url": uri}}).data == PNG


@pytest.mark.parametrize(
    "uri",
    [
        "data:",
        "data:image/png;base64",
        "data:image/png;base64,",
        "data:image/png;base64,@",
        "data:image/png;base64,A",
        "data:image/png;base64,AAA=A",
        "data:image/png;base64,é",
        "",
        "   ",
    ],
)
def test_broken_data_uri(uri: str) -> None:
    for part, suffix in (
        ({"type": "image_url", "image_url": {"url": uri}}, "image_url.url"),
        ({"type": "image_url", "image_url": uri}, "image_url"),
        ({"type": "image", "image": uri}, "image"),
    ):
        error = refused(messages=with_parts(TEXT, part))
        assert error.param == f"messages[0].content[1].{suffix}"
        assert code_of(error) in ("invalid_image", "invalid_image_url")


UNSUPPORTED = {
    "functions": [{"name": "f"}],
    "function_call": {"name": "f"},
    "audio": {"voice": "alloy", "format": "wav"},
    "modalities": ["text", "audio"],
    "web_search_options": {"search_context_size": "low"},
    "structural_tag": "{}",
    "ebnf": "root ::= x",
    "max_output_tokens": 5,
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_known_and_not_supported(name: str) -> None:
    error = refused(**{name: UNSUPPORTED[name]})
    assert (error.param, code_of(error)) == (name, "unsupported_parameter")


def test_a_video_is_its_frames() -> None:
    urls = ["data:image/png;base64," + PNG_BASE64, "https://example.org/2.png"]
    spec = spec_of(messages=with_parts({"type": "video", "video": urls, "fps": 4}, TEXT))
    video = spec.messages[0].parts[0].video
    assert [(frame.data, frame.uri) for frame in video.frames] == [(PNG, ""), (b"", urls[1])]
    assert video.fps == 4
    plain = spec_of(messages=with_parts({"type": "video", "video": urls}))
    assert not plain.messages[0].parts[0].video.HasField("fps")


@pytest.mark.parametrize(
    ("video", "param"),
    [
        ({"video": ["https://x/", "data:,"]}, "video[1]"),
        ({"video": ["https://x/", " "]}, "video[1]"),
        ({"video": "https://x/clip.mp4"}, "video"),
        ({}, "video"),
        ({"video": ["https://x/"], "fps": "fast"}, "fps"),
    ],
)
def test_invalid_videos(video: dict[str, Any], param: str) -> None:
    error = refused(messages=with_parts(TEXT, {"type": "video"} | video))
    assert error.param == f"messages[0].content[1].{param}"


def test_frames_count_together() -> None:
    url = "data:image/png;base64," + base64.b64encode(bytes(2**18)).decode()
    with pytest.raises(ApiError) as caught:
        spec_of(messages=with_parts({"type": "video", "video": [url] * 5}))
    assert caught.value.status == 413


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ("video.frames[1]", "video[1]"),
        ("video.frames[1].uri", "video[1]"),
        ("video.fps", "fps"),
        ("video.frames", "video"),
        ("video", "video"),
    ],
)
def test_paths_in_a_video(field: str, param: str) -> None:
    part = {"type": "video", "video": ["https://x/", "https://y/"]}
    body = {"model": "m", "messages": with_parts(TEXT, part)}
    request, _ = parse_chat(json.loads(json.dumps(body)))
    path = FieldPaths(request).param_of(f"spec.messages[0].parts[1].{field}")
    assert path == f"messages[0].content[1].{param}"


@pytest.mark.parametrize("kind", ["input_audio", "file", "video_url", "audio_url"])
def test_part_that_is_not_supported(kind: str) -> None:
    error = refused(messages=with_parts(TEXT, {"type": kind, kind: {"data": "x"}}))
    assert code_of(error) == "unsupported_parameter"
    assert error.param is not None
    assert error.param.startswith("messages[0].content[1]")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tools", []),
        ("tools", None),
        ("tool_choice", "none"),
        ("tool_choice", "auto"),
        ("response_format", {"type": "text"}),
        ("modalities", ["text"]),
        ("store", False),
        ("priority", 0),
        ("user", "me"),
        ("metadata", {"a": "b"}),
        ("service_tier", "auto"),
        ("safety_identifier", "x"),
        ("prompt_cache_key", "x"),
        ("parallel_tool_calls", True),
        ("stream_options", {"include_usage": True, "include_obfuscation": False}),
    ],
)
def test_accepted_without_effect(name: str, value: object) -> None:
    assert spec_of(**{name: value}) == spec_of()


@pytest.mark.parametrize(
    ("name", "value"), [("store", True), ("prediction", {"type": "content", "content": "x"})]
)
def test_ignored_with_a_word_in_the_log(name: str, value: object) -> None:
    asked = {"model": "demo", "messages": [{"role": "user", "content": "x"}]}
    assert parse_chat({**asked, name: value})[1] == [name]
    assert parse_chat({**asked, name: None})[1] == []


@pytest.mark.parametrize("name", ["chat_template", "custom", "documents"])
def test_template_switches_are_a_closed_list(name: str) -> None:
    error = refused(chat_template_kwargs={name: 1})
    assert error.param == f"chat_template_kwargs.{name}"


def test_processor_options_are_a_closed_list() -> None:
    assert refused(mm_processor_kwargs={"fps": 2}).param == "mm_processor_kwargs.fps"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": "x"}, "messages"),
        ({"messages": [5]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": with_parts({"type": "poem"})}, "messages[0].content[0].type"),
        ({"messages": with_parts({})}, "messages[0].content[0].type"),
        ({"messages": with_parts({"type": "text"})}, "messages[0].content[0].text"),
        (
            {"messages": with_parts(TEXT, {"type": "text", "text": 1})},
            "messages[0].content[1].text",
        ),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": "0.5"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": -(2**31) - 1}, "max_tokens"),
        ({"top_k": 2**31}, "top_k"),
        ({"seed": 2**64}, "seed"),
        ({"seed": -(2**63) - 1}, "seed"),
        ({"n": "2"}, "n"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a", 5]}, "stop[1]"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"stop_token_ids": [1, "2"]}, "stop_token_ids[1]"),
    ],
)
def test_wrong_field_is_named(fields: dict[str, Any], param: str) -> None:
    error = refused(**fields)
    assert error.param == param
    assert error.message


REQUEST, _ = parse_chat(
    {
        "model": "m",
        "messages": [
            {"role": "system", "content": "plain"},
            {
                "role": "user",
                "content": [
                    TEXT,
                    {"type": "image_url", "image_url": {"url": "https://h", "detail": "low"}},
                    {"type": "image_url", "image_url": "https://h", "min_pixels": 1},
                    {"type": "image", "image": "https://h"},
                    {"type": "input_image", "image_url": "https://h", "detail": "low"},
                ],
            },
        ],
        "max_completion_tokens": 3,
    }
)


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ("", None),
        ("spec.model", "model"),
        ("name", "model"),
        ("spec.messages", "messages"),
        ("spec.messages[1].role", "messages[1].role"),
        ("spec.messages[1].name", "messages[1].name"),
        ("spec.messages[0].parts", "messages[0].content"),
        ("spec.messages[0].parts[0]", "messages[0].content"),
        ("spec.messages[1].parts[0]", "messages[1].content[0].text"),
        ("spec.messages[1].parts[1].image", "messages[1].content[1].image_url.url"),
        ("spec.messages[1].parts[1].image.uri", "messages[1].content[1].image_url.url"),
        ("spec.messages[1].parts[1].image.data", "messages[1].content[1].image_url.url"),
        ("spec.messages[1].parts[1].image.detail", "messages[1].content[1].image_url.detail"),
        ("spec.messages[1].parts[2].image", "messages[1].content[2].image_url"),
        ("spec.messages[1].parts[2].image.min_pixels", "messages[1].content[2].min_pixels"),
        ("spec.messages[1].parts[3].image.uri", "messages[1].content[3].image"),
        ("spec.messages[1].parts[4].image.detail", "messages[1].content[4].detail"),
        ("spec.sampling.temperature", "temperature"),
        ("spec.sampling.max_tokens", "max_completion_tokens"),
        ("spec.sampling.logit_bias", "logit_bias"),
        ("spec.stop.strings", "stop"),
        ("spec.stop.token_ids", "stop_token_ids"),
        ("spec.logprobs.top_logprobs", "top_logprobs"),
        ("spec.logprobs.prompt_logprobs", "prompt_logprobs"),
        ("spec.template.continue_final_message", "continue_final_message"),
        ("spec.template.enable_thinking", "chat_template_kwargs.enable_thinking"),
        ("spec.media.max_pixels", "mm_processor_kwargs.max_pixels"),
        ("spec.constraint", "response_format"),
        ("spec.tools", "tools"),
        ("spec.tool_choice", "tool_choice"),
        ("spec.n", "n"),
        ("spec.request_id", "request_id"),
        ("spec.cache_salt", "cache_salt"),
    ],
)
def test_path_in_the_proto_as_the_caller_wrote_it(field: str, param: str | None) -> None:
    assert FieldPaths(REQUEST).param_of(field) == param


@given(st.text(max_size=60))
def test_any_path_is_survived(field: str) -> None:
    FieldPaths(REQUEST).param_of(field)
    FieldPaths(REQUEST).param_of(f"spec.messages[{field}].parts[9999999].image.{field}")


def chat_of(**fields: Any) -> Any:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]} | fields
    return parse_chat(json.loads(json.dumps(body)))[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("response_format", {"type": "text", "json_schema": None}),
        ("response_format", {"type": "text", "schema": {"name": None, "strict": False}}),
        ("response_format", {"type": None}),
        ("structured_outputs", {"json": None, "regex": None, "choice": [], "grammar": ""}),
        ("tool_choice", {"type": "auto", "disable_parallel_tool_use": False}),
        ("web_search_options", {"user_location": {"approximate": {"city": None}}}),
        ("mm_processor_kwargs", {"fps": None, "size": {"shortest_edge": None}}),
        ("chat_template_kwargs", {"documents": [], "custom": {"a": None}}),
    ],
)
def test_objects_whose_fields_ask_for_nothing_have_no_effect(name: str, value: object) -> None:
    assert to_spec(chat_of(**{name: value}), max_media_bytes=1) == to_spec(
        chat_of(), max_media_bytes=1
    )


def test_an_effect_deep_in_an_object_is_refused() -> None:
    deep: object = "x"
    for _ in range(600):
        deep = {"a": deep}
    for value in ({"type": "text", "schema": {"a": {"b": 0}}}, deep):
        with pytest.raises(ApiError) as caught:
            to_spec(chat_of(response_format=value), max_media_bytes=1)
        assert caught.value.param == "response_format"


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (False, "reasoning"),
        ({"enabled": False}, "reasoning.enabled"),
        ({"effort": "none", "summary": "auto"}, None),
        ({"enabled": True, "exclude": True}, None),
        ({}, None),
        (None, None),
        ("high", None),
        (True, None),
    ],
)
def test_reasoning_can_switch_thinking_off(value: object, path: str | None) -> None:
    chat = chat_of(reasoning=value)
    template = to_spec(chat, max_media_bytes=1).template
    assert template.HasField("enable_thinking") == (path is not None)
    assert not template.enable_thinking
    if path is not None:
        assert FieldPaths(chat).param_of("spec.template.enable_thinking") == path


@pytest.mark.parametrize("name", ["system", "instructions", "input", "prompt", "image_urls"])
def test_content_beside_the_messages_is_not_dropped(name: str) -> None:
    with pytest.raises(ApiError) as caught:
        chat_of(**{name: "You are a pirate."})
    assert caught.value.param == name
    chat_of(**{name: ""})
