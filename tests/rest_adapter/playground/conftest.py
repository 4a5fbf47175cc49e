"""A browser for the tests of the page in one module: while it is open, no other test may have an event loop."""

from __future__ import annotations

from collections.abc import Iterator

from playwright.sync_api import Browser
import pytest

from tests.rest_adapter.conftest import Adapter
from tests.support.browser import Visit, open_browser, visit


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def visited(browser: Browser, adapter: Adapter) -> Iterator[Visit]:
    with visit(browser, adapter.url) as found:
        yield found
        assert found.complaints == []
