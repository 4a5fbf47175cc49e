"""Lists of a request are counted before anything else is done with them."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from inference_service.errors import InvalidArgumentError
from inference_service.grpc_api import request_options, requests
from inference_service.settings import ServiceSettings
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb


class Untouchable:
    """Many numbers that nobody may look at."""

    def __len__(self) -> int:
        return 2**25

    def __iter__(self) -> Iterator[Any]:
        pytest.fail("it was copied")


def test_stop_tokens_and_texts() -> None:
    with pytest.raises(InvalidArgumentError, match="33554432 entries"):
        request_options._stop_tokens(Untouchable())  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="33554432 entries"):
        request_options._strings(Untouchable(), "spec.x", maximum=1, max_bytes=1)  # type: ignore[arg-type]


def test_a_prompt() -> None:
    spec: Any = SimpleNamespace(
        WhichOneof=lambda _: "token_ids", token_ids=SimpleNamespace(ids=Untouchable())
    )
    with pytest.raises(InvalidArgumentError, match="token_ids has 33554432 entries"):
        requests.text_completion_request(spec, "m", "r", ServiceSettings())


def test_allowed_tokens() -> None:
    spec = completion_pb.CompletionSpec(text="a")
    spec.sampling.allowed_token_ids.extend([1] * (2**18 + 1))
    with pytest.raises(InvalidArgumentError, match="allowed_token_ids has 262145 entries"):
        requests.text_completion_request(spec, "m", "r", ServiceSettings())
