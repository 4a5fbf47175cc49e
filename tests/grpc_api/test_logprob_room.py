"""Log probabilities that one message cannot hold end a unary call at once, with an error that says so."""

from __future__ import annotations

import grpc
import pytest

from inference_service.domain import LogprobEntry, TokenLogprob
from inference_service.grpc_api import logprob_room, responses
from inference_service.grpc_api.logprob_room import LogprobRoom
from qwenvl.inference.v1 import sampling_pb2 as sampling_pb
from tests.grpc_api.asking import read_rest, refusal, spec_of, until
from tests.grpc_api.conftest import Service


LIMIT = 20_000


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages hold less than they do."""
    monkeypatch.setattr(responses, "LogprobRoom", lambda request: LogprobRoom(request, LIMIT))


def logprobs(**options: int) -> sampling_pb.LogprobOptions:
    return sampling_pb.LogprobOptions(**options)


async def test_a_prompt_that_cannot_fit_is_refused_before_it_is_computed(
    service: Service, small: None
) -> None:
    service.engine.hold_at = 1
    got = await refusal(service.create(spec_of("x" * 300, logprobs=logprobs(prompt_logprobs=20))))
    assert (got.info.reason, got.code) == (
        "INVALID_ARGUMENT",
        grpc.StatusCode.INVALID_ARGUMENT,
    )
    assert got.field == "spec.logprobs.prompt_logprobs"
    assert got.info.metadata["max_bytes"] == str(LIMIT)
    assert "prompt_logprobs is 20" in got.message
    await until(lambda: not service.engine.live)


async def test_an_answer_that_grows_too_long_ends(service: Service, small: None) -> None:
    spec = spec_of("x" * 900, n=2, logprobs=logprobs(top_logprobs=2), sampling={"max_tokens": 900})
    got = await refusal(service.create(spec))
    assert (got.info.reason, got.field) == ("INVALID_ARGUMENT", "spec.logprobs.top_logprobs")
    assert f"{LIMIT} bytes" in got.message
    await until(lambda: not service.engine.live)


async def test_what_fits_and_what_streams_goes_on(service: Service, small: None) -> None:
    spec = spec_of("x" * 40, logprobs=logprobs(top_logprobs=2, prompt_logprobs=2))
    assert (await service.create(spec)).started.prompt_logprobs
    spec = spec_of("x" * 900, logprobs=logprobs(top_logprobs=2, prompt_logprobs=20))
    events = await read_rest(service.stream(spec))
    entries = sum(len(event.delta.prompt_logprobs) for event in events)
    assert entries > 900


async def test_no_prompt_that_fits_is_refused() -> None:
    """The bound for a prompt holds for entries without any text."""
    entry = LogprobEntry(
        chosen=TokenLogprob(token_id=128, text="", data=b"", logprob=-1.0, rank=1),
        top=(TokenLogprob(token_id=128, text="", data=b"", logprob=-1.0, rank=1),) * 20,
    )
    size = responses._logprob_entry(entry).ByteSize()
    assert size >= 21 * logprob_room._LEAST_BYTES
