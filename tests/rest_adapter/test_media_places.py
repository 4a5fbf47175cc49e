"""Images may be long where images may stand; every other text counts as text, however it begins."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
import json
from pathlib import Path
import random
import textwrap
from typing import Any

import anthropic
import openai
import pytest
import requests

from rest_adapter.errors import ApiError
from rest_adapter.json_size import check_size
from rest_adapter.media_places import check_places
from tests.rest_adapter.conftest import Adapter, open_adapter


MIB = 2**20
TEXT = 20_000
"""Maximum size of the text of the bodies below."""
BASE64 = "QUJD" * TEXT
URI = "data:image/png;base64," + BASE64
ANTHROPIC = {"type": "base64", "media_type": "image/png", "data": BASE64}


def user(*parts: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [*parts]}]}


def item(*parts: object) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": [*parts]}]}


PLACES: dict[str, dict[str, Any]] = {
    "openai": user({"type": "image_url", "image_url": {"url": URI}}),
    "langchain": user({"type": "image_url", "image_url": URI}),
    "langchain, source_type": user({"type": "image", "source_type": "base64", "data": BASE64}),
    "langchain, base64": user({"type": "image", "base64": BASE64, "mime_type": "image/png"}),
    "dify": user({"type": "image_url", "image_url": {"url": URI, "detail": "high"}}),
    "one part": {"messages": [{"role": "user", "content": {"type": "image", "url": URI}}]},
    "transformers": user({"type": "image", "image": URI}),
    "image with a url": user({"type": "image", "image": {"url": URI}}),
    "bare base64": user({"image": BASE64}),
    "frames": user({"type": "video", "video": [URI, URI]}),
    "result of a tool": {
        "messages": [
            {
                "role": "tool",
                "tool_call_id": "c",
                "content": [{"type": "image_url", "image_url": {"url": URI}}],
            }
        ]
    },
    "anthropic": user({"type": "image", "source": ANTHROPIC}),
    "anthropic, url": user({"type": "image", "source": {"type": "url", "url": URI}}),
    "anthropic, result of a tool": user(
        {
            "type": "tool_result",
            "tool_use_id": "t",
            "content": [{"type": "image", "source": ANTHROPIC}],
        }
    ),
    "anthropic, document": user({"type": "document", "source": ANTHROPIC}),
    "responses": item({"type": "input_image", "image_url": URI}),
    "responses, file": item({"type": "input_file", "filename": "a.pdf", "file_data": URI}),
    "responses, result of a function": {
        "input": [
            {
                "type": "function_call_output",
                "call_id": "c",
                "output": [{"type": "input_image", "image_url": URI}],
            }
        ]
    },
    "responses, screenshot": {
        "input": [{"type": "computer_call_output", "output": {"image_url": URI}}]
    },
    "chat, file": user({"type": "file", "file": {"file_data": URI}}),
    "completions": {"prompt": "a", "images": [URI]},
    "completions, object": {"prompt": "a", "images": [{"url": URI}]},
    "decisions": {
        "input": "a",
        "questions": [{"instructions": [{"type": "input_image", "image_url": URI}]}],
    },
    # of other APIs, which are refused with advice
    "dashscope": {"input": {"messages": [{"role": "user", "content": [{"image": URI}]}]}},
    "gemini": {"contents": [{"parts": [{"inline_data": {"data": BASE64}}]}]},
    "ollama": {"messages": [{"role": "user", "content": "a", "images": [BASE64]}]},
}

ELSEWHERE: dict[str, tuple[dict[str, Any], str]] = {
    "option": ({"cache_salt": BASE64}, "cache_salt"),
    "unknown": ({"url": URI}, "url"),
    "user": ({"user": URI}, "user"),
    "metadata": ({"metadata": {"url": URI}}, "metadata.url"),
    "text": (user({"type": "text", "text": URI}), "messages[0].content[0].text"),
    "content": ({"messages": [{"content": BASE64}]}, "messages[0].content"),
    "texts": ({"messages": [{"content": [BASE64]}]}, "messages[0].content[0]"),
    "id of a part": (user({"type": "image", "uuid": BASE64}), "messages[0].content[0].uuid"),
    "prompt": ({"prompt": [BASE64]}, "prompt[0]"),
    "input": ({"input": BASE64}, "input"),
    "schema of a tool": (
        {"tools": [{"function": {"name": "f", "parameters": {"image_url": {"url": URI}}}}]},
        "tools[0].function.parameters.image_url.url",
    ),
    "schema": ({"guided_json": {"content": {"data": BASE64}}}, "guided_json.content.data"),
    "form": ({"text": {"format": {"schema": {"image": URI}}}}, "text.format.schema.image"),
    "arguments of a call": (
        {"messages": [{"tool_calls": [{"function": {"arguments": {"image": URI}}}]}]},
        "messages[0].tool_calls[0].function.arguments.image",
    ),
    "arguments of a function": ({"input": [{"arguments": {"url": URI}}]}, "input[0].arguments.url"),
    "input of a tool": (
        user({"type": "tool_use", "input": {"source": {"data": BASE64}}}),
        "messages[0].content[0].input.source.data",
    ),
    "JSON as evidence": (
        item({"type": "input_json", "data": {"image": {"url": URI}}}),
        "input[0].content[0].data.image.url",
    ),
    "reasoning": (
        {"input": [{"type": "reasoning", "encrypted_content": BASE64}]},
        "input[0].encrypted_content",
    ),
    "option of a question": (
        {"questions": [{"choices": [{"value": URI}]}]},
        "questions[0].choices[0].value",
    ),
    "not an image": (user({"image": "http://x/" + BASE64}), "messages[0].content[0].image"),
    "long name": ({"x" * 500: {"url": URI}}, "x" * 80 + ".url"),
}


def check(document: object) -> None:
    check_places(document, len(json.dumps(document)), max_text_bytes=TEXT)


@pytest.mark.parametrize("case", PLACES)
def test_an_image_may_be_long(case: str) -> None:
    check(PLACES[case])
    with pytest.raises(ApiError, match="--max-text-mib"):
        check(PLACES[case] | {"user": "a" * (TEXT + 1)})


@pytest.mark.parametrize("case", ELSEWHERE)
def test_other_texts_may_not(case: str) -> None:
    document, path = ELSEWHERE[case]
    with pytest.raises(ApiError, match=r"0\.1 MiB without its images.*max-text-mib") as refused:
        check(document)
    assert (refused.value.status, refused.value.param) == (413, path)
    assert f"'{path}'" in refused.value.message


@pytest.mark.parametrize("case", PLACES)
def test_the_same_image_may_not_be_long_in_a_schema(case: str) -> None:
    """Whatever names the caller's own JSON has."""
    for wrapped in (
        {"guided_json": PLACES[case]},
        {"tools": [{"function": {"name": "f", "parameters": PLACES[case]}}]},
        {"messages": [{"tool_calls": [{"function": {"arguments": PLACES[case]}}]}]},
        user({"type": "tool_use", "id": "t", "name": "f", "input": PLACES[case]}),
    ):
        with pytest.raises(ApiError, match="--max-text-mib"):
            check(wrapped)


