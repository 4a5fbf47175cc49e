from __future__ import annotations

import asyncio
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
import os
import random
import signal
import sys
import time

import pytest
import uvloop

from inference_service.engine_client import supervisor
from inference_service.engine_client.backlog import PIECE
from inference_service.engine_client.child import EngineProcess
from inference_service.engine_client.client import EngineClient
from inference_service.engine_client.interface import EngineStartError, EngineState
from inference_service.engine_protocol import wire
from inference_service.engine_protocol.messages import FinishReason
from inference_service.errors import (
    EngineUnavailableError,
    ImageTooLargeError,
    InternalError,
    RequestIdInUseError,
)
from tests.engine_client.engine_front import (
    BOUND_S,
    FAKE_ENGINE,
    collect,
    failure_of,
    fake_client,
    finishes_of,
    holds_pixels,
    is_running,
    mapped_pixels,
    open_descriptors,
    request_of,
    tokens_of,
    until,
)
from tests.engine_client.fake_engine import (
    CRASH,
    HUGE,
    LONG,
    REFUSED,
    SEGFAULT,
    SLOW,
    STALL,
    STEP_RAISES,
    fake_token,
)


ENDLESS = 10**9
GARBAGE = "import os, sys; os.write(int(sys.argv[2]), b'\\xff' * 9); import time; time.sleep(3600)"


@asynccontextmanager
async def running(client: EngineClient, *, takes_over: int = 0):
    """A started client; at the end no process and no descriptor is left, of those it takes over neither."""
    before = open_descriptors() - takes_over
    pids = []
    client.on_state_change(lambda _: pids.append(client.pid))
    try:
        async with asyncio.timeout(BOUND_S):
            await client.start()
        yield client
    finally:
        async with asyncio.timeout(BOUND_S):
            await client.close()
    assert client.state is EngineState.CLOSED
    assert client.pixel_bytes_in_flight == 0
    assert not [pid for pid in pids if pid is not None and is_running(pid)]
    assert open_descriptors() == before


@pytest.fixture
async def engine():
    # What the event loop opens at its first use is not the client's.
    await asyncio.get_running_loop().run_in_executor(None, int)
    async with running(fake_client()) as client:
        yield client


async def endless(engine, request_id, *, images=(), num_choices=1):
    """Starts a request that does not end, waits for its first output and returns the iterator."""
    request = request_of(
        request_id, SLOW, max_tokens=ENDLESS, images=images, num_choices=num_choices
    )
    outputs = engine.generate(request, [*images])
    await anext(outputs)
    return outputs


async def lose_to(engine, *prompt, request_id="poison"):
    """Sends a request that ends the engine, and waits until the engine is back."""
    with pytest.raises(EngineUnavailableError) as caught:
        await collect(engine, request_of(request_id, *prompt))
    assert caught.value.retry_after_s is not None
    assert caught.value.retry_after_s >= 1
    await until(lambda: engine.state is EngineState.READY)


# ---- answers ----


async def test_start_reports_what_was_loaded(engine):
    assert engine.state is EngineState.READY
    assert (engine.ready.device, engine.ready.parts[2]) == ("fake", ("language", 3))
    assert is_running(engine.pid)


async def test_the_first_process_may_run_already():
    process = EngineProcess.start_early(FAKE_ENGINE)
    assert process is not None
    pid = process.process.pid
    async with running(fake_client(first=process), takes_over=1) as client:
        assert client.pid == pid
        await lose_to(client, CRASH)
        assert client.pid != pid
    process.end()


async def test_a_first_process_that_has_ended_is_replaced():
    process = EngineProcess((sys.executable, "-c", "pass"))
    process.process.wait()
    async with running(fake_client(first=process), takes_over=1) as client:
        assert await collect(client, request_of("a", 1, max_tokens=1))


def test_a_process_that_nobody_takes_over_can_be_ended():
    before = open_descriptors()
    process = EngineProcess(FAKE_ENGINE)
    assert is_running(process.process.pid)
    process.end()
    process.end()
    assert not is_running(process.process.pid)
    assert open_descriptors() == before
    assert EngineProcess.start_early(["/no/such/program"]) is None
    assert open_descriptors() == before


