"""The limit of open files, and how many connections of the service leave enough of them for the rest."""

from __future__ import annotations

from collections.abc import Iterator
import resource

import pytest

from inference_service.grpc_api import server
from qwenvl.descriptors import raise_descriptor_limit


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_soft_limit_is_raised_and_never_lowered(limits: tuple[int, int]) -> None:
    _, hard = limits
    resource.setrlimit(resource.RLIMIT_NOFILE, (500, hard))
    assert raise_descriptor_limit(600) == 600
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (600, hard)
    assert raise_descriptor_limit(400) == 400
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (600, hard)


@pytest.mark.parametrize("hard", [64, 256, 1024, 4096, 65536])
def test_connections_leave_descriptors_for_the_rest(
    monkeypatch: pytest.MonkeyPatch, hard: int
) -> None:
    monkeypatch.setattr(server, "raise_descriptor_limit", lambda wanted: min(wanted, hard))
    connections = server._max_connections()
    assert 10 <= connections <= 2048
    assert hard - 3 * connections >= min(1024, hard // 2)
    assert hard < 65536 or connections == 2048
