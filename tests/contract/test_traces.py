"""One request is one trace through both processes, as a receiver of OpenTelemetry gets it; and it tells no secrets."""

from __future__ import annotations

import base64
from collections.abc import Iterator
import contextlib
from pathlib import Path
import signal
import subprocess
import sys
from typing import Any

import grpc
from opentelemetry.semconv._incubating.attributes import (
    error_attributes,
    gen_ai_attributes,
    http_attributes,
    rpc_attributes,
)
import pytest
import requests

from qwenvl.inference.v1 import model_service_pb2 as model_pb
from qwenvl.inference.v1 import model_service_pb2_grpc as model_grpc
from qwenvl.observability import Attribute
from tests.contract.test_ids_in_logs import BOUND_S, Program, running
from tests.grpc_api.conftest import model_dir  # noqa: F401 - a fixture
from tests.support.images import draw
from tests.support.otlp_receiver import Received, Receiver, receiving
from tests.support.ports import free_port


TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRETS = ("secret-question", "secret-key", "secret-path", "secret-user")
METHOD = "qwenvl.inference.v1.ChatService/StreamChatCompletion"
PARTS = ["decode", "image_decode", "prefill", "queue", "queue", "queue", "vision_encode"]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@contextlib.contextmanager
def serving(model: Path, folder: Path, *environment: str) -> Iterator[tuple[str, list[Program]]]:
    """Both programs with these variables besides, and the URL of the adapter."""
    service = ("env", *environment, sys.executable, "-m", "tests.grpc_api.echo_front", str(model))
    port = free_port()
    with running(folder / "service.log", *service) as front:
        target = "127.0.0.1:" + front.wait_for(r"port (\d+)\n")[1]
        flags = ("--http-address", f"127.0.0.1:{port}", "--grpc-target", target)
        adapter = ("env", *environment, sys.executable, "-m", "rest_adapter", *flags)
        with running(folder / "adapter.log", *adapter) as program:
            program.wait_for("REST listens")
            yield f"http://127.0.0.1:{port}/v1/chat/completions", [program, front]


def body(url: str | None = None) -> dict[str, object]:
    image = base64.b64encode(draw("red", "circle").png).decode()
    parts = [
        {"type": "text", "text": "secret-question"},
        {"type": "image_url", "image_url": {"url": url or f"data:image/png;base64,{image}"}},
    ]
    return {"model": "echo", "stream": True, "messages": [{"role": "user", "content": parts}]}


HEADERS = {"traceparent": f"00-{TRACE}-{SPAN}-01", "authorization": "Bearer secret-key"}


def names_under(spans: list[Received], parent: Received) -> list[str]:
    return sorted(one.name for one in spans if one.parent_id == parent.id)


def root_of(spans: list[Received]) -> Received:
    return next(
        one for one in spans if one.span.kind == one.span.SPAN_KIND_SERVER and "POST" in one.name
    )


def has_ended(spans: list[Received]) -> bool:
    return any("POST" in one.name for one in spans) and any(
        one.process == "inference-service" and "/" in one.name for one in spans
    )