async def test_text_is_answered(engine):
    request = request_of("a", 5, 6)
    outputs = await collect(engine, request)
    assert tokens_of(outputs) == [fake_token(request, b"", index) for index in range(5)]
    assert [o.finish_reason for o in outputs if o.finish_reason] == [FinishReason.LENGTH]
    assert outputs[0].num_cached_tokens == 0


async def test_images_reach_the_engine_in_order(engine):
    images = [b"abc", b"defghi"]
    request = request_of("a", images=images)
    outputs = await collect(engine, request, images)
    assert tokens_of(outputs) == [fake_token(request, b"abcdefghi", index) for index in range(5)]
    assert engine.pixel_bytes_in_flight == 0


async def test_many_at_once_are_answered_each(engine):
    requests = [request_of(f"s{index}", index + 1, max_tokens=20) for index in range(40)]
    answers = await asyncio.gather(*(collect(engine, request) for request in requests))
    for request, outputs in zip(requests, answers, strict=True):
        assert tokens_of(outputs) == [fake_token(request, b"", index) for index in range(20)]
    await until(lambda: engine.stats.steps > 0 and engine.stats.kv_pages_used == 0)


async def test_a_slow_consumer_gets_merged_outputs_and_misses_nothing(engine):
    request = request_of("slow", max_tokens=1000)
    outputs = engine.generate(request, [])
    first = await anext(outputs)
    await collect(engine, request_of("other", max_tokens=2000))  # ends after the slow one
    rest = [output async for output in outputs]
    assert len(rest) <= 1 + 1000 // PIECE
    assert tokens_of([first, *rest]) == [fake_token(request, b"", i) for i in range(1000)]


async def test_a_frame_larger_than_the_socket_takes_at_once_arrives(engine):
    request = request_of("long", *range(1, 400_000), max_tokens=2)
    assert len(tokens_of(await collect(engine, request))) == 2


async def test_an_output_too_long_fails_its_sequence_only(engine):
    good, bad = await asyncio.gather(
        collect(engine, request_of("good", SLOW, max_tokens=30)),
        collect(engine, request_of("bad", HUGE)),
    )
    assert bad[-1].finish_reason is FinishReason.ERROR
    assert failure_of(bad[-1]).reason == "INTERNAL"
    assert good[-1].finish_reason is FinishReason.LENGTH
    assert engine.restarts == {}


async def test_an_id_in_flight_is_refused(engine):
    async with aclosing(await endless(engine, "same")):
        with pytest.raises(RequestIdInUseError):
            await collect(engine, request_of("same"))


async def test_images_outside_of_the_pixels_are_refused(engine):
    with pytest.raises(ValueError, match="outside"):
        await collect(engine, request_of("a", images=[b"abcdef"]), [b"abc"])
    assert len(await collect(engine, request_of("a"))) > 0


# ---- abort and cancellation ----


async def test_abort_ends_the_iterator(engine):
    outputs = await endless(engine, "a")
    await engine.abort("a")
    finish = [output.finish_reason async for output in outputs][-1]
    assert finish is FinishReason.ABORTED
    await engine.abort("a")
    await until(lambda: engine.stats.kv_pages_used == 0)


async def test_closing_the_iterator_frees_the_sequence(engine):
    outputs = await endless(engine, "a", images=[b"abc"])
    assert engine.pixel_bytes_in_flight == 3
    await outputs.aclose()
    await until(lambda: engine.pixel_bytes_in_flight == 0)
    await until(lambda: engine.stats.running == 0 and engine.stats.kv_pages_used == 0)


async def test_a_second_try_under_the_same_id_is_served(engine):
    first = await endless(engine, "same")
    await first.aclose()
    assert len(tokens_of(await collect(engine, request_of("same", SLOW)))) == 5