def test_many_short_texts_beside_an_image_are_text() -> None:
    parts = [{"type": "text", "text": "abc"}] * 2000
    with pytest.raises(ApiError, match="--max-text-mib") as refused:
        check(user({"type": "image", "image": URI}, *parts))
    assert refused.value.param is None


JPEG = b"\xff\xd8\xff" + random.Random(1).randbytes(90_000)
PLAIN = base64.b64encode(JPEG).decode()
WRITTEN: dict[str, Callable[[str], str]] = {
    "as it is": json.dumps,
    "slashes escaped, as by PHP": lambda text: json.dumps(text).replace("/", "\\/"),
    "plus escaped, as by .NET": lambda text: json.dumps(text).replace("+", "\\u002B"),
    "in lines": lambda text: json.dumps(base64.encodebytes(base64.b64decode(text)).decode()),
    "in lines of MIME": lambda text: json.dumps("\r\n".join(textwrap.wrap(text, 76))),
    "behind a line end": lambda text: json.dumps("\n " + text),
}


@pytest.mark.parametrize("prefix", ["", "data:image/jpeg;base64,"])
@pytest.mark.parametrize("way", WRITTEN)
def test_base64_is_an_image_however_it_is_written(way: str, prefix: str) -> None:
    written = WRITTEN[way](PLAIN).replace('"', '"' + prefix.replace("/", "\\/"), 1)
    raw = json.dumps(user({"type": "image", "base64": "it"})).replace('"it"', written).encode()
    check_size(bytearray(raw), max_text_bytes=TEXT)
    check_places(json.loads(raw), len(raw), max_text_bytes=TEXT)


