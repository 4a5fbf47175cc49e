"""The HTTP/1.1 protocol itself: upgrades, framing, old versions, and everything beside a body."""

from __future__ import annotations

import itertools
import json
import time

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from rest_adapter import bounded_connection, http_protocol
from tests.rest_adapter.conftest import Adapter, open_adapter
from tests.rest_adapter.raw_http import (
    CHAT,
    answers_of,
    ask_raw,
    chat_body,
    chunked,
    connect,
    head,
    in_chunks,
    read_to_end,
    with_length,
)


UPGRADES = ["h2c", "websocket", "TLS/1.0", "h2c, websocket", "anything/2"]
KIB = 1024


@pytest.mark.parametrize("framing", [with_length, in_chunks])
@pytest.mark.parametrize("token", UPGRADES)
def test_an_upgrade_is_ignored(adapter: Adapter, token: str, framing) -> None:
    """The JDK and `curl --http2` offer HTTP/2 with every request."""
    offer = (
        "connection: Upgrade, HTTP2-Settings",
        f"upgrade: {token}",
        "http2-settings: AAMAAABkAAQAoAAAAAIAAAAA",
    )
    for number, size in enumerate((10_000, 100, 3)):
        raw = framing(chat_body(f"{token} {number}"), *offer)
        segments = [raw[start : start + size] for start in range(0, len(raw), size)]
        first, last = ask_raw(adapter, *segments)
        assert (first.status, last.status) == (200, 200)
        assert first.text == f"{token} {number}"


@pytest.mark.parametrize("framing", [with_length, in_chunks])
def test_a_body_is_never_a_request(adapter: Adapter, framing) -> None:
    inner = head("GET", "/version") + with_length(chat_body("smuggled"))
    for offer in ((), ("connection: upgrade", "upgrade: h2c")):
        raw = framing(inner, *offer)
        cut = raw.index(b"\r\n\r\n") + 4
        first, last = ask_raw(adapter, raw[:cut], raw[cut:])
        assert (first.status, first.error["code"], last.status) == (400, "invalid_json", 200)
    assert not any("smuggled" in str(spec) for spec in adapter.seen.specs)


REQUESTS = {
    "length": ("POST", with_length(chat_body("one"))),
    "chunks": ("POST", in_chunks(chat_body("two"), size=11, trailers=b"x-a: 1\r\n")),
    "upgrade": (
        "POST",
        with_length(chat_body("three"), "connection: upgrade", "upgrade: websocket"),
    ),
    "stream": ("POST", in_chunks(chat_body("four", stream=True))),
    "get": ("GET", head("GET", "/version")),
    "head": ("HEAD", head("HEAD", "/health")),
    "line break before": ("POST", b"\r\n" + with_length(chat_body("five"))),
}


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_segments_do_not_matter(shared_adapter: Adapter, data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(sorted(REQUESTS)), min_size=1, max_size=4))
    raw = b"".join(REQUESTS[name][1] for name in names)
    cuts = data.draw(st.lists(st.integers(1, len(raw) - 1), max_size=8, unique=True))
    edges = [0, *sorted(cuts), len(raw)]
    segments = [raw[a:b] for a, b in itertools.pairwise(edges)]
    answers = ask_raw(shared_adapter, *segments, methods=[REQUESTS[name][0] for name in names])
    assert [answer.status for answer in answers] == [200] * (len(names) + 1)
    texts = {"length": "one", "chunks": "two", "upgrade": "three", "line break before": "five"}
    for name, answer in zip(names, answers, strict=False):
        if name in texts:
            assert answer.text == texts[name]
        elif name == "stream":
            assert answer.body.endswith(b"data: [DONE]\n\n")


