"""The ports of the programs under test."""

from __future__ import annotations

import contextlib
import random
import socket

import pytest

from tests.support import ports
from tests.support.ports import free_ports


def test_a_row_of_ports_is_free_and_not_ephemeral() -> None:
    random.seed(1)
    row = free_ports(5)
    random.seed(1)
    assert row == [*range(row[0], row[0] + 5)]
    assert free_ports(5) != row, "another test run, whose generator has the same seed"
    with contextlib.ExitStack() as held:
        ephemeral = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(200)]
        assert max(row) < min(one.getsockname()[1] for one in ephemeral)
        for port in row:
            held.enter_context(socket.create_server(("127.0.0.1", port)))


def test_a_row_with_a_taken_port_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    row = free_ports(3)
    drawn = iter(row)
    monkeypatch.setattr(ports._SYSTEM, "randint", lambda *_: next(drawn))
    with socket.create_server(("127.0.0.1", row[0])):
        assert free_ports(2) == row[1:]
