"""The content of messages in the spellings of many clients, and refusals that name the field as it was written."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
import pytest

from qwenvl.inference.v1 import message_pb2 as message_pb
from rest_adapter.errors import ApiError
from rest_adapter.openai.chat.schema import parse_chat
from rest_adapter.openai.chat.translate import FieldPaths, to_spec


PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(200))
BASE64 = base64.b64encode(PNG).decode()
DATA_URI = f"data:image/png;base64,{BASE64}"
WEB = "https://h/x.png"


def message_of(
    content: object, role: str = "user", **fields: Any
) -> tuple[message_pb.Message, list[str]]:
    messages = [{"role": role, "content": content} | fields]
    chat, unknown = parse_chat(json.loads(json.dumps({"model": "m", "messages": messages})))
    return to_spec(chat, max_media_bytes=2**20).messages[0], unknown


def refused(content: object, role: str = "user", **fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        message_of(content, role, **fields)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    ("content", "texts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([{"type": "text", "text": "a"}, "b"], ["a", "b"]),
        ({"type": "text", "text": "a"}, ["a"]),
        ({"text": "a"}, ["a"]),
        ([{"text": "a"}, {"text": ""}], ["a", ""]),
        ([{"type": "input_text", "text": "a"}, {"type": "output_text", "text": "b"}], ["a", "b"]),
        ([{"type": "text", "text": "a", "image_url": None, "image": None}], ["a"]),
    ],
)
def test_text(content: object, texts: list[str]) -> None:
    message, unknown = message_of(content)
    assert [part.text for part in message.parts] == texts
    assert not unknown


@pytest.mark.parametrize("content", [None, "", [], [{"type": "thinking", "thinking": ""}]])
def test_an_empty_answer_is_empty_text(content: object) -> None:
    message, _ = message_of(content, "assistant")
    assert message == message_pb.Message(
        role=message_pb.ROLE_ASSISTANT, parts=[message_pb.Part(text="")]
    )
    for empty in (None, ""):
        refusal, _ = message_of(empty, "assistant", refusal="no")
        assert [part.refusal for part in refusal.parts] == ["no"]


def test_an_answer_without_the_key_is_empty_text() -> None:
    chat, _ = parse_chat({"model": "m", "messages": [{"role": "assistant"}]})
    assert [p.text for p in to_spec(chat, max_media_bytes=1).messages[0].parts] == [""]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": DATA_URI}},
        {"type": "image_url", "image_url": DATA_URI},
        {"type": "image_url", "image_url": BASE64},
        {"type": "input_image", "image_url": DATA_URI},
        {"type": "image", "image": DATA_URI},
        {"type": "image", "image": BASE64},
        {"type": "image", "url": DATA_URI},
        {"type": "image", "base64": BASE64},
        {"type": "image", "base64": DATA_URI},
        {"type": "image", "source_type": "base64", "data": BASE64, "mime_type": "image/png"},
        {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/png", "data": BASE64},
        },
        {"type": "image", "source": {"type": "url", "url": DATA_URI}},
        {"image": DATA_URI},
        {"image_url": {"url": DATA_URI}},
        {"image_url": DATA_URI, "image": None, "type": None},
    ],
)
def test_spellings_of_an_image_that_is_sent(part: dict[str, Any]) -> None:
    for content in ([part], part):
        message, unknown = message_of(content)
        assert [p.image.data for p in message.parts] == [PNG]
        assert not unknown


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "url": WEB},
        {"type": "image", "path": WEB},
        {"type": "image", "source": {"type": "url", "url": WEB}},
        {"type": "image", "source": WEB},
        {"image": WEB},
    ],
)
def test_spellings_of_an_image_at_a_url(part: dict[str, Any]) -> None:
    assert message_of([part])[0].parts[0].image.uri == WEB


def test_a_path_is_a_file_url() -> None:
    part = {"type": "image", "path": "/data/a b.png"}
    assert message_of([part])[0].parts[0].image.uri == "file:///data/a%20b.png"


@pytest.mark.parametrize(
    ("given_detail", "detail"),
    [
        ("LOW", message_pb.IMAGE_DETAIL_LOW),
        ("High", message_pb.IMAGE_DETAIL_HIGH),
        ("original", message_pb.IMAGE_DETAIL_ORIGINAL),
        ("Auto", message_pb.IMAGE_DETAIL_AUTO),
        ("", message_pb.IMAGE_DETAIL_UNSPECIFIED),
        (None, message_pb.IMAGE_DETAIL_UNSPECIFIED),
    ],
)
def test_detail(given_detail: str | None, detail: int) -> None:
    for part in (
        {"type": "image_url", "image_url": {"url": WEB, "detail": given_detail}},
        {"type": "input_image", "image_url": WEB, "detail": given_detail},
    ):
        assert message_of([part])[0].parts[0].image.detail == detail


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "text", "text": "x", "image_url": {"url": WEB}}, "image_url"),
        ({"type": "text", "text": "x", "image": WEB}, "image"),
        ({"type": "image_url", "image_url": WEB, "text": "x"}, "text"),
        ({"type": "image_url", "image_url": {"url": WEB}, "image": WEB}, "image"),
        ({"type": "image_url", "image_url": {"url": WEB}, "resized_width": 9}, "resized_width"),
        (
            {"type": "image_url", "image_url": {"url": WEB, "resized_height": 9}},
            "image_url.resized_height",
        ),
        ({"type": "image", "path": "a.png"}, "path"),
        ({"type": "image", "source": {"type": "file", "file_id": "f"}}, "source.file_id"),
        ({"type": "input_image", "file_id": "f"}, "file_id"),
        ({"type": "image", "base64": "@"}, "base64"),
        ({"type": "image", "base64": 5}, "base64"),
        ({"type": "image", "image": [WEB]}, "image"),
        ({"type": "image_url", "image_url": {"url": 5}}, "image_url.url"),
        ({"type": "image_url", "image_url": {"url": WEB, "detail": 1}}, "image_url.detail"),
        ({"type": "image", "image": WEB, "min_pixels": "9"}, "min_pixels"),
        ({"type": "image", "image": WEB, "max_pixels": True}, "max_pixels"),
        ({"type": "image", "image": WEB, "max_pixels": 2**64}, "max_pixels"),
        ({"image": WEB, "text": "x"}, "type"),
        ({"audio": "x"}, "audio"),
        ({"note": "x"}, "type"),
        ({"type": "poem"}, "type"),
        ({"type": ["text"], "text": "x"}, "type"),
        ({"type": "thinking", "thinking": "hm"}, "type"),
        ({"type": "video", "video": [WEB], "max_pixels": 9}, "max_pixels"),
        ({"type": "video", "video": [WEB, 5]}, "video[1]"),
        ({"type": "video", "video": WEB}, "video"),
    ],
)
def test_a_refusal_names_the_field(part: dict[str, Any], param: str) -> None:
    assert refused(["x", part]).param == f"messages[0].content[1].{param}"
    assert refused(part).param == f"messages[0].content.{param}"


@pytest.mark.parametrize("nothing", [None, "", {}, {"url": None}, {"url": "", "detail": None}])
def test_objects_that_hold_nothing_are_nothing(nothing: object) -> None:
    text = {"type": "text", "text": "x", "image_url": nothing, "file": nothing}
    image = {"type": "image_url", "image_url": {"url": WEB}, "video_url": nothing}
    target, unknown = message_of([text, image])
    assert [part.WhichOneof("kind") for part in target.parts] == ["text", "image"]
    assert not unknown


def test_a_second_image_in_an_object_is_not_dropped() -> None:
    for kind in ("base64", "url"):
        source = {"type": kind, "url": WEB, "data": "AAAA"}
        error = refused([{"type": "image", "source": source}])
        assert error.param == "messages[0].content[0].source.url"


def test_null_is_not_called_missing() -> None:
    assert "is null, but must be text" in refused([{"type": "text", "text": None}]).message
    assert "is missing" in refused([{"type": "text"}]).message


@pytest.mark.parametrize("field", ["experimental_attachments", "image_urls", "video", "file"])
def test_content_beside_the_content_is_not_dropped(field: str) -> None:
    assert refused("x", "user", **{field: [WEB]}).param == f"messages[0].{field}"
    message_of("x", "user", **{field: []})


def test_unknown_keys_are_found_at_every_depth() -> None:
    part = {
        "type": "image_url",
        "image_url": {"url": WEB, "a": 1, "format": "png"},
        "b": 1,
        "cache_control": {"type": "ephemeral"},
    }
    source = {"type": "image", "source": {"type": "url", "url": WEB, "c": 1}}
    _, unknown = message_of([part, source, {"type": "text", "text": "x", "d": 1, "e": None}])
    assert unknown == [
        "messages[0].content[0].b",
        "messages[0].content[0].image_url.a",
        "messages[0].content[1].source.c",
        "messages[0].content[2].d",
    ]


def test_partial_continues_the_answer() -> None:
    def spec(**fields: Any) -> Any:
        last = {"role": "assistant", "content": "It is"} | fields
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}, last]}
        chat, _ = parse_chat(body)
        return chat, to_spec(chat, max_media_bytes=1).template

    for name in ("partial", "prefix"):
        chat, template = spec(**{name: True})
        assert template.continue_final_message
        path = FieldPaths(chat).param_of("spec.template.continue_final_message")
        assert path == f"messages[1].{name}"
        assert not spec(**{name: False})[1].HasField("continue_final_message")
    assert refused("x", partial=True).param == "messages[0].partial"


VALUES = st.recursive(
    st.sampled_from([None, True, 0, 1.5, "", "x", WEB, DATA_URI, "data:,", "low", 2**63]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["url", "detail", "type", "data", "x"]), inner, max_size=3
        )
    ),
    max_leaves=5,
)
KEYS = [
    *("type", "text", "image", "image_url", "url", "path", "base64", "source", "video", "refusal"),
    *("detail", "min_pixels", "resized_width", "uuid", "fps", "file_id", "audio"),
]
KINDS = st.sampled_from(["text", "image_url", "image", "video", "refusal", "file", "thinking"])
PARTS = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4)
TYPED_PARTS = st.builds(lambda part, kind: part | {"type": kind}, PARTS, KINDS)
CONTENTS = PARTS | TYPED_PARTS | VALUES | st.lists(PARTS | TYPED_PARTS | VALUES, max_size=3)


def exists(param: str, document: Any) -> bool:
    """Whether a path leads to a value, or to a field that is missing in an existing object."""
    steps = re.findall(r"\[(\d+)\]|([^.\[]+)", param)
    for position, (index, name) in enumerate(steps):
        if index:
            if not isinstance(document, list) or int(index) >= len(document):
                return False
            document = document[int(index)]
        elif not isinstance(document, dict):
            return False
        elif name not in document:
            return position == len(steps) - 1
        else:
            document = document[name]
    return True


@hypothesis_settings(deadline=None, max_examples=400)
@given(CONTENTS, st.sampled_from(["user", "assistant", "system"]))
def test_any_content_is_read_or_refused_by_an_existing_path(content: object, role: str) -> None:
    body = {"model": "m", "messages": [{"role": role, "content": content}]}
    try:
        chat, unknown = parse_chat(body)
        to_spec(chat, max_media_bytes=2**20)
    except ApiError as error:
        check_error(error, body)
        return
    assert all(exists(path, body) for path in unknown)


FIELDS = [
    *("temperature", "max_tokens", "max_completion_tokens", "seed", "stop", "n", "logit_bias"),
    *("stream", "stream_options", "chat_template_kwargs", "mm_processor_kwargs", "thinking"),
    *("response_format", "tools", "tool_choice", "stop_token_ids", "top_logprobs", "logprobs"),
    *("messages", "model", "request_id", "enable_thinking", "min_pixels", "surprise"),
]


@hypothesis_settings(deadline=None, max_examples=400)
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3))
def test_any_fields_are_read_or_refused_by_an_existing_path(fields: dict[str, Any]) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}]} | fields
    try:
        chat, _ = parse_chat(body)
        to_spec(chat, max_media_bytes=2**20)
    except ApiError as error:
        check_error(error, body)


def check_error(error: ApiError, body: dict[str, Any]) -> None:
    assert error.status in (400, 404, 413)  # 404: no model has an empty name
    assert error.message
    assert not re.search(r"Input should|pydantic|1e-|e\+|\.str\b|None|True|False", error.message)
    assert error.param is None or exists(error.param, body), (error.param, error.message)


@pytest.mark.parametrize("name", ["images", "image_url", "attachments", "parts"])
def test_content_beside_the_content_is_refused(name: str) -> None:
    error = refused("x", **{name: [BASE64]})  # type: ignore[arg-type]
    assert error.param == f"messages[0].{name}"
    assert "as a part of 'content'" in error.message
    assert message_of("x", **{name: []})[1] == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"image_url": {"url": WEB}}, 0),
        ({"image_url": {"url": WEB}, "transformations": {"oversized_image": "error"}}, 2),
        ({"image_url": {"url": WEB, "transformations": {"oversized_image": "error"}}}, 2),
        ({"image": WEB, "transformations": {"oversized_image": "downsize"}}, 1),
        ({"image": WEB, "transformations": {}}, 0),
        ({"image": WEB, "transformations": {"oversized_image": None}}, 0),
    ],
)
def test_what_happens_to_an_oversized_image(part: dict[str, Any], expected: int) -> None:
    message, unknown = message_of([part])
    assert message.parts[0].image.oversized == expected
    assert not unknown


@pytest.mark.parametrize(
    ("transformations", "path"),
    [
        ("error", ""),
        ({"oversized_image": "crop"}, ".oversized_image"),
        ({"oversized_image": 3}, ".oversized_image"),
        ({"rotate": 90}, ".rotate"),
    ],
)
def test_other_transformations_are_refused(transformations: object, path: str) -> None:
    error = refused([{"image": WEB, "transformations": transformations}])
    assert error.param == f"messages[0].content[0].transformations{path}"


def test_what_happens_to_all_oversized_images() -> None:
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    for value, expected in (("error", 2), ("downsize", 1), (None, 0)):
        chat, unknown = parse_chat(body | {"mm_processor_kwargs": {"oversized_image": value}})
        assert to_spec(chat, max_media_bytes=9).media.oversized == expected
        assert not unknown
    assert FieldPaths(chat).param_of("spec.media.oversized") == (
        "mm_processor_kwargs.oversized_image"
    )
    with pytest.raises(ApiError) as caught:
        parse_chat(body | {"mm_processor_kwargs": {"oversized_image": "crop"}})
    assert caught.value.param == "mm_processor_kwargs.oversized_image"