BODY = chat_body("never")
AMBIGUOUS = {
    "both lengths": head("POST", CHAT, "content-length: 6", "transfer-encoding: chunked")
    + chunked([BODY]),
    "both, other order": head("POST", CHAT, "transfer-encoding: chunked", "content-length: 6")
    + chunked([BODY]),
    "two lengths": head("POST", CHAT, f"content-length: {len(BODY)}", "content-length: 6") + BODY,
    "a list of lengths": head("POST", CHAT, f"content-length: {len(BODY)}, 6") + BODY,
    "a signed length": head("POST", CHAT, f"content-length: +{len(BODY)}") + BODY,
    "a hexadecimal length": head("POST", CHAT, "content-length: 0x10") + BODY,
    "an endless length": head("POST", CHAT, f"content-length: {'9' * 5000}") + BODY,
    "chunked twice": head("POST", CHAT, "transfer-encoding: chunked, chunked") + chunked([BODY]),
    "chunked not last": head("POST", CHAT, "transfer-encoding: chunked, gzip") + chunked([BODY]),
    "unknown coding": head("POST", CHAT, "transfer-encoding: xchunked") + chunked([BODY]),
    "chunks in HTTP/1.0": head("POST", CHAT, "transfer-encoding: chunked", version="1.0")
    + chunked([BODY]),
    "space before the colon": head("POST", CHAT, "transfer-encoding : chunked") + chunked([BODY]),
    "no host": f"POST {CHAT} HTTP/1.1\r\ncontent-length: 6\r\n\r\n".encode() + BODY,
    "bad chunk size": head("POST", CHAT, "transfer-encoding: chunked") + b"-1\r\nx\r\n0\r\n\r\n",
    "bad chunk end": head("POST", CHAT, "transfer-encoding: chunked") + b"1\r\nxyz\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_ambiguous_framing_is_refused_and_nothing_follows(adapter: Adapter, case: str) -> None:
    with connect(adapter) as connection:
        connection.sendall(AMBIGUOUS[case] + head("GET", "/version"))
        (answer,) = answers_of(read_to_end(connection), ["POST"])
    assert answer.status in (400, 501)
    assert answer.error["code"] == "malformed_request"
    assert answer.headers["connection"] == "close"
    assert adapter.seen.calls == 0


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(adapter: Adapter) -> None:
    lines = ("expect: 100-continue", f"content-length: {5 * KIB * KIB}")
    with connect(adapter) as connection:
        connection.sendall(head("POST", CHAT, *lines))
        (answer,) = answers_of(read_to_end(connection), ["POST"])
    assert answer.status == 413
    assert answer.headers["connection"] == "close"


def test_a_body_is_asked_for_if_the_client_waits(adapter: Adapter) -> None:
    body = chat_body("patience")
    with connect(adapter) as connection:
        lines = ("expect: 100-continue", f"content-length: {len(body)}", "connection: close")
        connection.sendall(head("POST", CHAT, *lines))
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        (answer,) = answers_of(read_to_end(connection), ["POST"])
    assert answer.text == "patience"


@pytest.mark.parametrize("stream", [True, False])
def test_http_1_0_has_no_chunks(adapter: Adapter, stream: bool) -> None:
    with connect(adapter) as connection:
        connection.sendall(with_length(chat_body("old", stream=stream), version="1.0"))
        raw = read_to_end(connection)
    top, _, body = raw.partition(b"\r\n\r\n")
    assert top.startswith(b"HTTP/1.1 200 ")
    assert b"transfer-encoding" not in top.lower()
    if stream:
        assert body.startswith(b"data: {")
        assert body.endswith(b"\n\ndata: [DONE]\n\n")
    else:
        assert json.loads(body)["choices"][0]["message"]["content"] == "old"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory):
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("right\n")
    with open_adapter(api_key_file=str(keys), max_body_mib=1) as adapter:
        yield adapter


def flood(adapter: Adapter, begin: bytes, piece: bytes, limit: int) -> tuple[int, bytes]:
    """Sends a beginning and then pieces for ever; returns how many bytes were accepted, and the answer."""
    sent, received = 0, b""
    with connect(adapter) as connection:
        connection.sendall(begin)
        connection.settimeout(5)
        try:
            while sent < limit:
                connection.sendall(piece)
                sent += len(piece)
        except OSError:
            pass
        received = read_to_end(connection) if sent < limit else b""
    return sent, received