async def cancel_after(engine, turns):
    """Cancels consumers, some of which wait for room, after so many turns of the event loop."""
    image = [b"abc" * 100]
    holder = await endless(engine, "holder", images=[b"abc" * 200])
    consumers = [
        asyncio.create_task(
            collect(engine, request_of(f"c{i}", SLOW, max_tokens=ENDLESS, images=image), image)
        )
        for i in range(4)
    ]
    for turn in range(turns):
        await asyncio.sleep(0.001 * (turn % 2))
    for consumer in consumers:
        consumer.cancel()
        await asyncio.sleep(0)
    results = await asyncio.gather(*consumers, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    await holder.aclose()
    await until(lambda: engine.pixel_bytes_in_flight == 0)


async def nothing_is_left(engine):
    assert tokens_of(await collect(engine, request_of("after")))
    await until(lambda: engine.stats.running == 0 and engine.stats.kv_pages_used == 0)
    assert engine.restarts == {}
    assert not holds_pixels(engine.pid)


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 4, 6, 9, 30, 200])
async def test_cancellation_at_any_moment_leaves_nothing(engine, turns):
    await cancel_after(engine, turns)
    await nothing_is_left(engine)


@pytest.mark.full
async def test_cancellation_at_200_random_moments_leaves_nothing(engine):
    moments = random.Random(7)
    for _ in range(50):  # with 4 consumers each
        await cancel_after(engine, int(moments.expovariate(1 / 15)))
    await nothing_is_left(engine)


# ---- choices ----


async def test_all_choices_come_in_one_stream_and_each_ends_once(engine):
    images = [b"abc", b"defghi"]
    request = request_of("a", images=images, num_choices=4)
    outputs = await collect(engine, request, images)
    for choice in range(4):
        expected = [fake_token(request, b"abcdefghi", index, choice) for index in range(5)]
        assert tokens_of(outputs, choice) == expected
    assert finishes_of(outputs) == [(choice, FinishReason.LENGTH) for choice in range(4)]


async def test_choices_share_one_memfd_and_one_share_of_the_budget(engine, monkeypatch):
    copies = []
    real = wire.write_pixels

    def write_pixels(pixels: list[bytes]) -> int:
        copies.append(1)
        return real(pixels)

    monkeypatch.setattr(wire, "write_pixels", write_pixels)
    images = [b"abc" * 200]  # 600 of the budget's 1000 bytes: a second copy would have to wait
    outputs = await endless(engine, "a", images=images, num_choices=4)
    await until(lambda: engine.stats.running == 4)
    assert engine.pixel_bytes_in_flight == 600
    assert copies == [1]
    assert mapped_pixels(engine.pid) == 1
    await outputs.aclose()
    await until(lambda: engine.pixel_bytes_in_flight == 0)