def test_a_request_is_one_trace(receiver: Receiver, model_dir: Path, tmp_path: Path) -> None:  # noqa: F811
    endpoint = f"QWENVL_OTLP_TRACES_ENDPOINT={receiver.endpoint}"
    # A proxy for the internet is not used for the receiver.
    environment = (endpoint, "http_proxy=http://127.0.0.1:9", "OTEL_BSP_SCHEDULE_DELAY=100")
    with serving(model_dir, tmp_path, *environment) as (url, programs):
        answer = requests.post(url, json=body(), headers=HEADERS, timeout=BOUND_S)
        assert answer.status_code == 200, answer.text
        receiver.wait_for(has_ended)
        lines = [program.access_line() for program in programs]
        for program in programs:
            program.process.send_signal(signal.SIGTERM)
            assert program.process.wait(BOUND_S) == 0
    spans = receiver.spans
    assert {one.trace_id for one in spans} == {TRACE}
    root = root_of(spans)
    assert (root.name, root.parent_id) == ("POST /v1/chat/completions", SPAN)
    (client,) = [one for one in spans if one.parent_id == root.id]
    (server,) = [one for one in spans if one.parent_id == client.id]
    assert [client.name, server.name] == [METHOD, METHOD]
    assert [one.process for one in (root, client, server)] == [
        "rest-adapter",
        "rest-adapter",
        "inference-service",
    ]
    assert names_under(spans, server) == PARTS
    assert len(spans) == len(PARTS) + 3
    check_times(spans, server)
    told = server.attributes
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.request.model"] == "echo"
    assert told["qwenvl.request.images"] == 1
    assert told["rpc.response.status_code"] == "OK"
    assert int(str(told["gen_ai.usage.input_tokens"])) > 10
    assert told["gen_ai.response.finish_reasons"] == ["stop"]
    # The lines of the log lead to the spans, and the other way.
    assert [line["span_id"] for line in lines] == [root.id, server.id]
    assert {line["request_id"] for line in lines} == {told["qwenvl.request.id"]}
    check_line(lines[1], told)


def check_line(line: dict[str, Any], told: dict[str, object]) -> None:
    """The line of the log has sizes, timings and the outcome."""
    sizes = {"model": "echo", "images": 1, "finish_reason": "stop", "code": "OK"}
    sizes |= {"prompt_tokens": told["gen_ai.usage.input_tokens"]}
    assert line == line | sizes
    parts = ("queue", "image_decode", "vision_encode", "prefill", "first_token")
    assert all(0 < line[f"{part}_s"] <= line["seconds"] for part in parts)


def check_times(spans: list[Received], server: Received) -> None:
    for one in spans:
        assert one.span.start_time_unix_nano <= one.span.end_time_unix_nano
        if one.parent_id == server.id:
            # The engine tells durations; where they lie is computed back from the first token.
            slack = 10_000_000
            assert one.span.start_time_unix_nano + slack >= server.span.start_time_unix_nano
            assert one.span.end_time_unix_nano <= server.span.end_time_unix_nano + slack
    (prefill,) = [one for one in spans if one.name == "prefill"]
    (encode,) = [one for one in spans if one.name == "vision_encode"]
    assert encode.span.end_time_unix_nano <= prefill.span.start_time_unix_nano + 1000


