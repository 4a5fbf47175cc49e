"""What is not JSON, and JSON that is small on the wire but large in memory."""

from __future__ import annotations

import asyncio
import gzip
import json
from pathlib import Path
import time
from typing import Any

import httpx
from hypothesis import given
from hypothesis import strategies as st
import pytest
import requests

from rest_adapter import json_size
from rest_adapter.errors import ApiError
from rest_adapter.json_size import MAX_CONTAINERS, MAX_STRINGS, MAX_VALUES, check_size
from tests.rest_adapter.conftest import Adapter, open_adapter
from tests.rest_adapter.raw_http import (
    CHAT,
    answers_of,
    chat_body,
    connect,
    read_to_end,
    with_length,
)
from tests.rest_adapter.test_adapter_process import running_adapter


MIB = 2**20

NOT_JSON: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "empty": (b"", ("it is empty",)),
    "blank": (b" \n ", ("it is empty",)),
    "not closed": (b'{"a": 1', ("line 1, column 8",)),
    "two commas": (b'{"a": 1,\n "b": [1,, 2]}', ("line 2, column 10",)),
    "trailing comma": (b'{"a": 1,\n}', ("trailing comma", "line 1, column 8")),
    "single quotes": (b"{'a': 1}", ("line 1, column 2",)),
    "after other letters": ('{"é": "日本語",\n "𝄞": x}'.encode(), ("line 2, column 7",)),
    "NaN": (b'{"a":\n NaN}', ("NaN is not a value of JSON", "line 2, column 2")),
    "Infinity": (b'{"a": [Infinity]}', ("Infinity is not a value of JSON",)),
    "-Infinity": (b'{"a": -Infinity}', ("-Infinity is not a value of JSON",)),
    "latin-1": (b'{"a":\n "caf\xe9"}', ("0xe9 is not UTF-8", "line 2, column 6")),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), ("it is UTF-16", "UTF-8")),
    "UTF-32": ('{"a": 1}'.encode("utf-32"), ("it is UTF-32", "UTF-8")),
    "UTF-16 without a mark": ('{"a": 1}'.encode("utf-16-le"), ("it is UTF-16", "UTF-8")),
    "UTF-16, big-endian": ('{"é": 1}'.encode("utf-16-be"), ("it is UTF-16", "UTF-8")),
    "UTF-32 without a mark": ('{"a": 1}'.encode("utf-32-le"), ("it is UTF-32", "UTF-8")),
    "UTF-32, big-endian": ('{"a": 1}'.encode("utf-32-be"), ("it is UTF-32", "UTF-8")),
    "gzip": (gzip.compress(b"{}"), ("it is compressed", "content-encoding: gzip")),
    "control character": (b'{"a": "b\nc"}', ("control character", "line 1, column 9")),
    "too deep": (b"[" * 5000, ("depth",)),
    "huge number": (b'{"a": 1e999}', ("line 1, column 7",)),
}


@pytest.mark.parametrize("case", NOT_JSON)
def test_what_is_not_json_is_located(adapter: Adapter, case: str) -> None:
    body, words = NOT_JSON[case]
    response = adapter.post(body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "invalid_json", None)
    for word in words:
        assert word in error["message"]


@pytest.mark.parametrize(
    ("escape", "column"),
    [
        (r"cut \ud83d", 13),
        (r"\udc00", 9),
        (r"\ud83dx", 9),
        (r"\\ud83d \ud83d\ud83d", 17),
        (r"\ud83d\u0041", 9),
    ],
)
def test_half_a_character_is_not_called_invalid_json(
    adapter: Adapter, escape: str, column: int
) -> None:
    response = adapter.post(b'{"user":"%b"}' % escape.encode())
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "invalid_value")
    assert "half of a character" in error["message"]
    assert f"line 1, column {column + 1}" in error["message"]
    assert "JSON" not in error["message"]


def test_whole_surrogate_pairs_are_characters(adapter: Adapter) -> None:
    body = chat_body("TEXT").replace(b"TEXT", rb"\ud83d\ude00 \\ud83d")
    assert adapter.post(body).json()["choices"][0]["message"]["content"] == "😀 \\ud83d"


def test_a_byte_order_mark_is_ignored(adapter: Adapter) -> None:
    assert adapter.post(b"\xef\xbb\xbf" + chat_body()).status_code == 200


def test_of_two_equal_fields_the_last_counts(adapter: Adapter) -> None:
    body = chat_body("second").replace(b'{"model"', b'{"messages": 7, "model"')
    assert adapter.post(body).json()["choices"][0]["message"]["content"] == "second"


MEDIA_TYPES = {
    None: 200,
    "": 200,
    "application/json": 200,
    "Application/JSON ; charset=utf-8": 200,
    "application/vnd.api+json": 200,
    "application/x-www-form-urlencoded": 200,  # `curl -d`
    "application/json, application/json": 200,  # a repeated header that a proxy has joined
    "application/json; charset=utf-8,Application/JSON,application/json;a=b": 200,
    'application/json; profile="a,b"': 200,
    "application/json, text/plain": 415,
    "text/plain, application/json": 415,
    "application/json; charset=utf-8, text/plain": 415,
    'application/json; profile="a,b", text/plain': 415,
    "application/json,": 200,
    "text/plain, text/plain": 415,
    "application/json, application/problem+json": 415,
    "text/plain": 415,
    "text/json+json": 415,
    "multipart/form-data; boundary=x": 415,
    "application/xml": 415,
}