ENDLESS = {
    "trailers": (b"1\r\n{\r\n0\r\n", b"x-trailer: " + b"a" * 4000 + b"\r\n"),
    "a trailer": (b"1\r\n{\r\n0\r\nx-a: ", b"a" * 4096),
    "an extension": (b"1;a=", b"a" * 4096),
    "extensions": (b"", b"1;a=" + b"a" * 8000 + b"\r\n{\r\n"),
    "chunk size": (b"", b"0" * 4096),
    "tiny chunks": (b"", b"1\r\n \r\n" * 800),
}
TARGETS = {
    "served": ("POST", CHAT, "authorization: Bearer right"),
    "no key": ("POST", CHAT),
    "probe": ("GET", "/health"),
    "unknown path": ("POST", "/nothing", "authorization: Bearer right"),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("what", ENDLESS)
def test_what_is_beside_a_body_is_bounded(guarded: Adapter, what: str, target: str) -> None:
    begin, piece = ENDLESS[what]
    first = head(*TARGETS[target], "transfer-encoding: chunked")
    started = time.monotonic()
    sent, _ = flood(guarded, first + begin, piece, 64 * 2**20)
    assert sent < 32 * 2**20
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("what", ["a header", "headers", "target", "trailers"])
def test_a_large_head_is_refused_in_json(adapter: Adapter, what: str) -> None:
    raw = {
        "a header": head("GET", "/version", "x-a: " + "a" * 60 * KIB),
        "headers": head("GET", "/version", *(f"x-{n}: {n}" for n in range(200))),
        "trailers": head("POST", CHAT, "transfer-encoding: chunked")
        + b"0\r\n"
        + b"x: y\r\n" * 2000,
        "target": head("GET", "/" + "a" * 60 * KIB),
    }[what]
    with connect(adapter) as connection:
        connection.sendall(raw)
        (answer,) = answers_of(read_to_end(connection), ["GET"])
    assert answer.status == 431
    assert ("128" if "ers" in what else "32 KiB") in answer.error["message"]
    assert adapter.ask().status_code == 200


def test_usual_extensions_trailers_and_chunks_are_fine(adapter: Adapter) -> None:
    body = chat_body("x" * 3000)
    pieces = b"".join(b"%x;name=value\r\n%b\r\n" % (1, body[i : i + 1]) for i in range(200))
    rest = chunked([body[200:]], trailers=b"x-checksum: abc\r\nx-other: d\r\n")
    raw = head("POST", CHAT, "transfer-encoding: chunked") + pieces + rest
    first, _ = ask_raw(adapter, raw)
    assert first.text == "x" * 3000


@pytest.mark.parametrize("target", ["no key", "probe", "unknown path"])
def test_an_early_answer_closes_the_connection(guarded: Adapter, target: str) -> None:
    """Whoever goes on sending is cut off, and whoever only waits as well."""
    first = head(*TARGETS[target], "content-length: 900000000")
    sent, _ = flood(guarded, first, b" " * 65536, 256 * 2**20)
    assert sent < 64 * 2**20
    with connect(guarded) as connection:
        connection.sendall(first + b"{")
        (answer,) = answers_of(read_to_end(connection), [TARGETS[target][0]])
    assert answer.headers["connection"] == "close"
    assert answer.status == {"no key": 401, "probe": 200, "unknown path": 404}[target]


def test_a_client_that_writes_before_it_reads_gets_the_early_answer(guarded: Adapter) -> None:
    with connect(guarded) as connection:
        connection.sendall(head("POST", CHAT, f"content-length: {2**20}"))
        for _ in range(16):
            connection.sendall(b" " * 2**16)
            time.sleep(0.01)
        raw = read_to_end(connection)
    assert raw.startswith(b"HTTP/1.1 401 ")


def test_a_line_break_does_not_keep_a_connection_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.3)
    with open_adapter() as adapter, connect(adapter) as connection:
        connection.sendall(head("GET", "/version"))
        received = connection.recv(4096)
        time.sleep(0.3)
        connection.sendall(b"\r\n")
        started = time.monotonic()
        assert (received + read_to_end(connection)).startswith(b"HTTP/1.1 200 ")
        assert time.monotonic() - started < 4  # before an idle connection would be closed


def test_a_second_request_that_is_malformed(adapter: Adapter) -> None:
    with connect(adapter) as connection:
        connection.sendall(with_length(chat_body("fine")) + b"\x16\x03\x01\x02 nonsense\r\n\r\n")
        first, second = answers_of(read_to_end(connection), ["POST", "POST"])
    assert first.text == "fine"
    assert (second.status, second.error["code"]) == (400, "malformed_request")


NOT_HTTP = {
    "TLS": bytes.fromhex("16030100a5010000a1030374") + bytes(160),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /version\r\n\r\n",
    "words": b"hello there\r\n\r\n",
    "control": b"GET /version HTTP/1.1\r\nhost: x\x00\r\n\r\n",
    "future": b"GET /version HTTP/3.0\r\nhost: x\r\n\r\n",
    "no name": b"GET /version HTTP/1.1\r\nhost: x\r\n: a\r\n\r\n",
    "target": b"GET /vers ion HTTP/1.1\r\nhost: x\r\n\r\n",
}