def test_no_trace_tells_what_was_asked(
    receiver: Receiver,
    model_dir: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Neither of answers nor of failures: of a fetch that is refused, and of one that fails."""
    endpoint = f"QWENVL_OTLP_TRACES_ENDPOINT={receiver.endpoint}"
    media = "QWENVL_ALLOWED_MEDIA_DOMAINS=127.0.0.1:9"
    urls = [
        None,
        "http://secret-user:secret-key@127.0.0.1:9/secret-path.png",
        "http://127.0.0.1:9/secret-path.png?key=secret-key",
        "http://10.0.0.1/secret-path.png",
    ]
    with serving(model_dir, tmp_path, endpoint, media) as (url, programs):
        statuses = [
            requests.post(url, json=body(one), headers=HEADERS, timeout=BOUND_S).status_code
            for one in urls
        ]
        for program in programs:  # what has ended is sent before the process ends
            program.process.send_signal(signal.SIGTERM)
            assert program.process.wait(BOUND_S) == 0
    assert statuses[0] == 200
    assert 200 not in statuses[1:]
    raw = b"".join(receiver.raw)
    assert not [secret for secret in SECRETS if secret.encode() in raw]
    assert draw("red", "circle").png[:24] not in raw
    fetches = [one for one in receiver.spans if one.name == "image_fetch"]
    assert {one.attributes["qwenvl.fetch.result"] for one in fetches} >= {"connection", "policy"}
    assert all(one.span.status.code == one.span.status.STATUS_CODE_ERROR for one in fetches)
    known = {attribute.value for attribute in Attribute}
    assert {name for one in receiver.spans for name in one.attributes} <= known


def test_strangers_have_no_spans(receiver: Receiver, model_dir: Path, tmp_path: Path) -> None:  # noqa: F811
    """Without a key nobody fills the place where traces are kept, whatever `traceparent` they send."""
    keys = tmp_path / "keys"
    keys.write_text("secret-key\n")
    environment = (
        f"QWENVL_OTLP_TRACES_ENDPOINT={receiver.endpoint}",
        f"QWENVL_API_KEY_FILE={keys}",
    )
    strange = {"traceparent": f"00-{TRACE[::-1]}-{SPAN}-01"}
    with serving(model_dir, tmp_path, *environment) as (url, programs):
        for key in ({}, {"authorization": "Bearer no-key"}):
            refused = requests.post(url, json=body(), headers=strange | key, timeout=BOUND_S)
            assert refused.status_code == 401
        with grpc.insecure_channel(
            "127.0.0.1:" + programs[1].wait_for(r"port (\d+)\n")[1]
        ) as channel:
            call = model_grpc.ModelServiceStub(channel).ListModels
            with pytest.raises(grpc.RpcError, match="API key"):
                call(model_pb.ListModelsRequest(), metadata=[*strange.items()], timeout=BOUND_S)
        assert requests.post(url, json=body(), headers=HEADERS, timeout=BOUND_S).status_code == 200
        for program in programs:
            program.process.send_signal(signal.SIGTERM)
            assert program.process.wait(BOUND_S) == 0
    assert {one.trace_id for one in receiver.spans} == {TRACE}
    assert len(receiver.spans) == len(PARTS) + 3


@pytest.mark.full
@pytest.mark.parametrize("flags", ["00", "01"])
def test_the_caller_decides_whether_its_trace_is_kept(
    receiver: Receiver,
    model_dir: Path,  # noqa: F811
    tmp_path: Path,
    flags: str,
) -> None:
    endpoint = f"QWENVL_OTLP_TRACES_ENDPOINT={receiver.endpoint}"
    headers = HEADERS | {"traceparent": f"00-{TRACE}-{SPAN}-{flags}"}
    with serving(model_dir, tmp_path, endpoint) as (url, programs):
        assert requests.post(url, json=body(), headers=headers, timeout=BOUND_S).status_code == 200
        for program in programs:
            program.process.send_signal(signal.SIGTERM)
            assert program.process.wait(BOUND_S) == 0
    assert bool(receiver.spans) == (flags == "01")


@pytest.mark.full
def test_a_receiver_that_is_away_costs_nothing(model_dir: Path, tmp_path: Path) -> None:  # noqa: F811
    """Answers come as ever, and the processes end: spans are dropped."""
    environment = ("QWENVL_OTLP_TRACES_ENDPOINT=http://127.0.0.1:9", "OTEL_BSP_SCHEDULE_DELAY=100")
    with serving(model_dir, tmp_path, *environment) as (url, programs):
        for _ in range(3):
            answer = requests.post(url, json=body(), headers=HEADERS, timeout=BOUND_S)
            assert answer.status_code == 200
        for program in programs:
            program.process.send_signal(signal.SIGTERM)
            assert program.process.wait(BOUND_S) == 0


def test_without_an_endpoint_nothing_of_opentelemetry_is_loaded() -> None:
    code = (
        "import sys, inference_service.serving, rest_adapter.app;"
        "from qwenvl.observability import begin_call, NO_SPAN, start_tracing;"
        "start_tracing(None, process='x', version='0');"
        "assert begin_call('x', '', {}) is NO_SPAN;"
        "print([name for name in sys.modules if name.startswith('opentelemetry.sdk')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_are_those_of_the_conventions() -> None:
    modules = (error_attributes, gen_ai_attributes, http_attributes, rpc_attributes)
    known = {
        value for module in modules for value in vars(module).values() if isinstance(value, str)
    }
    ours = {attribute.value for attribute in Attribute if attribute.startswith("qwenvl.")}
    assert {attribute.value for attribute in Attribute} - ours <= known
