"""The adapter opens no connection but the gRPC channel of `qwenvl.aio`: its modules import no client of the network.

The import contracts see only the first part of a standard library's name, and `urllib.parse` is needed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest


ADAPTER = Path(__file__).parents[2] / "rest_adapter"
FORBIDDEN = {
    "aiohttp",
    "ftplib",
    "http",
    "httpx",
    "requests",
    "smtplib",
    "socket",
    "urllib.request",
    "urllib3",
    "xmlrpc",
}
ALLOWED = {
    "socket.AF_INET",
    "socket.AF_INET6",
    "socket.IPPROTO_TCP",
    "socket.SOL_SOCKET",
    "socket.SO_ERROR",
    "socket.TCP_NOTSENT_LOWAT",
}
"""Numbers, which open nothing."""
FORBIDDEN_CALLS = {"__import__", "import_module", "open_connection", "create_connection"}


def forbidden(source: str) -> Iterator[str]:
    """The forbidden imports and calls in the source of a module."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in {*names} - ALLOWED:
            if any(f"{name}.".startswith(f"{other}.") for other in FORBIDDEN):
                yield name
        called = getattr(node, "attr", getattr(node, "id", None))
        if called in FORBIDDEN_CALLS:
            yield str(called)


@pytest.mark.parametrize("path", sorted(ADAPTER.rglob("*.py")), ids=lambda path: path.name)
def test_no_module_imports_a_client_of_the_network(path: Path) -> None:
    assert not [*forbidden(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(
    "source",
    [
        "import urllib.request",
        "from urllib import request",
        "from urllib.request import urlopen",
        "import http.client as c",
        "from http import client",
        "import socket",
        "def f():\n    from socket import create_server",
        "import importlib\nimportlib.import_module('socket')",
        "import asyncio\nasyncio.open_connection('x', 1)",
    ],
)
def test_a_forbidden_import_is_found(source: str) -> None:
    assert [*forbidden(source)]


def test_the_parts_of_urls_may_be_parsed() -> None:
    assert not [*forbidden("import urllib.parse\nfrom urllib.parse import unquote_to_bytes")]