async def test_a_slow_consumer_gets_merged_outputs_of_each_choice(engine):
    request = request_of("slow", max_tokens=1000, num_choices=3)
    outputs = engine.generate(request, [])
    first = await anext(outputs)
    await collect(engine, request_of("other", max_tokens=2000))  # ends after the slow one
    rest = [output async for output in outputs]
    # Pieces of every choice, and two that were there before the wait.
    assert len(rest) <= 3 * (1 + 1000 // PIECE) + 2
    for choice in range(3):
        expected = [fake_token(request, b"", i, choice) for i in range(1000)]
        assert tokens_of([first, *rest], choice) == expected


async def test_one_choice_is_aborted_and_frees_its_pages_while_the_others_go_on(engine):
    images = [b"abc"]
    outputs = await endless(engine, "a", images=images, num_choices=3)
    await until(lambda: engine.stats.running == 3)
    await engine.abort("a", 1)
    await until(lambda: engine.stats.running == 2)
    assert engine.pixel_bytes_in_flight == 3
    await engine.abort("a", 1)
    async with asyncio.timeout(BOUND_S):
        async for output in outputs:
            if output.finish_reason is not None:
                break
    assert (output.choice_index, output.finish_reason) == (1, FinishReason.ABORTED)
    assert (await anext(outputs)).choice_index in (0, 2)
    await engine.abort("a")
    assert finishes_of([output async for output in outputs]) == [
        (0, FinishReason.ABORTED),
        (2, FinishReason.ABORTED),
    ]
    assert engine.pixel_bytes_in_flight == 0
    await until(lambda: engine.stats.kv_pages_used == 0)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
async def test_choices_end_once_in_whatever_order_they_are_aborted(engine, order):
    outputs = await endless(engine, "a", num_choices=3)
    for choice in order:
        await engine.abort("a", choice)
        await engine.abort("a", choice)
    async with asyncio.timeout(BOUND_S):
        ends = finishes_of([output async for output in outputs])
    assert ends == [(choice, FinishReason.ABORTED) for choice in range(3)]
    await until(lambda: engine.stats.running == 0)


async def test_a_choice_can_be_aborted_while_its_request_waits_for_room(engine):
    image = [b"abc" * 200]
    first = await endless(engine, "first", images=image)
    request = request_of("second", images=image, num_choices=2)
    second = asyncio.create_task(collect(engine, request, image))
    await asyncio.sleep(0)
    await engine.abort("second", 0)
    await first.aclose()
    async with asyncio.timeout(BOUND_S):
        outputs = await second
    assert finishes_of(outputs) == [(0, FinishReason.ABORTED), (1, FinishReason.LENGTH)]
    assert tokens_of(outputs, 0) == []
    assert len(tokens_of(outputs, 1)) == 5
    await until(lambda: engine.stats.running == 0)


async def test_closing_the_iterator_ends_all_choices(engine):
    outputs = await endless(engine, "a", images=[b"abc"], num_choices=4)
    await outputs.aclose()
    await until(lambda: engine.pixel_bytes_in_flight == 0)
    await until(lambda: engine.stats.running == 0 and engine.stats.kv_pages_used == 0)


async def test_a_refusal_ends_every_choice_with_its_figures(engine):
    outputs = await collect(engine, request_of("a", REFUSED, num_choices=2))
    assert finishes_of(outputs) == [(0, FinishReason.ERROR), (1, FinishReason.ERROR)]
    assert {(failure_of(o).reason, failure_of(o).metadata["prompt_tokens"]) for o in outputs} == {
        ("CONTEXT_LENGTH_EXCEEDED", "9")
    }


async def test_an_aborted_wait_for_an_abandoned_id_ends_every_choice(engine):
    outputs = await endless(engine, "a")
    os.kill(engine.pid, signal.SIGSTOP)
    await outputs.aclose()
    retry = asyncio.create_task(collect(engine, request_of("a", num_choices=2)))
    await asyncio.sleep(0)
    await engine.abort("a")
    os.kill(engine.pid, signal.SIGCONT)
    assert finishes_of(await retry) == [(0, FinishReason.ABORTED), (1, FinishReason.ABORTED)]


async def test_a_crash_ends_all_choices_and_counts_as_one_death(engine):
    for _ in range(2):
        with pytest.raises(EngineUnavailableError):
            await collect(engine, request_of("poison", 4, CRASH, num_choices=4))
        await until(lambda: engine.state is EngineState.READY)
    with pytest.raises(InternalError):
        await collect(engine, request_of("again", 4, CRASH))
    assert tokens_of(await collect(engine, request_of("another", 4, num_choices=2)), 1)


# ---- pixel budget (1000 bytes) ----


async def test_over_the_budget_waits_for_room(engine):
    image = [b"abc" * 200]
    first = await endless(engine, "first", images=image)
    second = asyncio.create_task(collect(engine, request_of("second", images=image), image))
    assert tokens_of(await collect(engine, request_of("text needs no room")))
    assert not second.done()
    assert engine.pixel_bytes_in_flight == 600
    await first.aclose()
    async with asyncio.timeout(BOUND_S):
        assert len(tokens_of(await second)) == 5


async def test_a_caller_with_long_answers_leaves_room_for_the_images_of_others(engine):
    image = b"abc" * 100

    def asked(caller, number, *prompt, **fields):
        request = replace(
            request_of(f"{caller}{number}", *prompt, images=[image], **fields), caller=caller
        )
        return engine.generate(request, [image])

    async def tokens(outputs):
        return tokens_of([output async for output in outputs])

    long = [asked("a", number, SLOW, max_tokens=ENDLESS) for number in range(2)]
    for outputs in long:
        await anext(outputs)
    waiting = asyncio.create_task(tokens(asked("a", 2)))
    await asyncio.sleep(0)
    async with asyncio.timeout(BOUND_S):
        assert len(await tokens(asked("b", 0))) == 5
        assert not waiting.done()
        for outputs in long:
            await outputs.aclose()
        assert len(await waiting) == 5


async def test_a_request_waiting_for_room_can_be_aborted(engine):
    image = [b"abc" * 200]
    first = await endless(engine, "first", images=image)
    second = asyncio.create_task(collect(engine, request_of("second", images=image), image))
    await asyncio.sleep(0)
    await engine.abort("second")
    assert [o.finish_reason for o in await second] == [FinishReason.ABORTED]
    await first.aclose()


async def test_more_than_the_whole_budget_is_refused_at_once(engine):
    image = [b"abc" * 334]
    with pytest.raises(ImageTooLargeError):
        await collect(engine, request_of("a", images=image), image)
    assert engine.pixel_bytes_in_flight == 0


# ---- death and return ----


@pytest.mark.parametrize("marker", [CRASH, SEGFAULT, STEP_RAISES])
async def test_a_crash_ends_the_others_and_the_engine_comes_back(engine, marker):
    states: list[EngineState] = []
    engine.on_state_change(states.append)
    pid = engine.pid
    other = await endless(engine, "other", images=[b"abc"])
    await lose_to(engine, 1, marker)
    with pytest.raises(EngineUnavailableError):
        _ = [output async for output in other]
    assert states == [EngineState.RESTARTING, EngineState.READY]
    assert engine.pid != pid
    assert engine.restarts == {"ended": 1}
    assert engine.pixel_bytes_in_flight == 0
    assert tokens_of(await collect(engine, request_of("other")))


async def test_kill_9_under_load(engine):
    pid = engine.pid
    image = [b"abc" * 100]
    consumers = [
        asyncio.create_task(
            collect(engine, request_of(f"c{i}", SLOW, max_tokens=ENDLESS, images=image), image)
        )
        for i in range(8)
    ]
    await until(
        lambda: engine.stats.running == 2
    )  # the others wait for room, of which a part is spare
    assert holds_pixels(pid)
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(BOUND_S):
        results = await asyncio.gather(*consumers, return_exceptions=True)
    errors = [result for result in results if isinstance(result, EngineUnavailableError)]
    assert len(errors) == len(results)
    assert sum(error.repeatable for error in errors) == 6, "what no engine has seen"
    words = {True: "is starting", False: "was lost while it computed the answer"}
    assert all(words[error.repeatable] in str(error) for error in errors)
    await until(lambda: engine.state is EngineState.READY)
    assert not is_running(pid)
    assert tokens_of(await collect(engine, request_of("after", images=image), image))


async def test_requests_are_refused_while_the_engine_is_away(engine):
    refused = asyncio.get_running_loop().create_future()

    def try_to_generate(state):
        if state is EngineState.RESTARTING:
            refused.set_result(asyncio.create_task(collect(engine, request_of("a"))))

    engine.on_state_change(try_to_generate)
    os.kill(engine.pid, signal.SIGKILL)
    async with asyncio.timeout(BOUND_S):
        attempt = await refused
    with pytest.raises(EngineUnavailableError) as caught:
        await attempt
    assert caught.value.retry_after_s is not None
    assert caught.value.retry_after_s >= 1
    assert caught.value.repeatable
    assert engine.ready is not None


async def test_a_stalled_engine_is_killed():
    async with running(fake_client(stall_timeout_s=1.0)) as engine:
        pid = engine.pid
        await lose_to(engine, STALL)
        assert not is_running(pid)
        assert engine.restarts == {"stalled": 1}


async def test_a_long_step_that_makes_progress_is_no_stall():
    async with running(fake_client(stall_timeout_s=2.5)) as engine:
        pid = engine.pid
        assert tokens_of(await collect(engine, request_of("a", LONG, max_tokens=1)))
        assert engine.pid == pid


async def test_a_stopped_engine_is_silent_within_seconds_and_may_come_back(engine):
    pid = engine.pid
    os.kill(pid, signal.SIGSTOP)
    begin = time.monotonic()
    await until(lambda: engine.state is EngineState.SILENT)
    assert time.monotonic() - begin < 15
    with pytest.raises(EngineUnavailableError):
        await collect(engine, request_of("a"))
    os.kill(pid, signal.SIGCONT)
    await until(lambda: engine.state is EngineState.READY)
    assert engine.pid == pid
    assert tokens_of(await collect(engine, request_of("a")))


async def test_sigterm_and_sigint_are_not_for_the_engine(engine):
    pid = engine.pid
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGINT)
    assert tokens_of(await collect(engine, request_of("a")))
    assert engine.pid == pid


