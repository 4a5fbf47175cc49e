"""What the front may rely on, checked against the fake core and the real one."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import pytest_asyncio

from inference_service.engine.core import EngineCore
from inference_service.engine_client.client import EngineClient
from inference_service.engine_protocol import wire
from inference_service.engine_protocol.messages import (
    EngineConfig,
    EngineRequest,
    FinishReason,
    SamplingParams,
)
from tests.engine_client.engine_front import (
    BOUND_S,
    FAKE_ENGINE,
    collect,
    failure_of,
    finishes_of,
    holds_pixels,
    mapped_pixels,
    tokens_of,
    until,
)
from tests.engine_client.fake_engine import REFUSED, FakeCore
from tests.engine_client.loop_bench import LoopBench
from tests.support import tiny_qwen_vl as tiny


pytestmark = pytest.mark.asyncio(loop_scope="module")
MOST = 300


@pytest.fixture(scope="module", params=["fake", "real"])
def config(request, tmp_path_factory):
    model_dir = "fake"
    if request.param == "real":
        model_dir = str(tiny.build_checkpoint(tmp_path_factory.mktemp("tiny"), seed=3))
    return EngineConfig(model_dir=model_dir, device="cpu", num_kv_pages=256, cpu_threads=1)


@pytest.fixture(scope="module")
def bench(config):
    return LoopBench(FakeCore(config) if config.model_dir == "fake" else EngineCore(config))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(config):
    client = EngineClient(
        config,
        start_timeout_s=BOUND_S,
        stall_timeout_s=BOUND_S,
        pixel_budget_bytes=10**6,
        command=FAKE_ENGINE if config.model_dir == "fake" else None,
    )
    await client.start()
    yield client
    await client.close()


def greedy(request_id, layout=(12,), *, max_tokens=6, seed=0):
    ids, images = tiny.prompt(layout, seed)
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    return EngineRequest(
        request_id=request_id, prompt_token_ids=tuple(ids), images=images, sampling=sampling
    )


async def idle(engine):
    await until(lambda: engine.stats.running == engine.stats.waiting == 0)
    await until(lambda: engine.stats.kv_pages_used == 0)


# ---- the loop, turn by turn ----


async def test_an_aborted_sequence_says_nothing_after_the_turn_of_its_abort(bench):
    bench.turn(wire.Add(greedy("a", max_tokens=MOST)), wire.Add(greedy("b", max_tokens=MOST)))
    assert {o.request_id for o in bench.turn()} == {"a", "b"}
    last = [o for o in bench.turn(wire.Abort("a")) if o.request_id == "a"]
    assert [o.finish_reason for o in last] == [FinishReason.ABORTED]
    assert {o.request_id for o in bench.turn()} == {"b"}
    bench.turn(wire.Abort("b"))
    assert not bench.core.has_work
    assert bench.core.stats.kv_pages_used == 0


async def test_every_sequence_ends_once_whenever_it_is_aborted(bench):
    ends = []
    for turn in range(12):
        commands: list[wire.Command] = [wire.Add(greedy(f"s{turn}", seed=turn))]
        commands += [wire.Abort(f"s{turn - age}") for age in (1, 3, 5) if turn % 2 and turn >= age]
        ends += [o.request_id for o in bench.turn(*commands) if o.finish_reason]
    while bench.core.has_work:
        ends += [o.request_id for o in bench.turn() if o.finish_reason]
    assert sorted(ends) == sorted(f"s{turn}" for turn in range(12))
    assert bench.core.stats.kv_pages_used == 0


# ---- through the client ----


async def test_the_engine_describes_itself(engine):
    assert engine.ready.kv_page_tokens == 16
    assert [name for name, _ in engine.ready.parts] == ["vision", "adapter", "language"]


async def test_outputs_come_in_order_and_end_once(engine):
    outputs = await collect(engine, greedy("a"))
    assert len(tokens_of(outputs)) == 6
    assert [o.finish_reason for o in outputs[:-1]] == [None] * (len(outputs) - 1)
    assert outputs[-1].finish_reason is FinishReason.LENGTH
    assert [o.num_cached_tokens is not None for o in outputs] == [True] + [False] * (
        len(outputs) - 1
    )
    await idle(engine)


async def test_the_answer_depends_on_the_images_only_through_their_pixels(engine):
    image, other = tiny.image(2, 3, seed=1), tiny.image(2, 3, seed=2)
    answers = []
    for index, pixels in enumerate((image, other, image)):
        request = greedy(f"p{index}", (4, pixels, 5))
        answers.append(tokens_of(await collect(engine, request, [pixels.tobytes()])))
    assert answers[0] == answers[2] != answers[1]
    assert engine.pixel_bytes_in_flight == 0
    await idle(engine)
    assert not holds_pixels(engine.pid)


async def test_requests_at_once_get_the_answers_that_they_get_alone(engine):
    requests = [greedy(f"m{index}", (5 + index,), seed=index) for index in range(8)]
    alone = [tokens_of(await collect(engine, request)) for request in requests]
    together = await asyncio.gather(*(collect(engine, request) for request in requests))
    assert [tokens_of(outputs) for outputs in together] == alone
    await idle(engine)


async def test_choices_of_a_request_share_its_pixels(engine):
    image = tiny.image(2, 3, seed=1)
    request = replace(greedy("n", (4, image, 5), max_tokens=MOST), num_choices=4)
    stream = engine.generate(request, [image.tobytes()])
    outputs = [await anext(stream)]
    assert engine.pixel_bytes_in_flight <= len(image.tobytes())
    assert mapped_pixels(engine.pid) <= 1
    outputs += [output async for output in stream]
    assert finishes_of(outputs) == [(choice, FinishReason.LENGTH) for choice in range(4)]
    assert [len(tokens_of(outputs, choice)) for choice in range(4)] == [MOST] * 4
    await idle(engine)
    assert not holds_pixels(engine.pid)
    assert engine.pixel_bytes_in_flight == 0


async def test_greedy_choices_are_what_one_request_answers(engine, config):
    request = greedy("one", (4, tiny.image(2, 3, seed=1), 5))
    pixels = [tiny.image(2, 3, seed=1).tobytes()]
    alone = tokens_of(await collect(engine, request, pixels))
    outputs = await collect(engine, replace(request, num_choices=3), pixels)
    assert tokens_of(outputs, 0) == alone
    if config.model_dir != "fake":  # the fake core has another answer for every choice
        assert tokens_of(outputs, 1) == tokens_of(outputs, 2) == alone
    await idle(engine)


async def test_a_choice_can_be_aborted_alone(engine):
    request = replace(greedy("n", max_tokens=MOST), num_choices=3)
    stream = engine.generate(request, [])
    outputs = [await anext(stream)]
    await engine.abort("n", 1)
    outputs += [output async for output in stream]
    ends = dict(finishes_of(outputs))
    assert ends[1] in (FinishReason.ABORTED, FinishReason.LENGTH)
    assert (ends[0], ends[2]) == (FinishReason.LENGTH, FinishReason.LENGTH)
    await idle(engine)


async def test_abort_and_close_free_the_pages(engine):
    aborted = engine.generate(greedy("aborted", max_tokens=MOST), [])
    closed = engine.generate(greedy("closed", max_tokens=MOST), [])
    await anext(aborted)
    await anext(closed)
    await engine.abort("aborted")
    await closed.aclose()
    finish = [output.finish_reason async for output in aborted][-1]
    # The fake core is so fast that it may have finished.
    assert finish in (FinishReason.ABORTED, FinishReason.LENGTH)
    await idle(engine)


async def test_a_request_that_does_not_fit_is_refused_with_its_reason(engine, config):
    request = greedy("long", (5000,))
    if config.model_dir == "fake":
        request = replace(request, prompt_token_ids=(REFUSED,))
    (output,) = await collect(engine, request)
    failure = failure_of(output)
    assert (output.finish_reason, failure.reason) == (
        FinishReason.ERROR,
        "CONTEXT_LENGTH_EXCEEDED",
    )
    assert int(failure.metadata["prompt_tokens"]) > 0
    await idle(engine)
