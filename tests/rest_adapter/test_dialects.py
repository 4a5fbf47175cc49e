"""A new dialect brings its own errors, keys and streams; the others stay as they were."""

from __future__ import annotations

from collections.abc import Iterator
import hashlib
import json
from pathlib import Path
import socket
from typing import Any

from fastapi import APIRouter, Request, Response
import pytest
import requests

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from rest_adapter.app import DIALECTS
from rest_adapter.dialect import Dialect, choose
from rest_adapter.json_body import read_json
from rest_adapter.json_model import Float, JsonModel, unknown_fields
from rest_adapter.media import ImageSources
from rest_adapter.proto_fields import set_fields
from rest_adapter.reply import json_reply, stream_reply
from rest_adapter.state import call_metadata, shared
from rest_adapter.validation import validate
from tests.rest_adapter.conftest import Adapter, open_adapter, wait_until


router = APIRouter()


class Saying(JsonModel):
    say: str
    stream: bool = False
    model: str = "demo"
    image: str | None = None
    temperature: Float | None = None


def parse(document: object) -> tuple[Saying, list[str]]:
    asked = validate(Saying, document)
    return asked, [*unknown_fields(asked, ignored=("feathers",))]


@router.post("/v1/parrot")
async def repeat(request: Request) -> Response:
    asked = await read_json(request, parse)
    parts = [message_pb.Part(text=asked.say)]
    if asked.image is not None:
        parts.append(message_pb.Part())
        ImageSources(1000).set(parts[-1].image, asked.image, "image")
    spec = chat_pb.ChatCompletionSpec(
        model=asked.model,
        messages=[message_pb.Message(role=message_pb.ROLE_USER, parts=parts)],
    )
    set_fields(spec.sampling, asked, ("temperature",))
    service, metadata = shared(request).service, call_metadata(request)
    if not asked.stream:
        work = service.create_chat(spec, metadata=metadata)
        return await json_reply(
            request, work, lambda answer: {"said": answer.choices[0].text}, last_name
        )
    return await stream_reply(
        request,
        service.stream_chat(spec, metadata=metadata),
        lambda event: event.delta.text.encode() + b"\n\n" if event.delta.text else b"",
        last_name,
    )


def last_name(path: str) -> str:
    return path.rpartition(".")[2]


@router.get("/v1/parrot/defect")
async def defect() -> Response:
    raise ZeroDivisionError


PARROT = Dialect(
    prefix="/v1/parrot",
    router=router,
    authorizations_of=lambda headers: [f"Bearer {key}" for key in headers.getlist("x-parrot-key")],
    challenge=None,
    render_error=lambda error: (
        {"x-parrot": "sad"},
        json.dumps({"squawk": error.reason, "at": error.param, "why": error.message}).encode(),
    ),
    render_error_event=lambda error: f"event: squawk\ndata: {error.reason}\n\n".encode(),
    stream_end=b"event: bye\n\n",
)


@pytest.fixture(scope="module")
def open_parrot() -> Iterator[Adapter]:
    with open_adapter(
        (*DIALECTS, PARROT), max_body_mib=1, body_timeout_s=1, strict_fields=True
    ) as adapter:
        yield adapter


@pytest.fixture(scope="module")
def guarded_parrot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adapter]:
    keys: Path = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("cracker\n")
    with open_adapter((*DIALECTS, PARROT), api_key_file=str(keys)) as adapter:
        yield adapter


def say(adapter: Adapter, text: str, **fields: Any) -> requests.Response:
    headers = fields.pop("headers", None)
    body = {"say": text} | fields
    return requests.post(f"{adapter.url}/v1/parrot", json=body, headers=headers, timeout=30)