async def test_an_abort_reaches_the_request_that_waits_for_an_abandoned_id(engine):
    """The engine is stopped, so that the first try cannot end before the abort of the second comes."""
    outputs = await endless(engine, "a")
    os.kill(engine.pid, signal.SIGSTOP)
    await outputs.aclose()
    retry = asyncio.create_task(collect(engine, request_of("a")))
    await asyncio.sleep(0)
    await engine.abort("a")
    os.kill(engine.pid, signal.SIGCONT)
    [output] = await retry
    assert (output.finish_reason, output.token_ids) == (FinishReason.ABORTED, ())
    assert tokens_of(await collect(engine, request_of("a")))


async def test_an_abort_reaches_it_in_the_turn_in_which_the_id_is_free(engine, monkeypatch):
    outputs = await endless(engine, "a")
    await outputs.aclose()
    retry = asyncio.create_task(collect(engine, request_of("a")))
    forget = engine._forget

    def forget_and_abort(flight, **options):
        forget(flight, **options)
        monkeypatch.setattr(engine, "_forget", forget)
        with pytest.raises(StopIteration):  # it has ended, without a turn of the loop
            engine.abort("a").send(None)

    monkeypatch.setattr(engine, "_forget", forget_and_abort)
    async with asyncio.timeout(BOUND_S):
        [output] = await retry
    assert (output.finish_reason, output.token_ids) == (FinishReason.ABORTED, ())
    assert tokens_of(await collect(engine, request_of("a")))