@pytest.mark.parametrize("media_type", MEDIA_TYPES)
def test_media_types(adapter: Adapter, media_type: str | None) -> None:
    headers = {} if media_type is None else {"content-type": media_type}
    response = requests.post(adapter.url + CHAT, data=chat_body(), headers=headers, timeout=10)
    assert response.status_code == MEDIA_TYPES[media_type]


@pytest.mark.parametrize(
    ("types", "status"),
    [(["application/json"] * 3, 200), (["application/json", "text/plain"], 415)],
)
def test_a_repeated_header_is_one_if_it_agrees(
    adapter: Adapter, types: list[str], status: int
) -> None:
    lines = [f"content-type: {each}" for each in types]
    with connect(adapter) as connection:
        connection.sendall(with_length(chat_body(), *lines, "connection: close"))
        [answer] = answers_of(read_to_end(connection), ["POST"])
    assert answer.status == status


def test_a_real_form_is_refused(adapter: Adapter) -> None:
    response = requests.post(adapter.url + CHAT, data={"model": "demo"}, timeout=10)
    assert response.status_code == 415


def test_long_names_are_shortened(adapter: Adapter, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "rest_adapter")
    name = "x" * (2 * MIB)
    unknown: dict[str, Any] = {name: 1}
    assert adapter.ask(**unknown).status_code == 200
    refused = adapter.ask(chat_template_kwargs={name: 1})
    assert refused.status_code == 400
    assert len(refused.text) < 3000
    requests.get(f"{adapter.url}/{'y' * 20_000}", timeout=10)
    with open_adapter(strict_fields=True) as strict:
        refused = strict.ask(**unknown)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unknown_parameter")
        assert len(refused.text) < 3000
    assert caplog.records
    assert max(len(str(record.msg)) for record in caplog.records) < 3000


def prefixed(rest: bytes) -> bytes:
    return b'{"model":"demo","messages":[{"role":"user","content":"x"}],' + rest + b"}"


def content(part: bytes) -> bytes:
    return b'{"model":"demo","messages":[{"role":"user","content":[' + part + b"]}]}"


