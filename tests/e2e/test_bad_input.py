"""Bad input gets the right status, an OpenAI error body with `param`, and the next request is served."""

from __future__ import annotations

import io
import json
import struct
from typing import Any
import zlib

import numpy as np
from PIL import Image
import pytest
import requests

from tests.e2e.conftest import Served
from tests.support.images import draw


pytestmark = pytest.mark.both_backends


def ask(served: Served, body: bytes | dict[str, Any], **options: Any) -> requests.Response:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    return requests.post(
        f"{served.http}/v1/chat/completions", data=data, headers=headers, timeout=60, **options
    )


def with_image(url: str, **fields: Any) -> dict[str, Any]:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": url}},
    ]
    return {
        "model": "qwen-vl",
        "messages": [{"role": "user", "content": parts}],
        "max_tokens": 16,
    } | fields


def with_text(text: str, **fields: Any) -> dict[str, Any]:
    return {
        "model": "qwen-vl",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 16,
    } | fields


def data_uri(data: bytes) -> str:
    import base64

    return "data:image/png;base64," + base64.b64encode(data).decode()


def png_header_only(width: int, height: int) -> bytes:
    """A PNG whose header promises a size that its data does not have."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 64))
        + chunk(b"IEND", b"")
    )


IMAGE = "messages[0].content[1].image_url.url"

REFUSED_BODIES: dict[str, tuple[bytes | dict[str, Any], int, str | None]] = {
    "not an image": (with_image(data_uri(b"hello, I am a text")), 400, IMAGE),
    "truncated PNG": (with_image(data_uri(draw("red", "circle").png[:-200])), 400, IMAGE),
    "60,000 x 60,000": (with_image(data_uri(png_header_only(60_000, 60_000))), 400, IMAGE),
    "broken base64": (with_image("data:image/png;base64,@"), 400, IMAGE),
    "empty messages": ({"model": "qwen-vl", "messages": []}, 400, "messages"),
    "unknown role": (
        {"model": "qwen-vl", "messages": [{"role": "king", "content": "x"}]},
        400,
        "messages[0].role",
    ),
    "name of a speaker": (
        {"model": "qwen-vl", "messages": [{"role": "user", "content": "x", "name": "Ann" * 99}]},
        400,
        "messages[0].name",
    ),
    "unknown model": (with_text("x", model="gpt-17"), 404, "model"),
    "prompt too long": (with_text("red circle " * 5000), 400, "messages"),
    "answer without limit": (with_text("x", max_tokens=-1), 400, "max_tokens"),
    "temperature": (with_text("x", temperature=9), 400, "temperature"),
    "temperature type": (with_text("x", temperature="hot"), 400, "temperature"),
    "top_p": (with_text("x", top_p=1.5), 400, "top_p"),
    "n": (with_text("x", n=1000), 400, "n"),
    "tools of the service": (
        with_text("x", tools=[{"type": "web_search"}]),
        400,
        "tools[0].type",
    ),
    "name of a function": (
        with_text("x", tools=[{"type": "function", "function": {"name": "f g"}}]),
        400,
        "tools[0].function.name",
    ),
    "form of the answer": (
        with_text("x", response_format={"type": "json_schema"}),
        400,
        "response_format",
    ),
    "audio": (with_text("x", modalities=["audio"]), 400, "modalities"),
    "no JSON": (b"{", 400, None),
    "deep JSON": (
        b'{"model":"qwen-vl","messages":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        400,
        None,
    ),
    "invalid UTF-8": (
        b'{"model":"qwen-vl","messages":[{"role":"user","content":"\xff\xfe"}]}',
        400,
        None,
    ),
    "a list": (b"[]", 400, None),
    "empty": (b"", 400, None),
}


def assert_openai_error(response: requests.Response, status: int, param: str | None) -> None:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code", "request_id"}
    assert error["message"]
    assert error["code"] is None or isinstance(error["code"], str)
    assert error["param"] == param, error


@pytest.fixture(autouse=True)
def next_request_is_served(served: Served):
    yield
    assert ask(served, with_image(draw("red", "circle").data_uri)).status_code == 200


@pytest.mark.parametrize("case", REFUSED_BODIES)
def test_refused_body(served: Served, case: str) -> None:
    body, status, param = REFUSED_BODIES[case]
    assert_openai_error(ask(served, body), status, param)


@pytest.mark.parametrize("kind", ["16-bit PNG", "BMP", "TIFF", "GIF", "JPEG without end mark"])
def test_images_of_every_kind_are_seen(served: Served, kind: str) -> None:
    """The demo model tells the same of a shape in whatever file it is."""
    plain = draw("red", "circle").png
    image = Image.open(io.BytesIO(plain)).convert("RGB")
    saved = io.BytesIO()
    if kind == "16-bit PNG":
        wide = np.asarray(image.convert("L")).astype(np.uint16) * 257
        Image.fromarray(wide).save(saved, "PNG")
        narrow = io.BytesIO()
        image.convert("L").save(narrow, "PNG")
        plain = narrow.getvalue()
    else:
        image.save(saved, kind.split(maxsplit=1)[0], quality=95)
    data = saved.getvalue()[: -2 if "without" in kind else None]
    told = [ask(served, with_image(data_uri(file), temperature=0)).json() for file in (data, plain)]
    assert told[0]["choices"][0]["message"] == told[1]["choices"][0]["message"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", "AVIF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (draw("red", "circle").png[:-200], "is cut off"),
    ],
)
def test_refusals_of_images_say_what_was_sent(served: Served, data: bytes, words: str) -> None:
    answer = ask(served, with_image(data_uri(data)))
    assert_openai_error(answer, 400, IMAGE)
    assert words in answer.json()["error"]["message"]


def test_unknown_model_has_its_code(served: Served) -> None:
    error = ask(served, with_text("x", model="gpt-17")).json()["error"]
    assert error["code"] == "model_not_found"


def test_context_overflow_has_its_code(served: Served) -> None:
    error = ask(served, with_text("red circle " * 5000)).json()["error"]
    assert error["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/x.png",
        "http://169.254.169.254/latest/meta-data",
        "http://[::ffff:127.0.0.1]/x.png",
        "http://2130706433/",
        "http://localhost:1/x.png",
        "http://user:secret@127.0.0.1/x.png",
        "http://127.0.0.1\\@example.com/x.png",
        "file:///etc/passwd",
        "ftp://127.0.0.1/x.png",
        "gopher://x",
        "",
    ],
)
def test_forbidden_url(served: Served, url: str) -> None:
    response = ask(served, with_image(url))
    assert_openai_error(response, 400, IMAGE)
    assert "secret" not in response.text


def test_redirect_to_a_forbidden_address(served: Served, image_host: str) -> None:
    assert_openai_error(ask(served, with_image(f"http://{image_host}/redirect")), 400, IMAGE)


def test_url_that_is_no_image(served: Served, image_host: str) -> None:
    assert_openai_error(ask(served, with_image(f"http://{image_host}/page.html")), 400, IMAGE)


def test_one_pixel_image_is_answered(served: Served) -> None:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (1, 1), "red").save(buffer, "PNG")
    assert ask(served, with_image(data_uri(buffer.getvalue()))).status_code == 200


def test_48_megabyte_body(served: Served) -> None:
    body = json.dumps(with_image("data:image/png;base64," + "A" * (48 * 2**20))).encode()
    try:
        response = ask(served, body)
    except requests.ConnectionError:
        # The server may close the connection while the client still writes; what matters is that the others are served.
        return
    assert_openai_error(response, 413, None)


def test_48_megabytes_in_chunks(served: Served) -> None:
    def chunks():
        for _ in range(48):
            yield b"A" * 2**20

    try:
        response = requests.post(f"{served.http}/v1/chat/completions", data=chunks(), timeout=60)
    except requests.ConnectionError:
        return
    assert_openai_error(response, 413, None)


def test_unknown_path_and_method(served: Served) -> None:
    assert_openai_error(requests.get(f"{served.http}/v1/nothing", timeout=10), 404, None)
    assert_openai_error(requests.get(f"{served.http}/v1/chat/completions", timeout=10), 405, None)