async def test_a_request_running_at_two_crashes_is_refused(engine):
    for _ in range(2):
        await lose_to(engine, 4, CRASH)
    with pytest.raises(InternalError):
        await collect(engine, request_of("again", 4, CRASH))
    assert engine.state is EngineState.READY
    assert tokens_of(await collect(engine, request_of("another", 4)))


async def test_a_request_that_finishes_is_no_longer_suspected(engine):
    for poison in (4, 5):
        bystander = await endless(engine, "bystander")
        await lose_to(engine, poison, CRASH)
        with pytest.raises(EngineUnavailableError):
            await anext(bystander)
        assert tokens_of(await collect(engine, request_of("bystander", SLOW)))


async def lose_bystander(engine, poison):
    """Lets the engine die while the bystander is in flight."""
    bystander = await endless(engine, "bystander")
    await lose_to(engine, poison, CRASH)
    with pytest.raises(EngineUnavailableError):
        await anext(bystander)


async def test_an_answer_that_ends_with_a_stop_string_takes_the_suspicion_away(engine):
    """The consumer has its answer and leaves, which aborts the rest in the engine."""
    for poison in (4, 5):
        await lose_bystander(engine, poison)
        answered = await endless(engine, "bystander")
        await answered.aclose()
        assert tokens_of(await collect(engine, request_of("bystander", 6))), "the abort is over"
    assert tokens_of(await collect(engine, request_of("bystander", SLOW)))


async def test_a_request_cancelled_without_an_answer_stays_suspicious(engine):
    await lose_bystander(engine, 4)
    os.kill(engine.pid, signal.SIGSTOP)
    cancelled = asyncio.create_task(collect(engine, request_of("bystander", SLOW)))
    await asyncio.sleep(0.05)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    os.kill(engine.pid, signal.SIGCONT)
    assert tokens_of(await collect(engine, request_of("bystander", 6))), "the abort is over"
    await lose_bystander(engine, 5)
    with pytest.raises(InternalError):
        await collect(engine, request_of("bystander", SLOW))


# ---- starting and closing ----


