"""GET /health, /ready and /version."""

from __future__ import annotations

import requests

from tests.rest_adapter.conftest import Adapter


def test_ready_follows_the_service(adapter: Adapter) -> None:
    def status(path: str) -> int:
        return requests.get(adapter.url + path, timeout=10).status_code

    assert status("/ready") == 200
    adapter.set_ready(False)
    assert status("/ready") == 503
    assert status("/health") == 200
    adapter.set_ready(True)
    assert status("/ready") == 200


def test_version_is_reported(adapter: Adapter) -> None:
    assert requests.get(f"{adapter.url}/version", timeout=10).json()["version"]
