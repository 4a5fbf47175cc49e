"""Web pages as clients: those that may call the API can read it, and no other can make it work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from rest_adapter.origins import compile_origins
from rest_adapter.settings import AdapterSettings
from tests.rest_adapter.conftest import Adapter, open_adapter
from tests.rest_adapter.raw_http import CHAT, chat_body


LOCAL = [
    "http://localhost",
    "http://localhost:3000",
    "https://localhost:5173",
    "http://chat.localhost:8080",
    "http://127.0.0.1:8000",
    "http://127.1.2.3",
    "http://[::1]:3000",
    "http://0.0.0.0:8080",
    "tauri://localhost",
    "app://obsidian.md",
    "vscode-webview://1a2b",
    "chrome-extension://abcdef",
]
FOREIGN = [
    "null",
    "https://evil.example",
    "http://localhost.evil.example",
    "http://evil.example:3000",
    "http://127.0.0.1.evil.example",
    "http://notlocalhost",
    "https://localhost@evil.example",
    "http://192.168.1.5:3000",
    "",
]


def preflight(adapter: Adapter, origin: str, **more: str) -> requests.Response:
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-lang",
    } | {name.replace("_", "-"): value for name, value in more.items()}
    return requests.options(adapter.url + CHAT, headers=headers, timeout=10)


def post_from(adapter: Adapter, origin: str, **headers: str) -> requests.Response:
    all_headers = {"origin": origin, "content-type": "text/plain"} | headers
    return requests.post(adapter.url + CHAT, data=chat_body(), headers=all_headers, timeout=10)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adapter]:
    keys: Path = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("right\n")
    with open_adapter(api_key_file=str(keys)) as adapter:
        yield adapter


@pytest.mark.parametrize("origin", LOCAL)
def test_local_pages_may_call_by_default(adapter: Adapter, origin: str) -> None:
    asked = preflight(adapter, origin)
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == origin
    assert "POST" in asked.headers["access-control-allow-methods"]
    assert "x-stainless-lang" in asked.headers["access-control-allow-headers"]
    response = post_from(adapter, origin, **{"content-type": "application/json"})
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == origin
    assert {"x-request-id", "retry-after"} <= {
        name.strip() for name in response.headers["access-control-expose-headers"].split(",")
    }


@pytest.mark.parametrize("origin", FOREIGN)
def test_foreign_pages_may_not(adapter: Adapter, origin: str) -> None:
    asked = preflight(adapter, origin)
    assert "access-control-allow-origin" not in asked.headers
    for media_type in ("text/plain", "application/json", "application/x-www-form-urlencoded", ""):
        response = post_from(adapter, origin, **{"content-type": media_type})
        assert response.status_code == 403
        assert response.json()["error"]["code"] == "permission_denied"
        assert "--allowed-origins" in response.json()["error"]["message"]
        assert "access-control-allow-origin" not in response.headers
    assert adapter.seen.calls == 0


def test_a_name_that_was_rebound_is_foreign(adapter: Adapter) -> None:
    """The page's own host name resolves to this machine, so that the page and the API have one origin."""
    response = post_from(adapter, "http://evil.example:8000", host="evil.example:8000")
    assert response.status_code == 403


@pytest.mark.parametrize("host", ["192.168.1.5:8000", "[fd00::1]:8000", "gpu-box:8000"])
def test_pages_of_the_server_itself_are_not_foreign(adapter: Adapter, host: str) -> None:
    headers = {"host": host, "content-type": "application/json"}
    assert post_from(adapter, f"http://{host}", **headers).status_code == 200


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_changes_nothing_is_answered_but_not_shown(adapter: Adapter, method: str) -> None:
    headers = {"origin": "https://evil.example"}
    response = requests.request(method, f"{adapter.url}/v1/models", headers=headers, timeout=10)
    assert response.status_code == 200
    assert "access-control-allow-origin" not in response.headers


def test_the_browser_asks_without_a_key(guarded: Adapter) -> None:
    assert preflight(guarded, "http://localhost:3000").status_code == 200
    refused = post_from(guarded, "http://localhost:3000")
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "http://localhost:3000"
    plain = requests.options(guarded.url + CHAT, timeout=10)
    assert (plain.status_code, plain.headers["allow"]) == (204, "OPTIONS, POST")


def test_errors_can_be_read_by_the_page(adapter: Adapter) -> None:
    headers = {"origin": "http://localhost:1", "content-type": "application/json"}
    for path, body, status in [(CHAT, b"{", 400), ("/v1/nothing", b"{}", 404), (CHAT, b"", 400)]:
        response = requests.post(adapter.url + path, data=body, headers=headers, timeout=10)
        assert response.status_code == status
        assert response.headers["access-control-allow-origin"] == "http://localhost:1"
        assert response.headers["x-request-id"]


def test_pages_of_public_networks_are_asked_about(adapter: Adapter) -> None:
    asked = preflight(
        adapter, "http://localhost:3000", access_control_request_private_network="true"
    )
    assert asked.headers["access-control-allow-private-network"] == "true"


def test_origins_can_be_chosen() -> None:
    with open_adapter(
        allowed_origins=("https://chat.example", "https://*.apps.example:8443")
    ) as adapter:
        for origin in ("https://chat.example", "https://a.b.apps.example:8443"):
            assert preflight(adapter, origin).headers["access-control-allow-origin"] == origin
        for origin in ("http://chat.example", "https://x.chat.example", "http://localhost:3000"):
            assert "access-control-allow-origin" not in preflight(adapter, origin).headers


@pytest.mark.parametrize(
    ("entries", "yes", "no"),
    [
        (("*",), ["https://any.example", "null", "http://localhost"], []),
        (("none",), [], ["http://localhost", "https://any.example", "null", ""]),
        (("local", "https://a.example/"), ["http://localhost:1", "https://a.example"], FOREIGN),
        (("HTTPS://A.Example",), ["https://a.example"], ["https://a.example.evil"]),
        (("https://*.a.example",), ["https://b.a.example"], ["https://evil/.a.example"]),
        (("null", "local"), ["null", "http://localhost"], ["https://any.example", ""]),
        (("tauri://localhost",), ["tauri://localhost"], ["http://localhost"]),
    ],
)
def test_entries(entries: tuple[str, ...], yes: list[str], no: list[str]) -> None:
    pattern = compile_origins(entries)
    assert [origin for origin in yes if not pattern.fullmatch(origin)] == []
    assert [origin for origin in no if pattern.fullmatch(origin)] == []


@pytest.mark.parametrize(
    "entry", ["a.example", "https://a.example/path", "https://", "", "http:/x"]
)
def test_what_is_not_an_origin_is_refused_at_the_start(entry: str) -> None:
    with pytest.raises(ValueError, match="is not an origin"):
        AdapterSettings(allowed_origins=(entry,))
