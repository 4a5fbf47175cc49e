"""An adapter that stores responses, and clients of two callers."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.rest_adapter.conftest import Adapter, open_adapter
from tests.rest_adapter.fake_service import Seen


@pytest.fixture(scope="session")
def shared_storing_adapter() -> Iterator[Adapter]:
    with open_adapter(response_store="memory", sse_heartbeat_s=0.2, max_media_mib=1) as adapter:
        yield adapter


@pytest.fixture
def storing_adapter(shared_storing_adapter: Adapter) -> Adapter:
    """The adapter with a store, with nothing seen yet."""
    shared_storing_adapter.seen.__dict__.update(Seen().__dict__)
    return shared_storing_adapter


def client_of(adapter: Adapter, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{adapter.url}/v1", api_key=key, max_retries=0)


@pytest.fixture
def storing(storing_adapter: Adapter) -> Iterator[openai.OpenAI]:
    with client_of(storing_adapter) as client:
        yield client