CLIENTS = Path(__file__).parents[1] / "clients" / "requests"


def bodies_of_clients() -> Iterator[Any]:
    """The requests of real clients that have images or other files in them."""
    for path in sorted(CLIENTS.glob("*.json")):
        for request in json.loads(path.read_text())["requests"]:
            body, count = with_long_files(request["body"])
            if count:
                yield pytest.param(body, id=f"{path.stem}: {request['name']}")


def with_long_files(value: Any) -> tuple[Any, int]:
    """The value with long files in place of short ones and of their names, and how many these are."""
    if isinstance(value, dict):
        found = {name: with_long_files(inner) for name, inner in value.items()}
        return {name: one for name, (one, _) in found.items()}, sum(n for _, n in found.values())
    if isinstance(value, list):
        pairs = [with_long_files(inner) for inner in value]
        return [one for one, _ in pairs], sum(count for _, count in pairs)
    if isinstance(value, str) and (value == "$DATA_URI" or value.startswith("data:")):
        return URI, 1
    return (BASE64, 1) if value == "$BASE64" else (value, 0)


@pytest.mark.parametrize("body", [*bodies_of_clients()])
def test_real_clients_may_send_large_files(body: dict[str, Any]) -> None:
    check(body)


@pytest.fixture(scope="module")
def terse() -> Iterator[Adapter]:
    with open_adapter(max_text_mib=1, max_body_mib=8, max_media_mib=6) as adapter:
        yield adapter


IMAGE = bytes(range(256)) * 8 * 1024  # 2 MiB
LARGE = "data:image/png;base64," + base64.b64encode(IMAGE).decode()


def test_the_official_clients_send_large_images(terse: Adapter) -> None:
    with openai.OpenAI(base_url=f"{terse.url}/v1", api_key="none", max_retries=0) as client:
        part: Any = {"type": "image_url", "image_url": {"url": LARGE}}
        client.chat.completions.create(model="demo", messages=[{"role": "user", "content": [part]}])
        assert terse.spec.messages[0].parts[0].image.data == IMAGE
        shown: Any = {"type": "input_image", "image_url": LARGE, "detail": "auto"}
        call: Any = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
        result: Any = {"type": "function_call_output", "call_id": "c", "output": [shown]}
        question: Any = {"role": "user", "content": [shown]}
        client.responses.create(model="demo", input=[question, call, result])
        found = [message.parts[0].image.data for message in terse.spec.messages if message.parts]
        assert found == [IMAGE, IMAGE]
    with anthropic.Anthropic(base_url=terse.url, api_key="none", max_retries=0) as client:
        block: Any = {"type": "image", "source": ANTHROPIC | {"data": LARGE.partition(",")[2]}}
        use: Any = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
        answer: Any = {"type": "tool_result", "tool_use_id": "t", "content": [block]}
        client.messages.create(
            model="demo",
            max_tokens=9,
            messages=[
                {"role": "user", "content": [block]},
                {"role": "assistant", "content": [use]},
                {"role": "user", "content": [answer]},
            ],
        )
        found = [message.parts[0].image.data for message in terse.spec.messages if message.parts]
        assert found == [IMAGE, IMAGE]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", user({"type": "text", "text": "a"})),
        ("chat/completions/render", user({"type": "text", "text": "a"})),
        ("completions", {"prompt": "a"}),
        ("responses", {"input": "a"}),
        ("messages", user({"type": "text", "text": "a"}) | {"max_tokens": 9}),
        ("decisions", {"input": "a", "questions": []}),
    ],
)
def test_nothing_else_is_as_long_as_an_image(
    terse: Adapter, path: str, body: dict[str, Any]
) -> None:
    calls = terse.seen.calls
    sent = {"model": "demo"} | body | {"cache_salt": LARGE}
    answer = requests.post(f"{terse.url}/v1/{path}", json=sent, timeout=30)
    assert answer.status_code == 413
    assert "'cache_salt' with 2.7 MiB" in answer.json()["error"]["message"]
    assert answer.json()["error"].get("param", "cache_salt") == "cache_salt"
    assert terse.seen.calls == calls