def assert_squawk(response: requests.Response, status: int, reason: str) -> dict:
    assert response.status_code == status, response.text
    assert response.headers["x-parrot"] == "sad"
    assert response.headers["x-request-id"]
    assert response.headers["content-type"] == "application/json"
    assert not {"x-should-retry", "www-authenticate"} & response.headers.keys()
    assert response.json()["squawk"] == reason
    return response.json()


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/parrot", "parrot"),
        ("/v1/parrot/defect", "parrot"),
        ("/v1/parrots", "openai"),
        ("/v1/chat/completions", "openai"),
        ("/v1", "openai"),
        ("/parrot", "openai"),
        ("/", "openai"),
        ("/v1/messages", "anthropic"),
        ("/v1/messages/count_tokens", "anthropic"),
        ("/v1/messages/nothing", "anthropic"),
        ("/v1/message", "openai"),
    ],
)
def test_the_path_decides(path: str, name: str) -> None:
    expected = {"openai": DIALECTS[0], "anthropic": DIALECTS[1], "parrot": PARROT}[name]
    assert choose((*DIALECTS, PARROT), path) is expected


def test_answers_whole_and_streamed(open_parrot: Adapter) -> None:
    assert say(open_parrot, "hé").json() == {"said": "hé"}
    streamed = say(open_parrot, "hé", stream=True)
    assert streamed.content.decode() == "h\n\né\n\nevent: bye\n\n"
    assert streamed.headers["content-type"].startswith("text/event-stream")


def test_fields_and_images_are_converted(open_parrot: Adapter) -> None:
    assert say(open_parrot, "x", temperature=0.5, image="data:,YWI=", feathers=3).status_code == 200
    assert open_parrot.spec.sampling.temperature == 0.5
    assert open_parrot.spec.messages[0].parts[1].image.data == b"ab"
    for fields in ({"image": "data:;base64,?"}, {"temperature": "0.5"}):
        refused = say(open_parrot, "x", **fields)
        assert refused.status_code == 400
        assert [refused.json()["at"]] == [*fields]


def test_keys_come_in_its_own_header(guarded_parrot: Adapter) -> None:
    wrong: tuple[dict[str, str], ...] = (
        {},
        {"x-parrot-key": "seed"},
        {"authorization": "Bearer cracker"},
    )
    for headers in wrong:
        assert_squawk(say(guarded_parrot, "x", headers=headers), 401, "UNAUTHENTICATED")
    right = say(guarded_parrot, "x", headers={"x-parrot-key": "cracker"})
    assert right.status_code == 200
    assert guarded_parrot.seen.metadata[-1]["authorization"] == "Bearer cracker"
    other = guarded_parrot.ask(headers={"x-parrot-key": "cracker"})
    assert other.status_code == 401
    assert other.headers["www-authenticate"] == "Bearer"
    assert other.json()["error"]["code"] == "invalid_api_key"
    assert guarded_parrot.ask(headers={"authorization": "Bearer cracker"}).status_code == 200


def test_callers_are_logged_whatever_header_has_the_key(
    guarded_parrot: Adapter, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "rest_adapter.access")
    cracker, unknown = (hashlib.sha256(key).hexdigest()[:12] for key in (b"cracker", b"seed"))
    by_parrot, by_bearer = {"x-parrot-key": "cracker"}, {"authorization": "bearer cracker"}
    say(guarded_parrot, "x", headers={"x-request-id": "a"} | by_parrot)
    guarded_parrot.ask(headers={"x-request-id": "b"} | by_bearer)
    say(guarded_parrot, "x", headers={"x-request-id": "c", "x-parrot-key": "seed"} | by_bearer)
    say(guarded_parrot, "x", headers={"x-request-id": "d"} | by_bearer)

    def lines() -> dict[str, Any]:
        lines: list[Any] = [r.msg for r in caplog.records if r.name == "rest_adapter.access"]
        return {line.get("client_request_id"): line for line in lines}

    wait_until(lambda: lines().keys() >= {*"abcd"})
    seen = {name: (line["status"], line.get("caller")) for name, line in lines().items()}
    assert seen | {"a": (200, cracker), "b": (200, cracker)} == seen
    assert seen | {"c": (401, unknown), "d": (401, None)} == seen
    assert "cracker" not in caplog.text


def test_a_dialect_that_names_no_request_passes_on_its_id(open_parrot: Adapter) -> None:
    answer = say(open_parrot, "x")
    seen = open_parrot.seen.metadata[-1]
    assert seen["qwenvl-request-id"] == answer.headers["x-request-id"]
    assert not {"x-request-id", "authorization"} & seen.keys()


