"""The JSON of a request in the proto, `data:` URIs, and proto paths in the JSON."""

from __future__ import annotations

import base64
import contextlib
import math

from hypothesis import given
from hypothesis import strategies as st
import pytest

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from rest_adapter.errors import ApiError
from rest_adapter.schema import parse_request
from rest_adapter.translate import FieldPaths, parse_data_uri, to_spec


URL = "http://example.org/a.png"
USER = [{"role": "user", "content": "x"}]


def spec_of(messages: list = USER, **fields: object) -> chat_pb.ChatCompletionSpec:
    request, _ = parse_request({"model": "m", "messages": messages} | fields)
    return to_spec(request, max_media_bytes=2**20)


def image_of(**part: object) -> message_pb.Image:
    spec = spec_of([{"role": "user", "content": [part]}])
    return spec.messages[0].parts[0].image


def paths_of(content: object, **fields: object) -> FieldPaths:
    messages = [{"role": "user", "content": content}]
    return FieldPaths(parse_request({"model": "m", "messages": messages} | fields)[0])


def test_what_is_absent_or_null_stays_unset() -> None:
    bare = chat_pb.ChatCompletionSpec(model="m")
    bare.messages.add(role=message_pb.ROLE_USER).parts.add(text="x")
    bare.sampling.SetInParent()
    bare.stop.SetInParent()
    assert spec_of() == bare
    assert spec_of(temperature=None, stop=None, n=None, seed=None, logprobs=None) == bare


def test_all_parameters_arrive() -> None:
    sampling = {
        "temperature": 0,
        "top_p": 0.5,
        "top_k": -1,
        "min_p": 0.25,
        "repetition_penalty": 1.5,
        "presence_penalty": -1.0,
        "frequency_penalty": 2,
        "seed": -(2**63),
        "min_tokens": 3,
        "ignore_eos": True,
    }
    spec = spec_of(
        **sampling,
        max_tokens=5,
        max_completion_tokens=6,
        logit_bias={"7": -100},
        stop=["a", "b"],
        stop_token_ids=[1],
        include_stop_str_in_output=True,
        logprobs=True,
        top_logprobs=4,
        prompt_logprobs=0,
        return_token_ids=True,
        skip_special_tokens=False,
        add_generation_prompt=False,
        continue_final_message=True,
        chat_template_kwargs={"enable_thinking": False},
        mm_processor_kwargs={"min_pixels": 1, "max_pixels": 2},
        cache_salt="s",
        request_id="r",
        n=2,
    )
    assert {name: getattr(spec.sampling, name) for name in sampling} == sampling
    assert spec.sampling.HasField("temperature")
    assert spec.sampling.max_tokens == 6
    assert dict(spec.sampling.logit_bias) == {7: -100}
    assert (list(spec.stop.strings), list(spec.stop.token_ids)) == (["a", "b"], [1])
    assert spec.stop.include_stop_string
    assert spec.logprobs.top_logprobs == 4
    assert spec.logprobs.HasField("prompt_logprobs")
    assert spec.response.token_ids
    assert spec.response.prompt_token_ids
    assert spec.response.keep_special_tokens
    assert spec.template.HasField("add_generation_prompt")
    assert spec.template.continue_final_message
    assert spec.template.HasField("enable_thinking")
    assert (spec.media.min_pixels, spec.media.max_pixels) == (1, 2)
    assert (spec.cache_salt, spec.request_id, spec.n) == ("s", "r", 2)


def test_roles_and_parts_keep_their_order() -> None:
    spec = spec_of(
        [
            {"role": "system", "content": "s"},
            {"role": "developer", "content": [{"type": "input_text", "text": "d"}]},
            {
                "role": "user",
                "name": "n",
                "content": [
                    {"type": "image_url", "image_url": URL},
                    {"type": "text", "text": "q"},
                    {"type": "image", "image": URL},
                ],
            },
            {"role": "assistant", "content": None, "refusal": "no"},
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "never"}]},
        ]
    )
    assert [message.role for message in spec.messages] == [1, 1, 2, 3, 3]
    assert [part.WhichOneof("kind") for part in spec.messages[2].parts] == [
        "image",
        "text",
        "image",
    ]
    assert spec.messages[2].name == "n"
    assert spec.messages[3].parts[0].refusal == "no"
    assert spec.messages[4].parts[0].refusal == "never"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": URL, "detail": "high"}},
        {"type": "image_url", "image_url": {"url": URL}, "detail": "high"},
        {"type": "input_image", "image_url": URL, "detail": "high"},
        {"type": "image", "image": URL, "detail": "high"},
    ],
)
def test_spellings_of_a_picture(part: dict) -> None:
    image = image_of(**part, min_pixels=1, max_pixels=2, uuid="u")
    expected = message_pb.Image(
        uri=URL, detail=message_pb.IMAGE_DETAIL_HIGH, min_pixels=1, max_pixels=2, uuid="u"
    )
    assert image == expected


