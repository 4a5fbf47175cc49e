"""The files of the playground over real sockets."""

from __future__ import annotations

from collections.abc import Iterator
import json
from pathlib import Path
import re

import pytest
import requests

from qwenvl.errors import BY_REASON
from rest_adapter.playground import route
from tests.rest_adapter.conftest import Adapter, open_adapter
from tests.rest_adapter.playground.vendor import LIBRARIES, VENDOR, VERSIONS, digest
from tests.rest_adapter.raw_http import answers_of, connect, head, read_to_end


PAGE = VENDOR.parent / "page"
FILES = sorted(
    str(path.relative_to(folder.parent if folder == VENDOR else folder))
    for folder in (PAGE, VENDOR)
    for path in folder.rglob("*")
    if path.is_file() and path.name != "index.html"
)
KEY = "the-key"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adapter]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY)
    with open_adapter(api_key_file=str(keys)) as adapter:
        yield adapter


def get(adapter: Adapter, path: str = "/", **options: object) -> requests.Response:
    return requests.get(adapter.url + path, timeout=10, **options)  # type: ignore[arg-type]


def test_the_page(adapter: Adapter) -> None:
    response = get(adapter)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert 'src="playground/app.js"' in response.text


def test_nothing_is_loaded_from_elsewhere_and_nothing_may_frame_the_page(adapter: Adapter) -> None:
    for path in ("/", "/playground/app.js"):
        headers = get(adapter, path).headers
        policy = dict(
            directive.split(" ", 1) for directive in headers["content-security-policy"].split("; ")
        )
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
        assert policy["require-trusted-types-for"] == "'script'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-frame-options"] == "DENY"
    for source in PAGE.rglob("*"):
        if source.suffix in (".js", ".css", ".html"):
            assert not re.search(r"https?://", source.read_text()), source


@pytest.mark.parametrize("name", FILES)
def test_each_file_has_its_type(adapter: Adapter, name: str) -> None:
    response = get(adapter, f"/playground/{name}")
    assert response.status_code == 200
    expected = route._TYPES[name.rpartition(".")[2]]
    assert response.headers["content-type"] == expected


def test_a_browser_asks_each_time_and_gets_what_is_new(adapter: Adapter) -> None:
    for path in ("/", "/playground/style.css"):
        first = get(adapter, path)
        assert first.headers["cache-control"] == "no-cache"
        tag = first.headers["etag"]
        for known in (tag, f'"other", W/{tag}'):
            again = get(adapter, path, headers={"if-none-match": known})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == tag
        assert get(adapter, path, headers={"if-none-match": '"other"'}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/playground/app.js"])
def test_head(adapter: Adapter, path: str) -> None:
    got, asked = (
        requests.request(method, adapter.url + path, timeout=10) for method in ("GET", "HEAD")
    )
    assert asked.status_code == got.status_code == 200
    assert asked.content == b""
    for name in ("content-type", "content-length", "etag"):
        assert asked.headers[name] == got.headers[name]


@pytest.mark.parametrize(
    "path",
    [
        "/playground",
        "/playground/nothing.js",
        "/playground/index.html",
        "/playground/../__init__.py",
        "/playground/..%2f__init__.py",
        "/playground/%2e%2e/route.py",
        "/playground/vendor/../../settings.py",
        "/playground//etc/passwd",
        "/playground/..\\route.py",
        "/playground/app.js%00.css",
        "/playground/vendor",
    ],
)
def test_no_other_file_can_be_had(guarded: Adapter, path: str) -> None:
    """Sent as it is: clients would tidy the path."""
    with connect(guarded) as connection:
        connection.sendall(head("GET", path, "connection: close"))
        (answer,) = answers_of(read_to_end(connection), ["GET"])
    assert answer.status in (401, 404)
    assert b"import" not in answer.body


def test_the_page_needs_no_key_and_the_api_does(guarded: Adapter) -> None:
    for path in ("/", "/playground/app.js", "/playground/vendor/preact.mjs"):
        assert get(guarded, path).status_code == 200
    for path in ("/v1/models", "/version", "/metrics", "/nothing"):
        assert get(guarded, path).status_code == 401
    assert get(guarded, "/v1/models", headers={"authorization": f"Bearer {KEY}"}).ok


def test_nothing_can_be_sent_to_the_page(adapter: Adapter) -> None:
    for path in ("/", "/playground/app.js"):
        response = requests.post(adapter.url + path, data=b"{}", timeout=10)
        assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD, OPTIONS")


def test_it_can_be_switched_off() -> None:
    with open_adapter(playground=False) as adapter:
        for path in ("/", "/playground/app.js"):
            response = get(adapter, path)
            assert response.status_code == 404
            assert "/playground/{name}" not in response.json()["error"]["message"]


def test_the_metrics_have_one_label_for_all_files(adapter: Adapter) -> None:
    get(adapter, "/playground/app.js")
    get(adapter, "/playground/style.css")
    routes = set(re.findall(r'http_route="(/playground[^"]*)"', get(adapter, "/metrics").text))
    assert routes == {"/playground/{name}"}


def test_the_libraries_are_those_of_npm() -> None:
    versions = json.loads(VERSIONS.read_text())
    assert set(versions) == set(LIBRARIES)
    known = {VERSIONS.name}
    for name, entry in versions.items():
        assert set(entry["sha256"]) == set(LIBRARIES[name].files.values())
        for served, expected in entry["sha256"].items():
            assert digest((VENDOR / served).read_bytes()) == expected
        known |= set(entry["sha256"])
    assert {path.name for path in VENDOR.iterdir()} == known
    assert sum(path.stat().st_size for path in VENDOR.iterdir()) < 200_000


def test_all_that_is_imported_is_there() -> None:
    for path in (*PAGE.glob("*.js"), *VENDOR.glob("*.mjs")):
        for name in re.findall(r'\bfrom\s*"([^"]+)"', path.read_text()):
            if path.parent == VENDOR:
                assert (VENDOR / name).is_file(), (path, name)
            else:
                assert name.removeprefix("./") in FILES, (path, name)


def test_both_languages_have_all_texts() -> None:
    text = (PAGE / "texts.js").read_text()
    languages = re.split(r"^const (?:en|zh) = \{$", text, flags=re.MULTILINE)[1:]
    names = [re.findall(r"^ +(\w+):", part, flags=re.MULTILINE) for part in languages]
    assert len(names) == 2
    assert names[0] == names[1]


def test_every_error_that_the_page_can_cause_has_a_hint() -> None:
    text = (PAGE / "texts.js").read_text()
    english = text.split("const zh")[0].split("hints: {")[1]
    hints = set(re.findall(r"^ +(\w+): ", english, flags=re.MULTILINE))
    never = {"constraint_failed", "invalid_image_url"}  # it sends no schemas and no addresses
    assert hints - {"unreachable"} == {each.openai_code for each in BY_REASON.values()} - never


def test_the_page_is_no_larger_than_it_must_be() -> None:
    assert sum(path.stat().st_size for path in Path(PAGE).rglob("*")) < 130_000
