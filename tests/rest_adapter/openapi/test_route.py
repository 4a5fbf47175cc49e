"""The pages that need no key: thousands of connections that do not read them take no memory for each."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import h11
import pytest

from rest_adapter.app import create_app
from rest_adapter.bounded_connection import BoundedConnection
from rest_adapter.middleware import PAGES
from rest_adapter.openapi import route
from rest_adapter.settings import AdapterSettings


PATHS = [page.replace("{name}", "app.js") for page in sorted(PAGES)]


async def body_of(app: Any, path: str) -> list[bytes]:
    """The pieces of a page as they are given to the HTTP server."""
    pieces: list[bytes] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == 200
        else:
            pieces.append(message["body"])

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [],
        "client": ("127.0.0.1", 1),
        "state": {},
    }
    await app(scope, receive, send)
    return pieces


async def test_all_get_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: Counter[str] = Counter()
    for name in ("build_document", "render_page"):
        make = getattr(route, name)

        def counted(*args: Any, name: str = name, make: Any = make, **kwargs: Any) -> Any:
            counts[name] += 1
            return make(*args, **kwargs)

        monkeypatch.setattr(route, name, counted)
    app = create_app(AdapterSettings())
    for path in PATHS:
        found = await asyncio.gather(*(body_of(app, path) for _ in range(8)))
        found.append(await body_of(app, path))
        assert len(found[0][0]) > 200
        assert {tuple(map(id, pieces)) for pieces in found} == {tuple(map(id, found[0]))}, path
    assert counts == {"build_document": 1, "render_page": 1}


def test_the_protocol_makes_no_copy() -> None:
    connection = BoundedConnection()
    connection.receive_data(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    connection.next_event()
    body = bytes(100_000)
    length = [("content-length", str(len(body)))]
    connection.send(h11.Response(status_code=200, headers=length))
    assert connection.send(h11.Data(data=body)) is body
