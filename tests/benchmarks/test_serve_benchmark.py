"""The arithmetic and the clients of the benchmark; the whole of it runs in the README's test."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import math

import grpc
from PIL import Image
import pytest

from benchmarks import clients, serve
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from qwenvl.inference.v1 import model_service_pb2 as model_pb
from qwenvl.inference.v1 import model_service_pb2_grpc as model_grpc


def test_percentile_interpolates() -> None:
    values = [4.0, 1.0, 3.0, 2.0]
    assert serve.percentile(values, 0) == 1
    assert serve.percentile(values, 0.5) == 2.5
    assert serve.percentile(values, 1) == 4
    assert serve.percentile([7.0], 0.99) == 7
    with pytest.raises(ValueError, match="no values"):
        serve.percentile([], 0.5)


def test_timing_counts_tokens_that_share_a_message() -> None:
    timing = clients.timing_of(10.0, [(11.0, 1), (11.5, 2), (12.5, 1)])
    assert timing.first_token_s == 1
    assert timing.gaps_s == (0.25, 0.25, 1.0)
    assert timing.per_token_s == 0.5
    assert timing.tokens == 4


def test_timing_of_an_answer_in_one_message_has_no_gaps() -> None:
    assert clients.timing_of(0.0, [(1.0, 8)]) == clients.Timing(1.0, 0.0, (), 8)


def test_an_answer_of_the_wrong_length_is_no_measurement() -> None:
    with pytest.raises(clients.BenchmarkError, match="3 tokens instead of 4"):
        clients.checked(0.0, [(1.0, 3)], clients.Load("m", 4, 64, 1))


def run(api: str, concurrency: int, per_token_s: float, first_s: float = 0.1) -> serve.Run:
    timing = clients.Timing(first_s, per_token_s, (per_token_s,) * 9, 10)
    return serve.Run(api, concurrency, 2.0, (timing, timing))


RUNS = [
    run("gRPC", 1, 0.010),
    run("REST", 1, 0.011, 0.105),
    run("gRPC", 1, 0.020),
    run("REST", 1, 0.021, 0.105),
    # A neighbour took the machine: one odd pair does not move the median.
    run("gRPC", 1, 0.010),
    run("REST", 1, 0.050, 0.500),
    run("gRPC", 4, 0.040),
    run("REST", 4, 0.040),
]


def test_rows_pool_the_runs_of_one_api() -> None:
    first = serve.rows(RUNS)[0]
    assert (first.concurrency, first.api) == (1, "gRPC")
    assert first.first_token_p50_ms == pytest.approx(100)
    assert first.between_tokens_p50_ms == pytest.approx(10)
    assert first.tokens_per_s == pytest.approx(60 / 6)
    assert first.requests_per_s == pytest.approx(1)
    assert [(row.concurrency, row.api) for row in serve.rows(RUNS)] == [
        (1, "gRPC"),
        (1, "REST"),
        (4, "gRPC"),
        (4, "REST"),
    ]


def test_the_hop_is_the_median_of_paired_ratios() -> None:
    one, four = serve.hops(RUNS)
    assert one.ratio == pytest.approx(1.1)
    assert one.lowest == pytest.approx(1.05)
    assert one.highest == pytest.approx(5)
    assert one.per_token_us == pytest.approx(1000)
    assert one.first_token_ms == pytest.approx(5)
    assert (four.concurrency, four.ratio, four.per_token_us) == (4, 1, 0)


def test_a_hop_without_times_per_token_has_no_ratio() -> None:
    (hop,) = serve.hops([run("gRPC", 1, 0.0), run("REST", 1, 0.0)])
    assert math.isnan(hop.ratio)


def test_table_and_sentence_name_every_concurrency() -> None:
    lines = serve.table(serve.rows(RUNS)).splitlines()
    assert len(lines) == 2 + 4
    assert {line.count("|") for line in lines} == {7}
    text = serve.sentence(serve.hops(RUNS))
    assert "+1000 µs per token (x1.100, pairs x1.050 to x5.000)" in text
    assert "at concurrency 4." in text


def test_every_image_is_another() -> None:
    images = {clients.draw(64, seed) for seed in range(20)}
    assert len(images) == 20
    assert Image.open(io.BytesIO(images.pop())).size == (64, 64)


@pytest.mark.parametrize(
    "argv",
    [
        ["--rest-url", "http://192.0.2.1:8000"],
        ["--rest-url", "https://127.0.0.1:8000"],
        ["--rest-url", "http://example.org"],
        ["--grpc-target", "192.0.2.1:50051"],
        ["--grpc-target", "dns:///inference:50051"],
        ["--concurrency", "0"],
        ["--tokens", "1"],
        ["--requests", "100000"],
        ["--requests", "8", "--concurrency", "1", "16"],
        ["--pairs", "many"],
    ],
)
def test_arguments_out_of_bounds_are_refused(argv: list[str]) -> None:
    with pytest.raises(SystemExit):
        serve.parse(argv)


def test_arguments_have_defaults() -> None:
    arguments = serve.parse(["--grpc-target", "[::1]:50051", "--concurrency", "1", "2"])
    assert arguments.concurrency == [1, 2]
    assert arguments.rest_url == "http://127.0.0.1:8000"


async def events(
    *chunks: bytes, head: bytes = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked"
) -> list[bytes]:
    reader = asyncio.StreamReader()
    reader.feed_data(head + b"\r\n\r\n")
    for chunk in (*chunks, b""):
        reader.feed_data(b"%x\r\n%b\r\n" % (len(chunk), chunk))
    reader.feed_eof()
    seen = [event async for event in clients.server_sent_events(reader)]
    assert await reader.read() == b""
    return seen


async def test_events_may_be_cut_anywhere() -> None:
    stream = b'data: {"a":1}\n\n: still here\n\ndata: {"b":2}\n\ndata: [DONE]\n\n'
    for cut in range(1, len(stream)):
        assert await events(stream[:cut], stream[cut:]) == [b'{"a":1}', b'{"b":2}']


async def test_an_error_response_is_told() -> None:
    with pytest.raises(clients.BenchmarkError, match="503"):
        await events(b"busy", head=b"HTTP/1.1 503 Service Unavailable")


class FakeService(chat_grpc.ChatServiceServicer, model_grpc.ModelServiceServicer):
    """Answers with three tokens in two messages, and keeps what it was asked."""

    def __init__(self) -> None:
        self.specs: list[chat_pb.ChatCompletionSpec] = []

    async def ListModels(self, request, context):  # noqa: N802 - the contract's name
        return model_pb.ListModelsResponse(models=[model_pb.Model(name="first"), model_pb.Model()])

    async def StreamChatCompletion(self, request, context):  # noqa: N802 - the contract's name
        self.specs.append(request.spec)
        event = chat_pb.StreamChatCompletionResponse
        yield event(started=generation_pb.Started(model="first"))
        for ids in ([1], [2, 3]):
            yield event(delta=generation_pb.Delta(token_ids=ids))


class FakeAdapter:
    """The same over HTTP/1.1."""

    def __init__(self) -> None:
        self.bodies: list[dict] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.bodies.append(json.loads(await reader.readexactly(length)))
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                for ids in (b"[1]", b"[2,3]"):
                    event = b'data: {"choices":[{"token_ids":%b}]}\n\n' % ids
                    writer.write(b"%x\r\n%b\r\n" % (len(event), event))
                writer.write(b"0\r\n\r\n")
        writer.close()


async def test_both_apis_get_equal_work_with_images_of_their_own() -> None:
    service, adapter = FakeService(), FakeAdapter()
    rpc = grpc.aio.server()
    chat_grpc.add_ChatServiceServicer_to_server(service, rpc)
    model_grpc.add_ModelServiceServicer_to_server(service, rpc)
    grpc_port = rpc.add_insecure_port("127.0.0.1:0")
    await rpc.start()
    http = await asyncio.start_server(adapter.serve, "127.0.0.1", 0)
    http_port = http.sockets[0].getsockname()[1]
    addresses = [
        "--grpc-target",
        f"127.0.0.1:{grpc_port}",
        "--rest-url",
        f"http://127.0.0.1:{http_port}",
    ]
    size = ["--tokens", "3", "--requests", "4", "--pairs", "2", "--concurrency", "1", "3"]
    runs = await serve.bounded(serve.parse([*addresses, *size, "--image-size", "32"]))
    await rpc.stop(None)
    http.close()
    await http.wait_closed()

    assert [(run.api, run.concurrency) for run in runs] == [
        (api, concurrency) for concurrency in (1, 3) for _ in range(2) for api in ("gRPC", "REST")
    ]
    assert all(len(run.timings) == 4 for run in runs)
    assert all(body["model"] == "first" for body in adapter.bodies)
    assert all(body["min_tokens"] == body["max_tokens"] == 3 for body in adapter.bodies)
    assert all(spec.sampling.min_tokens == spec.sampling.max_tokens == 3 for spec in service.specs)
    assert all(spec.sampling.ignore_eos for spec in service.specs)
    uris = [body["messages"][0]["content"][0]["image_url"]["url"] for body in adapter.bodies]
    images = {base64.b64decode(uri.partition(",")[2]) for uri in uris}
    images |= {spec.messages[0].parts[0].image.data for spec in service.specs}
    assert len(images) == 2 * (serve.WARM_UP_REQUESTS + 2 * 2 * 4)
    assert len(serve.hops(runs)) == 2


def test_no_server_gives_no_result(capsys: pytest.CaptureFixture[str]) -> None:
    # Port 1 of loopback: nobody listens there.
    argv = ["--grpc-target", "127.0.0.1:1", "--rest-url", "http://127.0.0.1:1", "--timeout", "5"]
    assert serve.main(argv) == 1
    assert "no result" in capsys.readouterr().err