@pytest.mark.parametrize("case", NOT_HTTP)
def test_what_is_not_http(adapter: Adapter, case: str) -> None:
    with connect(adapter) as connection:
        connection.sendall(NOT_HTTP[case])
        (answer,) = answers_of(read_to_end(connection), ["GET"])
    status = 505 if case in ("HTTP/2", "future") else 400
    assert (answer.status, answer.error["code"]) == (status, "malformed_request")
    assert answer.error["request_id"].startswith("req-")
    assert ("use http://" in answer.error["message"]) == (case == "TLS")
    assert adapter.ask().status_code == 200


@pytest.mark.parametrize("method", ["CONNECT", "TRACE", "PROPFIND"])
def test_other_methods(adapter: Adapter, method: str) -> None:
    target = {"CONNECT": "example.org:443"}.get(method, "/version")
    answer, last = ask_raw(adapter, head(method, target), methods=[method])
    assert answer.status in (404, 405)
    assert last.status == 200


def test_the_methods_of_the_server(adapter: Adapter) -> None:
    answer, last = ask_raw(adapter, head("OPTIONS", "*"), methods=["OPTIONS"])
    assert (answer.status, answer.headers["allow"]) == (204, "DELETE, GET, HEAD, OPTIONS, POST")
    assert last.status == 200


@pytest.mark.parametrize(
    "lines",
    [b"\r\n", b"\n", b"\r\n" * 2, b"\n\r\n\n", b"\r\n" * bounded_connection.MAX_EMPTY_LINES],
)
def test_empty_lines_before_a_request_are_ignored(adapter: Adapter, lines: bytes) -> None:
    """RFC 9112, 2.2; some clients send one behind each body."""
    raw = lines + with_length(chat_body("one")) + lines + head("GET", "/version") + lines
    for size in (len(raw), 1):
        segments = [raw[start : start + size] for start in range(0, len(raw), size)]
        answers = ask_raw(adapter, *segments, methods=["POST", "GET"])
        assert [answer.status for answer in answers] == [200] * 3
        assert answers[0].text == "one"


@pytest.mark.parametrize("line", [b"\r\n", b"\n"])
def test_endless_empty_lines_are_refused(adapter: Adapter, line: bytes) -> None:
    with connect(adapter) as connection:
        connection.sendall(
            line * (bounded_connection.MAX_EMPTY_LINES + 1) + head("GET", "/version")
        )
        (answer,) = answers_of(read_to_end(connection), ["GET"])
    assert (answer.status, answer.error["code"]) == (400, "malformed_request")
    assert "preceded by more than 16 empty lines" in answer.error["message"]


def test_a_slow_second_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.3)
    with open_adapter() as adapter, connect(adapter) as connection:
        connection.sendall(with_length(chat_body("slow 0.6")) + b"GET /version HT")
        started = time.monotonic()
        assert b"HTTP/1.1 200 " in read_to_end(connection)
        assert time.monotonic() - started < 4  # before an idle connection would be closed


def test_an_idle_connection_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.3)
    with open_adapter() as adapter, connect(adapter) as connection:
        connection.sendall(head("GET", "/version"))
        received = b""
        while not received.endswith(b"}"):
            received += connection.recv(4096)
        connection.settimeout(0.8)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(10)
        connection.sendall(head("GET", "/version", "connection: close"))
        assert read_to_end(connection).startswith(b"HTTP/1.1 200 ")


def test_lines_of_a_body_are_no_headers(adapter: Adapter) -> None:
    """The end of a head may be two line feeds (RFC 9112, 2.2)."""
    body = chat_body("lines").replace(b", ", b"," + b"\n" * 500)
    raw = with_length(body)
    cut = raw.index(b"\r\n\r\n") + 4
    first, last = ask_raw(adapter, raw[:cut].replace(b"\r\n", b"\n") + raw[cut:])
    assert (first.status, last.status) == (200, 200)


@pytest.mark.parametrize(
    "line", ["GET /a b HTTP/1.1", "GET /\xe9 HTTP/1.1", "nonsense", "\x16\x03"]
)
def test_a_refusal_quotes_the_line_as_text(adapter: Adapter, line: str) -> None:
    with connect(adapter) as connection:
        connection.sendall(line.encode("latin-1") + b"\r\nhost: x\r\n\r\n")
        (answer,) = answers_of(read_to_end(connection), ["GET"])
    assert "bytearray" not in answer.error["message"]
    assert "'" in answer.error["message"]