BOMBS = {
    "percent signs": content(
        b'{"type":"image_url","image_url":{"url":"data:image/png;base64,'
        + b"%" * (43 * MIB)
        + b'"}}'
    ),
    "escaped letters": content(
        b'{"type":"image_url","image_url":{"url":"data:image/png;base64,'
        + b"%41" * (14 * MIB)
        + b'"}}'
    ),
    "not base64": content(b'{"type":"image","image":"data:,' + b"!" * (43 * MIB) + b'"}'),
    "schemes": content(b'{"type":"image","image":"' + b"data:" * (43 * MIB // 5) + b',x"}'),
    "frames": content(b'{"type":"video","video":[' + b'"",' * (11 * MIB) + b'""]}'),
    "empty lists": prefixed(b'"x":[' + b"[]," * (14 * MIB) + b"[]]"),
    "empty objects": prefixed(b'"x":[' + b"{}," * (14 * MIB) + b"{}]"),
    "objects": prefixed(b'"x":[' + b'{"":0},' * (6 * MIB) + b"{}]"),
    "numbers": prefixed(b'"stop_token_ids":[' + b"1," * (21 * MIB) + b"1]"),
    "unknown fields": prefixed(b",".join(b'"%d":0' % number for number in range(3_000_000))),
    "messages": b'{"model":"demo","messages":[' + b"{}," * (14 * MIB) + b"{}]}",
    "parts": content(b'{"type":"text","text":""},' * (MIB + MIB // 2) + b"{}"),
    "escapes": prefixed(b'"x":"' + rb"\n" * (21 * MIB) + b'"'),
    "quotes": prefixed(b'"x":"' + rb"\"" * (21 * MIB) + b'"'),
    "quotes outside": b'"' * (43 * MIB),
    "text": chat_body("a " * (21 * MIB)),
    "deep": b"[" * (43 * MIB),
    "white space": b" " * (43 * MIB),
}


def status_of(pid: int, field: str) -> int:
    """A value in MiB of the kernel's report about a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) // 1024
    raise AssertionError(field)


async def worst_delay(port: int, stop: asyncio.Event) -> float:
    """The longest time of an answer to a neighbour."""
    worst = 0.0
    async with httpx.AsyncClient(timeout=60) as client:
        while not stop.is_set():
            started = time.monotonic()
            answer = await client.post(f"http://127.0.0.1:{port}{CHAT}", content=chat_body("hello"))
            assert answer.status_code == 200
            worst = max(worst, time.monotonic() - started)
            await asyncio.sleep(0.02)
    return worst


async def test_no_body_takes_much_memory_or_stops_the_others() -> None:
    """Generous bounds: without the limits these bodies took up to 8 GiB and 14 s."""
    async with (
        running_adapter() as (process, port, _),
        httpx.AsyncClient(timeout=60) as client,
        asyncio.timeout(300),
    ):
        for case, body in BOMBS.items():
            stop = asyncio.Event()
            neighbour = asyncio.create_task(worst_delay(port, stop))
            answer = await client.post(f"http://127.0.0.1:{port}{CHAT}", content=body)
            stop.set()
            assert answer.status_code in (400, 413), (case, answer.text[:300])
            assert await neighbour < 8, case
            assert status_of(process.pid, "VmHWM") < 800, case


def counted(data: bytes, limit: int = MIB) -> int:
    return check_size(bytearray(data), max_text_bytes=limit)


@given(st.lists(st.text('ab\\"\n'), max_size=40), st.integers(1, 9))
def test_escapes_may_lie_anywhere(texts: list[str], size: int) -> None:
    data = bytearray(json.dumps(texts).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_size, "_SLICE_BYTES", size)
        text = json_size._without_escapes(data)
    assert text.count(b'"') == 2 * len(texts)
    assert text == data.replace(b"\\\\", b"").replace(b'\\"', b"")


def filled(value: Any, count: int) -> bytes:
    return json.dumps([value] * count).encode()


@pytest.mark.parametrize(
    ("value", "most", "word"),
    [
        ("", MAX_STRINGS, "strings"),
        ([], MAX_CONTAINERS - 1, "objects and lists"),
        ({}, MAX_CONTAINERS - 1, "objects and lists"),
        (1, MAX_VALUES - 1, "values"),
        ({"a": '\\"'}, MAX_STRINGS // 2, "strings"),
    ],
)
def test_counts_are_bounded(value: object, most: int, word: str) -> None:
    assert counted(filled(value, most), 64 * MIB) > most
    with pytest.raises(ApiError, match=f"{word}, but at most") as refused:
        counted(filled(value, most + 2), 64 * MIB)
    assert refused.value.status == 413


@pytest.mark.parametrize("character", [",", "[", "{", '"', "\\", '\\"', "\\\\", "],[", '",'])
def test_characters_within_strings_do_not_count(character: str) -> None:
    text = json.dumps({"a": character * 200_000, "b": 1}).encode()
    assert counted(text, 4 * MIB) < 2000


@pytest.mark.parametrize(
    "url",
    ["data:image/png;base64," + "A" * (2 * MIB), " DATA:," + "%41" * MIB, "A+/=" * (MIB // 2)],
)
def test_images_do_not_count_as_text(url: str) -> None:
    assert counted(json.dumps({"url": url}).encode()) > 0
    with pytest.raises(ApiError, match="--max-text-mib"):
        counted(json.dumps({"url": url, "text": "a " * MIB}).encode())


def media_bytes(text: bytes) -> int:
    return json_size.Size.of(bytearray(b'{"url":"' + text + b'"}')).media_bytes


LETTERS = b"A" * 5000


@pytest.mark.parametrize(
    "character",
    ["\u00e9", "\u200b", "\u3000", "\U0001f600"],
)
@pytest.mark.parametrize("is_escaped", [False, True])
def test_an_image_with_a_character_beyond_ascii_is_text(character: str, is_escaped: bool) -> None:
    """One of them makes up to four bytes of every character of the string."""
    escaped = json.dumps(character)[1:-1].encode()
    for unit in (
        (escaped, escaped.upper().replace(b"U", b"u")) if is_escaped else (character.encode(),)
    ):
        assert media_bytes(b"data:" + LETTERS) == 5005
        assert not media_bytes(b"data:" + LETTERS + unit)
        assert not media_bytes(b"data:" + unit + LETTERS)
        assert not media_bytes(LETTERS + unit + LETTERS)
        with pytest.raises(ApiError, match="--max-text-mib"):
            counted(b'{"url":"data:' + b"A" * MIB + unit + b'"}')
        counted(b'{"url":"data:' + LETTERS + unit + b'"}')  # of which there may be so much


@pytest.mark.parametrize("size", [5, 6, 7, 4096])
def test_characters_beyond_ascii_may_lie_anywhere(size: int) -> None:
    for at in range(12):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(json_size, "_SLICE_BYTES", size)
            for unit in ("é".encode(), rb"\u00e9", rb"\u0100", rb"\u1000", rb"\ud83d\ude00"):
                assert not media_bytes(LETTERS + b"B" * at + unit + b"BB"), (at, unit)


@pytest.mark.parametrize(
    "unit",
    [rb"\u002B", rb"\u002b", rb"\u003d", rb"\/", rb"\u007f", rb"\n", rb"\\u4e00", rb"\"\u0041"],
)
def test_escapes_of_ascii_are_part_of_an_image(unit: bytes) -> None:
    """Encoders of JSON escape `+`, `=` or `/`."""
    for size in (5, 6, 7, 4096):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(json_size, "_SLICE_BYTES", size)
            assert media_bytes(LETTERS + unit * 9) >= 5000
            assert media_bytes(LETTERS + unit) >= 5000