def test_errors_before_the_route(open_parrot: Adapter) -> None:
    url = f"{open_parrot.url}/v1/parrot"
    assert_squawk(requests.get(f"{url}/nothing", timeout=10), 404, "NOT_FOUND")
    method = requests.get(url, timeout=10)
    assert_squawk(method, 405, "METHOD_NOT_ALLOWED")
    assert method.headers["allow"] == "OPTIONS, POST"
    large = requests.post(url, data=b" " * 2**21, timeout=10)
    assert_squawk(large, 413, "MESSAGE_TOO_LARGE")
    assert large.headers["connection"] == "close"
    chunked = requests.post(url, data=(b" " * 2**20 for _ in range(2)), timeout=10)
    assert_squawk(chunked, 413, "MESSAGE_TOO_LARGE")
    text = requests.post(url, data=b"{}", headers={"content-type": "text/plain"}, timeout=10)
    assert_squawk(text, 415, "UNSUPPORTED_MEDIA_TYPE")
    assert_squawk(requests.post(url, data=b"{", timeout=10), 400, "INVALID_JSON")


def test_a_body_that_comes_too_slowly(open_parrot: Adapter) -> None:
    head = b"POST /v1/parrot HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"
    received = b""
    with socket.create_connection(("127.0.0.1", open_parrot.port), timeout=15) as client:
        client.sendall(head)
        while data := client.recv(4096):
            received += data
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b'"squawk": "BODY_TIMEOUT"' in received


def test_an_internal_error_discloses_nothing(open_parrot: Adapter) -> None:
    response = requests.get(f"{open_parrot.url}/v1/parrot/defect", timeout=10)
    assert_squawk(response, 500, "INTERNAL")
    assert "ZeroDivision" not in response.text


def test_fields_are_named(open_parrot: Adapter) -> None:
    nothing = requests.post(f"{open_parrot.url}/v1/parrot", json={}, timeout=10)
    assert assert_squawk(nothing, 400, "MISSING_FIELD")["at"] == "say"
    unknown = say(open_parrot, "x", loudly=True)
    assert assert_squawk(unknown, 400, "UNKNOWN_FIELD")["at"] == "loudly"


@pytest.mark.parametrize("stream", [True, False])
def test_errors_of_the_service(open_parrot: Adapter, stream: bool) -> None:
    found = assert_squawk(
        say(open_parrot, "fail INVALID_IMAGE", stream=stream), 400, "INVALID_IMAGE"
    )
    assert found["at"] == "temperature"
    full = say(open_parrot, "fail QUEUE_FULL", stream=stream)
    assert_squawk(full, 429, "QUEUE_FULL")
    assert full.headers["retry-after"] == "3"
    refused = say(open_parrot, "fail UNAUTHENTICATED", stream=stream)
    assert_squawk(refused, 401, "UNAUTHENTICATED")
    unknown = say(open_parrot, "x", model="nobody", stream=stream)
    assert_squawk(unknown, 404, "MODEL_NOT_FOUND")


def test_a_stream_that_fails_ends_with_its_own_event(open_parrot: Adapter) -> None:
    text = say(open_parrot, "fail-after 2", stream=True).text
    assert text == "f\n\na\n\nevent: squawk\ndata: ENGINE_UNAVAILABLE\n\n"


def test_a_client_that_leaves_ends_the_work(open_parrot: Adapter) -> None:
    body = {"say": "hang", "stream": True}
    url = f"{open_parrot.url}/v1/parrot"
    with requests.post(url, json=body, stream=True, timeout=30):
        wait_until(lambda: open_parrot.seen.running == 1)
    wait_until(lambda: open_parrot.seen.running == 0)


def test_openai_stays_as_it_was(open_parrot: Adapter) -> None:
    assert open_parrot.ask("x", stream=True).text.endswith("data: [DONE]\n\n")
    for path in ("/v1/nothing", "/v1/parrots", "/nothing"):
        response = requests.get(open_parrot.url + path, timeout=10)
        assert response.json()["error"]["code"] == "not_found"
    assert (
        requests.get(f"{open_parrot.url}/ready", timeout=10).json()["error"]["code"] == "overloaded"
    )