@pytest.mark.parametrize("uri", ["file:///etc/passwd", "ftp://x/", "gopher://x", "no url"])
def test_other_urls_are_left_to_the_service(uri: str) -> None:
    assert image_of(type="image_url", image_url={"url": uri}).uri == uri


PICTURE = bytes(range(251, 256)) * 2
TEXT = base64.b64encode(PICTURE).decode()


@pytest.mark.parametrize(
    "uri",
    [
        f"data:image/png;base64,{TEXT}",
        f"DATA:IMAGE/PNG;BASE64,{TEXT}",
        f"data:image/png,{TEXT}",
        f"data:image/png;charset=utf-8;base64,{TEXT}",
        f"data:image/png;base64;charset=utf-8,{TEXT}",
        f" data: image/png ; base64, {TEXT}\n",
        f"data:image/png;base64,{TEXT.rstrip('=')}",
        f"data:image/png;base64,{TEXT[:4]}\r\n{TEXT[4:]}",
        f"data:image/png;base64,{base64.urlsafe_b64encode(PICTURE).decode()}",
        f"data:image/png;base64,{TEXT.replace('=', '%3D').replace('+', '%2B')}",
    ],
)
def test_data_uris_as_clients_write_them(uri: str) -> None:
    assert parse_data_uri(uri) == ("image/png", PICTURE)
    assert image_of(type="image_url", image_url={"url": uri}).data == PICTURE


@given(st.binary(min_size=1), st.booleans(), st.booleans())
def test_data_uri_round_trip(data: bytes, safe: bool, padded: bool) -> None:
    text = (base64.urlsafe_b64encode if safe else base64.b64encode)(data).decode()
    assert parse_data_uri(f"data:;base64,{text if padded else text.rstrip('=')}") == ("", data)


@given(st.text())
def test_any_data_uri_is_decoded_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        parse_data_uri("data:" + text)


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ("", None),
        ("spec.model", "model"),
        ("spec.messages", "messages"),
        ("spec.messages[0]", "messages[0]"),
        ("spec.messages[0].role", "messages[0].role"),
        ("spec.messages[0].parts", "messages[0].content"),
        ("spec.messages[0].parts[0]", "messages[0].content[0].text"),
        ("spec.messages[0].parts[0].text", "messages[0].content[0].text"),
        ("spec.messages[0].parts[1].image", "messages[0].content[1].image_url.url"),
        ("spec.messages[0].parts[1].image.data", "messages[0].content[1].image_url.url"),
        ("messages[0].parts[1].image.uri", "messages[0].content[1].image_url.url"),
        ("spec.messages[0].parts[1].image.detail", "messages[0].content[1].image_url.detail"),
        ("spec.messages[0].parts[1].image.min_pixels", "messages[0].content[1].min_pixels"),
        ("spec.messages[0].parts[2].image", "messages[0].content[2].image_url"),
        ("spec.messages[0].parts[3].image", "messages[0].content[3].image"),
        ("spec.messages[9].parts[0].image", "messages[9]"),
        ("spec.sampling.temperature", "temperature"),
        ("spec.sampling.max_tokens", "max_tokens"),
        ("spec.sampling.logit_bias[5]", "logit_bias"),
        ("spec.stop.strings", "stop"),
        ("spec.stop.token_ids", "stop_token_ids"),
        ("spec.stop.include_stop_string", "include_stop_str_in_output"),
        ("spec.logprobs.top_logprobs", "top_logprobs"),
        ("spec.constraint", "response_format"),
        ("spec.response.token_ids", "return_token_ids"),
        ("spec.template.enable_thinking", "chat_template_kwargs.enable_thinking"),
        ("spec.template.continue_final_message", "continue_final_message"),
        ("spec.media.max_pixels", "mm_processor_kwargs.max_pixels"),
        ("spec.request_id", "request_id"),
        ("spec.n", "n"),
    ],
)
def test_paths(field: str, param: str | None) -> None:
    content = [
        {"type": "text", "text": "x"},
        {"type": "image_url", "image_url": {"url": URL, "detail": "low"}, "min_pixels": 1},
        {"type": "image_url", "image_url": URL},
        {"type": "image", "image": URL},
    ]
    assert paths_of(content).param_of(field) == param


def test_paths_of_what_the_caller_wrote_differently() -> None:
    assert paths_of("x").param_of("spec.messages[0].parts[0].text") == "messages[0].content"
    paths = paths_of("x", max_completion_tokens=5)
    assert paths.param_of("spec.sampling.max_tokens") == "max_completion_tokens"


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_numbers_that_json_has_not(value: float) -> None:
    with pytest.raises(ApiError):
        spec_of(temperature=value)


def test_millions_of_wrong_items_are_one_finding() -> None:
    with pytest.raises(ApiError) as caught:
        spec_of(stop_token_ids=["a"] * 1_000_000)
    assert caught.value.param == "stop_token_ids[0]"
