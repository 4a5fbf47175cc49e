"""What `qwenvl serve` says of itself, where no service answers for the rest."""

from __future__ import annotations

import pytest

from inference_service.commands.banner import Banner
from inference_service.commands.serve import build_environment, has_page
from qwenvl.addresses import Address


ADDRESSES = {"http_address": Address("0.0.0.0", 8000), "grpc_address": Address("127.0.0.1", 1)}
VARIABLE = "QWENVL_PLAYGROUND"


@pytest.mark.parametrize(
    ("flags", "variables", "expected"),
    [
        ({}, {}, True),
        ({}, {VARIABLE: ""}, True),
        ({}, {VARIABLE: "false"}, False),
        ({"playground": False}, {VARIABLE: "true"}, False),
        ({"playground": True}, {VARIABLE: "0"}, True),
    ],
)
def test_the_page_is_named_if_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
    flags: dict[str, bool],
    variables: dict[str, str],
    expected: bool,
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = has_page(build_environment(flags, ADDRESSES))
    lines = list(Banner(ADDRESSES, api_key_file=None, has_page=found).lines())
    assert ("page     http://127.0.0.1:8000/" in lines) is expected
