"""The ports of `qwenvl serve`."""

from __future__ import annotations

import pytest

from inference_service.commands.ports import PortProblem, claimed, reserve
from qwenvl.addresses import Address


def test_two_programs_that_start_together_do_not_share_ports() -> None:
    local = Address("127.0.0.1", 0)
    addresses = reserve({"http_address": local, "grpc_address": local})
    with claimed(addresses):
        for name, address in addresses.items():
            words = f"another `qwenvl serve` is starting on port {address.port}"
            with pytest.raises(PortProblem, match=words) as told, claimed({name: address}):
                pass
            assert (told.value.name, told.value.address) == (name, address)
        other = Address("127.0.0.2", addresses["http_address"].port)
        with claimed({"http_address": other}):
            pass
    with claimed(addresses):
        pass
