"""The metrics of both programs tell what real requests did, and nothing of what callers sent."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
import os
import random
import signal
import string
import sys
from typing import Any

import grpc
from prometheus_client.openmetrics.parser import text_string_to_metric_families
import pytest
import requests

from inference_service.metrics.exposition import VLLM_NAMES
from qwenvl.inference.v1 import admin_service_pb2 as admin_pb
from qwenvl.inference.v1 import admin_service_pb2_grpc as admin_grpc
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc
from tests.e2e.conftest import Served, running
from tests.support.images import draw
from tests.support.metric_names import exposed_names
from tests.support.ports import free_ports
from tests.support.scrape import Scrape, scrape, until


MODEL = "qwen-vl-demo"
CHAT = "/v1/chat/completions"
METHOD = "qwenvl.inference.v1.ChatService/CreateChatCompletion"


@dataclass(frozen=True)
class Watched:
    """A product, and where its programs serve their metrics."""

    product: Served
    service: str
    adapter: str

    def ask(self, content: object, **fields: Any) -> requests.Response:
        body = {"model": "qwen-vl", "messages": [{"role": "user", "content": content}]}
        options = {"max_tokens": 8, "temperature": 0} | fields
        stream = bool(fields.get("stream"))
        return requests.post(
            self.product.http + CHAT, json=body | options, timeout=60, stream=stream
        )


@pytest.fixture(scope="module")
def watched(image_host: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    service, adapter = (f"127.0.0.1:{port}" for port in free_ports(2))
    command = [sys.executable, "-m", "inference_service.cli", "serve", "--cpu-threads", "1"]
    environment = {
        "QWENVL_METRICS_ADDRESS": service,
        "QWENVL_HTTP_METRICS_ADDRESS": adapter,
        "QWENVL_VLLM_METRIC_NAMES": "true",
        "QWENVL_ALLOWED_MEDIA_DOMAINS": image_host,
    }
    log = tmp_path_factory.mktemp("watched") / "log.txt"
    with running(command, log, **environment) as product:
        yield Watched(product, service, adapter)


def image(url: str) -> list[dict[str, Any]]:
    return [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "What is this?"},
    ]


def data_uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def gained(before: Scrape, after: Scrape, name: str, **labels: str) -> float:
    return after.value(name, **labels) - before.value(name, **labels)


def chat_calls(found: Scrape) -> float:
    """Calls that have ended."""
    name, service = "grpc_server_call_duration_seconds_count", METHOD.partition("/")[0]
    methods = (f"{service}/{kind}ChatCompletion" for kind in ("Create", "Stream"))
    return sum(found.value(name, grpc_method=method) for method in methods)


def finished(before: Scrape, reason: str, **least: float) -> Any:
    """A condition: one more request has finished so, its call too, and the engine has told its last counters.

    Args:
        before: The counters before the request.
        reason: How it ends.
        least: How much counters of the engine grow by it, which may be told later than its end.
    """
    return lambda after: (
        gained(before, after, "qwenvl_requests_finished_total", finish_reason=reason) == 1
        and after.value("qwenvl_requests_running") == after.value("qwenvl_requests_in_flight") == 0
        and chat_calls(after) > chat_calls(before)
        and all(gained(before, after, name) >= count for name, count in least.items())
    )


def test_a_text_is_measured_from_end_to_end(watched: Watched) -> None:
    before, rest_before = scrape(watched.service), scrape(watched.adapter)
    response = watched.ask("Hello", ignore_eos=True, not_a_field=1, nor_this=2)
    usage = response.json()["usage"]
    assert usage["completion_tokens"] == 8
    grown = {
        "qwenvl_engine_step_seconds_count": 8,
        "qwenvl_engine_batch_size_sum": 8,
        "qwenvl_prefix_cache_misses_total": 1,
    }
    after = until(watched.service, finished(before, "length", **grown))
    assert gained(before, after, "qwenvl_prompt_tokens_total") == usage["prompt_tokens"]
    assert gained(before, after, "qwenvl_generation_tokens_total") == 8
    assert gained(before, after, "qwenvl_inter_token_seconds_count") == 7
    for name in ("request_queue", "prefill", "decode"):
        assert gained(before, after, f"qwenvl_{name}_seconds_count") == 1, name
    chat = {"gen_ai_operation_name": "chat", "gen_ai_request_model": MODEL}
    for name in ("time_to_first_token", "time_per_output_token"):
        assert gained(before, after, f"gen_ai_server_{name}_seconds_count", **chat) == 1
    request = "gen_ai_server_request_duration_seconds"
    assert gained(before, after, f"{request}_count", **chat, error_type="") == 1
    tokens = "gen_ai_client_token_usage_tokens_sum"
    assert gained(before, after, tokens, **chat, gen_ai_token_type="output") == 8
    assert gained(before, after, "qwenvl_engine_step_seconds_count") >= 8
    assert gained(before, after, "qwenvl_engine_batch_size_sum") >= 8
    assert gained(before, after, "qwenvl_prefix_cache_misses_total", reason="partial_page") >= 1
    call = {"grpc_method": METHOD, "grpc_status": "OK"}
    assert gained(before, after, "grpc_server_call_duration_seconds_count", **call) == 1
    # The parts add up to no more than the whole.
    parts = sum(
        gained(before, after, f"qwenvl_{name}_seconds_sum")
        for name in ("request_queue", "prefill", "decode")
    )
    assert 0 < parts <= gained(before, after, f"{request}_sum") + 0.5

    http = "http_server_request_duration_seconds_count"
    rest = until(watched.adapter, lambda now: gained(rest_before, now, http, http_route=CHAT) == 1)
    route = {
        "http_route": CHAT,
        "http_request_method": "POST",
        "http_response_status_code": "200",
    }
    assert gained(rest_before, rest, http, **route) == 1
    assert gained(rest_before, rest, "rest_ignored_fields_total") == 2
    assert gained(rest_before, rest, "grpc_client_attempt_duration_seconds_count", **call) == 1


def test_images_are_counted_and_found_again(watched: Watched) -> None:
    before = scrape(watched.service)
    content = image(data_uri(draw("blue", "square").png))
    usage = watched.ask(content).json()["usage"]
    grown = {"qwenvl_encoder_cache_queries_total": 1, "qwenvl_prefix_cache_queries_total": 1}
    after = until(watched.service, finished(before, "stop", **grown))
    tokens = usage["prompt_tokens_details"]["image_tokens"]
    assert gained(before, after, "qwenvl_image_tokens_total") == tokens > 0
    assert gained(before, after, "qwenvl_images_total", format="PNG") == 1
    assert gained(before, after, "qwenvl_image_decode_seconds_count") == 1
    assert gained(before, after, "qwenvl_vision_encode_seconds_count") >= 1  # in steps of a time
    assert gained(before, after, "qwenvl_encoder_cache_queries_total") == 1
    assert gained(before, after, "qwenvl_encoder_cache_hits_total") == 0
    assert gained(before, after, "qwenvl_encoder_cache_misses_total", reason="new") == 1

    watched.ask(content)
    grown = {"qwenvl_prefix_cache_queries_total": 1, "qwenvl_prefix_cache_hits_total": 1}
    again = until(watched.service, finished(after, "stop", **grown))
    hits = gained(after, again, "qwenvl_prefix_cache_hits_total")
    misses = gained(after, again, "qwenvl_prefix_cache_misses_total")
    assert hits > 0
    assert hits + misses == gained(after, again, "qwenvl_prefix_cache_queries_total")
    assert gained(after, again, "qwenvl_prefix_cache_misses_total", reason="new") == 0
    assert gained(after, again, "qwenvl_vision_encode_seconds_count") == 0


@pytest.mark.parametrize(
    ("url", "result", "status"),
    [
        ("http://{host}/red-circle.png", "ok", 200),
        ("http://{host}/page", "not_image", 400),
        ("http://{host}/redirect", "policy", 400),
        ("http://10.0.0.1/x.png", "policy", 400),
        ("ftp://{host}/x.png", "invalid_url", 400),
    ],
)
def test_fetches_are_counted_by_result(
    watched: Watched, image_host: str, url: str, result: str, status: int
) -> None:
    before = scrape(watched.service)
    response = watched.ask(image(url.format(host=image_host)))
    assert response.status_code == status
    # The response may come before the call has ended.
    name = "gen_ai_server_request_duration_seconds_count"
    after = until(watched.service, lambda now: gained(before, now, name) == 1)
    assert gained(before, after, "qwenvl_media_fetch_total") == 1
    assert gained(before, after, "qwenvl_media_fetch_total", result=result) == 1
    assert gained(before, after, "qwenvl_image_fetch_seconds_count") == 1
    rejected = gained(before, after, "qwenvl_requests_rejected_total", reason="invalid")
    assert rejected == (status != 200)


def test_a_refused_request_counts_once(watched: Watched) -> None:
    before, rest_before = scrape(watched.service), scrape(watched.adapter)
    assert watched.ask("word " * 40_000).status_code == 400
    rejected = "qwenvl_requests_rejected_total"
    after = until(watched.service, lambda now: gained(before, now, rejected) == 1)
    rest = until(watched.adapter, lambda now: gained(rest_before, now, "rest_errors_total") == 1)
    assert gained(before, after, "qwenvl_requests_rejected_total", reason="too_large") == 1
    assert gained(before, after, "qwenvl_requests_rejected_total") == 1
    assert gained(before, after, "qwenvl_requests_finished_total") == 0
    failed = {"error_type": "CONTEXT_LENGTH_EXCEEDED"}
    name = "gen_ai_server_request_duration_seconds_count"
    assert gained(before, after, name, **failed) == 1
    reason = {"reason": "CONTEXT_LENGTH_EXCEEDED"}
    assert gained(rest_before, rest, "rest_errors_total", **reason) == 1


def test_a_stream_is_seen_while_it_runs_and_when_its_client_leaves(watched: Watched) -> None:
    before, rest_before = scrape(watched.service), scrape(watched.adapter)
    response = watched.ask("Hello", stream=True, max_tokens=4000, ignore_eos=True)
    chunks = response.iter_content(64)  # closes the connection when it is forgotten
    next(chunks)
    during = until(watched.service, lambda now: now.value("qwenvl_kv_cache_usage_ratio") > 0)
    assert during.value("qwenvl_requests_in_flight") == during.value("qwenvl_requests_running") == 1
    rest = scrape(watched.adapter)
    assert rest.value("rest_streams_open") == rest.value("rest_pending_requests") == 1
    response.close()
    after = until(watched.service, finished(before, "cancelled"))
    assert gained(before, after, "qwenvl_requests_finished_total") == 1
    assert gained(before, after, "qwenvl_generation_tokens_total") > 0
    rest = until(watched.adapter, lambda now: now.value("rest_streams_open") == 0)
    assert rest.value("rest_pending_requests") == 0
    assert gained(rest_before, rest, "rest_client_disconnects_total", phase="stream") == 1
    assert gained(rest_before, rest, "rest_client_disconnects_total") == 1


def spec(request_id: str) -> Any:
    request = chat_pb.StreamChatCompletionRequest()
    request.spec.model = MODEL
    request.spec.request_id = request_id
    request.spec.sampling.max_tokens = 4000
    request.spec.sampling.ignore_eos = True
    message = request.spec.messages.add(role="ROLE_USER")
    message.parts.add(text="Hello")
    return request


def test_an_abort_and_a_deadline_are_told_apart(watched: Watched) -> None:
    before = scrape(watched.service)
    with watched.product.channel() as channel:
        chat, admin = chat_grpc.ChatServiceStub(channel), admin_grpc.AdminServiceStub(channel)
        call = chat.StreamChatCompletion(spec("to-abort"), timeout=60)
        next(call)
        admin.Abort(admin_pb.AbortRequest(request_ids=["to-abort"]), timeout=20)
        for _ in call:
            pass
        aborted = until(watched.service, finished(before, "cancelled"))
        with pytest.raises(grpc.RpcError) as ended:
            for _ in chat.StreamChatCompletion(spec("too-late"), timeout=0.4):
                pass
        assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    late = until(watched.service, finished(aborted, "deadline"))
    assert gained(before, late, "qwenvl_requests_finished_total") == 2
    status = {"grpc_status": "DEADLINE_EXCEEDED"}
    assert gained(aborted, late, "grpc_server_call_duration_seconds_count", **status) == 1


def test_everything_that_is_declared_is_exposed(watched: Watched) -> None:
    watched.ask("Hello")
    service, adapter = scrape(watched.service), scrape(watched.adapter)
    names = service.names() | adapter.names()
    own = {name for name in names if not name.startswith("process_")}
    assert own <= exposed_names()
    # What is missing has labels that did not occur, or needs a GPU.
    missing = {
        name
        for name in exposed_names() - names
        if not name.startswith(("qwenvl_gpu_memory", "rest_rate_limited"))
        if f"{name}_bucket" not in names
    }
    assert missing == set()
    info = {"model_name": MODEL, "block_size": "16"}
    assert service.value("vllm:cache_config_info", **info) == 1
    assert service.value("qwenvl_ready", model_name=MODEL) == 1
    assert service.value("qwenvl_draining") == 0
    assert 0 <= service.value("qwenvl_engine_last_step_age_seconds") < 60
    for name in names:
        if name.startswith("vllm:"):
            family = next(f for f in VLLM_NAMES.values() if name.startswith(f))
            twin = next(own for own, vllm in VLLM_NAMES.items() if vllm == family)
            assert service.value(name) == service.value(twin + name.removeprefix(family)), name


def test_the_format_of_open_metrics_is_served_on_request(watched: Watched) -> None:
    headers = {"accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
    for url in (watched.service, watched.adapter, watched.product.http.removeprefix("http://")):
        response = requests.get(f"http://{url}/metrics", headers=headers, timeout=20)
        assert response.headers["content-type"].startswith("application/openmetrics-text")
        assert len(list(text_string_to_metric_families(response.text))) > 5


def hostile_requests(count: int) -> Iterator[tuple[str, str, dict[str, str], bytes]]:
    """(method, path, headers, body), all refused, with a word in every place that no metric may repeat."""
    choose = random.Random(7)
    for _ in range(count):
        word = "secret" + "".join(choose.choices(string.ascii_lowercase, k=8))
        body = '{"model": "%s", "messages": [{"role": "%s", "content": "%s"}], "%s": 1}'
        yield choose.choice(
            [
                ("GET", f"/v1/models/{word}", {}, b""),
                ("GET", f"/{word}/v1/{word}?q={word}", {}, b""),
                (word.upper(), CHAT, {}, b""),
                ("DELETE", f"{CHAT}/{word}", {}, b""),
                ("POST", CHAT, {"content-type": f"text/{word}"}, word.encode()),
                ("POST", CHAT, {"x-request-id": word, "authorization": f"Bearer {word}"}, b"{"),
                ("POST", CHAT, {}, (body % (word, "user", word, word)).encode()),
                ("POST", CHAT, {}, (body % ("qwen-vl", word, word, word)).encode()),
                ("POST", "/v1/completions", {}, (b'{"model": "%s"}' % word.encode())),
            ]
        )


def test_nothing_that_callers_send_becomes_a_label(watched: Watched) -> None:
    requested = list(hostile_requests(300))
    kinds = {(method, path.partition("secret")[0]) for method, path, _, _ in requested}
    assert len(kinds) > 4

    def send(request: tuple[str, str, dict[str, str], bytes]) -> int:
        method, path, headers, body = request
        headers = {"content-type": "application/json"} | headers
        url = watched.product.http + path
        return requests.request(method, url, headers=headers, data=body, timeout=30).status_code

    with ThreadPoolExecutor(8) as pool:
        assert all(400 <= status < 500 for status in pool.map(send, requested[:100]))
        first = [scrape(address) for address in (watched.service, watched.adapter)]
        assert all(400 <= status < 500 for status in pool.map(send, requested[100:]))
    with watched.product.channel() as channel:
        for index in range(20):
            call: Any = channel.unary_unary(f"/qwenvl.inference.v1.ChatService/Secret{index}")
            with pytest.raises(grpc.RpcError):
                call(b"", timeout=10)
    for before, address in zip(first, (watched.service, watched.adapter), strict=True):
        after = scrape(address)
        assert after.text.lower().count("secret") == 0
        # Every kind of request has come before; the rest is the same few series.
        assert len(after.series) - len(before.series) < 60
        assert after.values_of("http_route") <= {
            "",
            CHAT,
            "/v1/completions",
            "/v1/models",
            "/v1/models/{name:path}",
            "/health",
            "/ready",
            "/metrics",
        } | {route for route in after.values_of("http_route") if "{" in route}


def test_scrapes_and_streams_do_not_wait_for_each_other(watched: Watched) -> None:
    before = scrape(watched.service)

    def read(_: int) -> int:
        response = watched.ask("Hello", stream=True, max_tokens=64, ignore_eos=True)
        return response.text.count("data: [DONE]")

    # Fewer scrapers at once than there may be connections: more are refused.
    with ThreadPoolExecutor(16) as callers, ThreadPoolExecutor(4) as scrapers:
        streams = callers.map(read, range(16))
        scrapes = scrapers.map(lambda _: scrape(watched.service), range(40))
        assert sum(streams) == 16
        assert len(list(scrapes)) == 40
    after = until(watched.service, lambda now: now.value("qwenvl_requests_in_flight") == 0)
    assert gained(before, after, "qwenvl_requests_finished_total", finish_reason="length") == 16
    assert gained(before, after, "qwenvl_generation_tokens_total") == 16 * 64


def test_metrics_survive_the_engine(watched: Watched) -> None:
    os.kill(watched.product.info().engine_pid, signal.SIGKILL)
    down = until(watched.service, lambda now: now.value("qwenvl_ready") == 0)
    assert down.value("qwenvl_requests_finished_total") > 0
    up = until(watched.service, lambda now: now.value("qwenvl_ready") == 1, timeout_s=120)
    assert up.value("qwenvl_engine_restarts_total") == 1
    assert up.value("qwenvl_engine_restarts_total", cause="ended") == 1