async def test_a_model_that_cannot_be_loaded_fails_fast_with_the_reason(capfd):
    client = fake_client("refused")
    with pytest.raises(EngineStartError, match="ValueError: no model here"):
        await client.start()
    assert (client.state, client.restarts) == (EngineState.FAILED, {})
    said = capfd.readouterr().err
    assert "the model cannot be loaded" in said
    assert "Traceback" not in said
    with pytest.raises(EngineUnavailableError) as caught:
        await collect(client, request_of("a"))
    assert caught.value.retry_after_s is None
    await client.close()


@pytest.mark.parametrize(
    "options",
    [
        {"model_dir": "crash"},
        {"command": ["/nowhere"]},
        {"command": [sys.executable, "-c", GARBAGE]},
    ],
    ids=["crash", "no such program", "garbage"],
)
async def test_an_engine_that_never_comes_up_fails_in_the_end(options):
    before = open_descriptors()
    client = fake_client(**options)
    async with asyncio.timeout(BOUND_S):
        with pytest.raises(EngineStartError):
            await client.start()
    assert client.state is EngineState.FAILED
    assert client.restarts == {"not_loaded": supervisor.MAX_FAILED_LOADS - 1}
    assert client.pid is None
    await client.close()
    assert open_descriptors() == before


@pytest.mark.parametrize("kind", ["graphs", "lost"])
async def test_an_engine_that_dies_of_its_graphs_starts_without_them(kind, capfd, caplog):
    """By a signal, or because it finds the device unusable."""
    client = fake_client(model_dir=kind)
    async with asyncio.timeout(BOUND_S):
        await client.start()
    assert client.state is EngineState.READY
    assert client.restarts == {"not_loaded": 1}
    assert caplog.text.count("use no CUDA graphs") == 1
    assert ("the device is lost" in capfd.readouterr().err) == (kind == "lost")
    await client.close()


async def test_an_engine_that_does_not_come_back_fails_in_the_end(tmp_path):
    client = fake_client(f"once:{tmp_path / 'loaded'}")
    await client.start()
    assert client.pid is not None
    os.kill(client.pid, signal.SIGKILL)
    await until(lambda: client.state is EngineState.FAILED)
    await client.close()


async def test_a_load_that_takes_too_long_is_ended(monkeypatch):
    monkeypatch.setattr(supervisor, "MAX_FAILED_LOADS", 1)
    client = fake_client("slow", start_timeout_s=0.5)
    async with asyncio.timeout(BOUND_S):
        with pytest.raises(EngineStartError, match="not loaded within"):
            await client.start()
    await client.close()


async def test_close_while_loading():
    client = fake_client("slow")
    starting = asyncio.create_task(client.start())
    await until(lambda: client.pid is not None)
    pid = client.pid
    assert pid is not None
    await client.close()
    with pytest.raises(EngineStartError):
        await starting
    assert not is_running(pid)


async def test_close_ends_what_is_running(engine):
    pid = engine.pid
    outputs = await endless(engine, "a")
    await asyncio.gather(engine.close(), engine.close())
    with pytest.raises(EngineUnavailableError):
        _ = [output async for output in outputs]
    assert not is_running(pid)


async def test_close_kills_an_engine_that_does_not_leave(monkeypatch):
    monkeypatch.setattr(supervisor, "CLOSE_GRACE_S", 0.1)
    async with running(fake_client()) as engine:
        os.kill(engine.pid, signal.SIGSTOP)


def test_the_same_under_uvloop():
    async def scenario():
        async with running(fake_client()) as engine:
            image = [b"abc" * 300]
            outputs = await endless(engine, "a", images=image)
            await lose_to(engine, CRASH)
            with pytest.raises(EngineUnavailableError):
                _ = [output async for output in outputs]
            assert tokens_of(await collect(engine, request_of("b", images=image), image))
            long = request_of("long", *range(1, 400_000), max_tokens=2)
            assert len(tokens_of(await collect(engine, long))) == 2

    async def warm_then_play():
        await asyncio.get_running_loop().run_in_executor(None, int)
        await scenario()

    uvloop.run(warm_then_play())
