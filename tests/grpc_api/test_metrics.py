"""How requests are counted that the service refuses or gives up, and what its state is meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from inference_service.engine_protocol.messages import EngineFailure
from inference_service.errors import ContextLengthError, InternalError
from inference_service.measures import ChoiceTimings
from inference_service.metrics import families
from inference_service.metrics.requests import ERROR_KINDS, RequestRecord
from qwenvl.errors import BY_REASON
from qwenvl.inference.v1 import sampling_pb2 as sampling_pb
from tests.grpc_api.asking import read_event, spec_of
from tests.grpc_api.conftest import OpenService, Service
from tests.support.scrape import Scrape, scrape


OUTCOMES = ("qwenvl_requests_rejected_total", "qwenvl_requests_finished_total")


def test_every_reason_of_an_error_is_counted_somewhere() -> None:
    assert set(ERROR_KINDS) == set(BY_REASON)


async def scraped(service: Service) -> Scrape:
    return await asyncio.to_thread(scrape, service.target("metrics"))


async def outcome(service: Service, before: Scrape) -> dict[str, float]:
    """The counters of outcomes that have grown, by the value of their label, when one has."""
    for _ in range(200):
        after = await scraped(service)
        grown = {
            value: after.series[name, labels] - before.series.get((name, labels), 0)
            for name, labels in after.series
            if name in OUTCOMES
            for key, value in labels
            if key != "model_name"
            if after.series[name, labels] != before.series.get((name, labels), 0)
        }
        if grown:
            return grown
        await asyncio.sleep(0.02)
    raise AssertionError("nothing was counted")


async def ends(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    return error.value.code()


async def open_metered(open_service: OpenService, **changes: Any) -> Service:
    return await open_service(metrics_address="127.0.0.1:0", **changes)


async def test_an_invalid_request(open_service: OpenService) -> None:
    service = await open_metered(open_service)
    before = await scraped(service)
    await ends(service.create(spec_of("hello", sampling={"temperature": -1})))
    assert await outcome(service, before) == {"invalid": 1}


async def test_a_form_that_cannot_be_used(open_service: OpenService) -> None:
    service = await open_metered(open_service)
    before = await scraped(service)
    await ends(service.create(spec_of("hello", constraint=sampling_pb.Constraint(regex="(?=a)b"))))
    assert await outcome(service, before) == {"invalid": 1}
    after = await scraped(service)
    for name, labels in (("rejected_total", {"kind": "regex"}), ("compile_seconds_count", {})):
        full = f"qwenvl_constraint_{name}"
        assert after.value(full, **labels) == before.value(full, **labels) + 1


async def test_a_caller_without_a_key(open_service: OpenService, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("key-one\n")
    service = await open_metered(open_service, api_key_file=str(tmp_path / "keys"))
    before = await scraped(service)  # which needs no key
    await ends(service.create(spec_of("hello")))
    assert await outcome(service, before) == {"unauthenticated": 1}
    assert "key-one" not in (await scraped(service)).text


async def test_a_full_queue(open_service: OpenService) -> None:
    service = await open_metered(open_service, max_queue=1)
    service.engine.hold_at = 1
    stream = service.stream(spec_of("hello"))
    await read_event(stream)
    before = await scraped(service)
    assert before.value("qwenvl_requests_in_flight") == 1
    await ends(service.create(spec_of("hello")))
    assert await outcome(service, before) == {"queue_full": 1}
    before = await scraped(service)
    stream.cancel()
    assert await outcome(service, before) == {"cancelled": 1}


async def test_a_service_that_drains(open_service: OpenService) -> None:
    service = await open_metered(open_service)
    service.engine.hold_at = 1
    stream = service.stream(spec_of("hello"))
    await read_event(stream)
    stopping = asyncio.create_task(service.front.stop(20.0))
    await asyncio.sleep(0.05)
    before = await scraped(service)
    assert before.value("qwenvl_draining") == 1
    assert before.value("qwenvl_ready") == 0
    await ends(service.create(spec_of("hello")))
    assert await outcome(service, before) == {"draining": 1}
    service.engine.resume.set()
    await stopping


@pytest.mark.parametrize(
    ("error", "counted"), [(ContextLengthError, "too_large"), (InternalError, "error")]
)
async def test_an_engine_that_refuses(open_service: OpenService, error: Any, counted: str) -> None:
    service = await open_metered(open_service)
    service.engine.fails_with = EngineFailure.of(error("It does not fit."))
    before = await scraped(service)
    await ends(service.create(spec_of("hello")))
    assert await outcome(service, before) == {counted: 1}


async def test_a_request_that_is_still_loading(open_service: OpenService) -> None:
    service = await open_metered(open_service, ready=False)
    before = await scraped(service)
    assert before.value("qwenvl_ready") == before.value("qwenvl_kv_cache_usage_ratio") == 0
    await ends(service.create(spec_of("hello")))
    assert await outcome(service, before) == {"unavailable": 1}


async def test_a_port_in_use_is_told(open_service: OpenService) -> None:
    service = await open_metered(open_service)
    address = service.target("metrics")
    with pytest.raises(OSError, match=rf"--metrics-address={address} .*: the port is in use"):
        await open_service(metrics_address=address)


def sum_and_count(family: Any) -> tuple[float, float]:
    samples = {s.name.rpartition("_")[2]: s.value for s in next(iter(family.collect())).samples}
    return samples["sum"], samples["count"]


def test_the_queue_is_that_of_the_service_and_that_of_the_engine() -> None:
    queue, prefill = sum_and_count(families.QUEUE), sum_and_count(families.PREFILL)
    record = RequestRecord("chat")
    record._waited_s = 2.0
    with record.waiting("batch"):
        pass
    for choice in (0, 1):  # several answers of one request wait once
        record.take(choice, 1, ChoiceTimings(queue_s=0.5, prefill_s=0.25))
    seconds, count = sum_and_count(families.QUEUE)
    assert seconds - queue[0] == pytest.approx(2.5, abs=0.1)
    assert count - queue[1] == 1
    assert sum_and_count(families.PREFILL)[0] - prefill[0] == pytest.approx(0.25)


def test_tokens_that_come_together_share_their_time() -> None:
    before = sum_and_count(families.INTER_TOKEN)
    record = RequestRecord("chat")
    for count in (1, 3, 2):
        record.take(0, count, None)
    assert sum_and_count(families.INTER_TOKEN)[1] - before[1] == 5
