from __future__ import annotations

from itertools import permutations
from types import SimpleNamespace

import pytest

from inference_service.engine.runner import ModelRunner
from inference_service.engine_protocol import wire
from inference_service.engine_protocol.messages import (
    ChoiceOutput,
    EngineConfig,
    EngineFailure,
    FinishReason,
    PromptSource,
)
from tests.engine_client.engine_front import finishes_of, request_of
from tests.engine_client.fake_engine import (
    ADD_RAISES,
    HUGE,
    REFUSED,
    STEP_RAISES,
    FakeCore,
    fake_token,
)
from tests.engine_client.loop_bench import LoopBench


BROKEN = 9


@pytest.fixture
def bench():
    return LoopBench(FakeCore(EngineConfig(model_dir="fake")))


def add(request_id, *prompt, max_tokens=5, num_choices=1):
    return wire.Add(request_of(request_id, *prompt, max_tokens=max_tokens, num_choices=num_choices))


def test_a_sequence_starts_in_the_turn_it_comes(bench):
    request = request_of("a")
    (output,) = bench.turn(wire.Add(request))
    assert output.token_ids == (fake_token(request, b"", 0),)


def test_an_abort_applies_before_the_next_step(bench):
    bench.turn(add("a", max_tokens=100), add("b", max_tokens=100))
    outputs = bench.turn(wire.Abort("a"))
    assert [(o.request_id, o.finish_reason) for o in outputs] == [
        ("a", FinishReason.ABORTED),
        ("b", None),
    ]
    assert {o.request_id for o in bench.turn()} == {"b"}
    bench.turn(wire.Abort("b"))
    assert bench.core.stats.kv_pages_used == 0


def test_every_sequence_ends_exactly_once(bench):
    outputs = bench.turn(add("a", max_tokens=1), wire.Abort("a"), wire.Abort("a"))
    outputs += bench.turn(wire.Abort("a"), wire.Abort("never heard of"))
    assert [o.finish_reason for o in outputs] == [FinishReason.ABORTED]


def test_an_abort_that_comes_late_does_not_hit_the_next_of_that_name(bench):
    bench.turn(add("a", max_tokens=1))
    (output,) = bench.turn(wire.Abort("a"), add("a", max_tokens=1))
    assert output.finish_reason is FinishReason.LENGTH


def test_what_a_core_says_after_the_end_is_dropped(bench):
    bench.turn(add("a"))
    bench.core.step = lambda: [
        ChoiceOutput(request_id="a", choice_index=0, finish_reason=FinishReason.EOS),
        ChoiceOutput(request_id="a", choice_index=0, token_ids=(1,)),
        ChoiceOutput(request_id="a", choice_index=1, token_ids=(1,)),
        ChoiceOutput(request_id="nobody", choice_index=0, token_ids=(1,)),
    ]
    assert [o.finish_reason for o in bench.turn()] == [FinishReason.EOS]


@pytest.mark.parametrize(
    ("marker", "reason"), [(REFUSED, "CONTEXT_LENGTH_EXCEEDED"), (ADD_RAISES, "INTERNAL")]
)
def test_a_request_that_cannot_be_added_fails_alone(bench, marker, reason):
    outputs = bench.turn(add("good", max_tokens=1), add("bad", marker))
    assert {o.request_id: (o.finish_reason, o.failure and o.failure.reason) for o in outputs} == {
        "good": (FinishReason.LENGTH, None),
        "bad": (FinishReason.ERROR, reason),
    }
    assert bench.core.stats.kv_pages_used == 0


def test_a_request_that_breaks_the_runner_fails_alone_in_the_real_core(make_core, monkeypatch):
    real = ModelRunner.add

    def add_or_break(self, sequences, pixels):
        if BROKEN in sequences[0].request.prompt_token_ids:
            raise RuntimeError("a defect")
        real(self, sequences, pixels)

    monkeypatch.setattr(ModelRunner, "add", add_or_break)
    bench = LoopBench(make_core())
    outputs = bench.turn(add("good", 5, max_tokens=3))
    outputs += bench.turn(add("bad", BROKEN, num_choices=2), add("late", 6, max_tokens=3))
    while bench.core.has_work:
        outputs += bench.turn()
    ends = [(o.request_id, o.choice_index, o.finish_reason) for o in outputs if o.finish_reason]
    assert sorted(ends, key=lambda end: end[:2]) == [
        ("bad", 0, FinishReason.ERROR),
        ("bad", 1, FinishReason.ERROR),
        ("good", 0, FinishReason.LENGTH),
        ("late", 0, FinishReason.LENGTH),
    ]
    assert bench.core.stats.kv_pages_used == bench.core.stats.waiting == 0
    (output,) = bench.turn(add("bad", 7, max_tokens=1))
    assert output.finish_reason is FinishReason.LENGTH, "the id is free again"


def test_a_refusal_crosses_with_its_figures_for_every_choice(bench):
    outputs = bench.turn(add("bad", REFUSED, num_choices=3))
    failure = EngineFailure(
        reason="CONTEXT_LENGTH_EXCEEDED", message="too long", metadata={"prompt_tokens": "9"}
    )
    assert [(o.choice_index, o.finish_reason, o.failure) for o in outputs] == [
        (choice, FinishReason.ERROR, failure) for choice in range(3)
    ]
    assert bench.turn(wire.Abort("bad")) == []


def test_one_choice_is_aborted_and_the_others_go_on(bench):
    bench.turn(add("a", max_tokens=100, num_choices=3))
    before = bench.core.stats.kv_pages_used
    outputs = bench.turn(wire.Abort("a", 1))
    assert [(o.choice_index, o.finish_reason) for o in outputs] == [
        (1, FinishReason.ABORTED),
        (0, None),
        (2, None),
    ]
    assert bench.core.stats.kv_pages_used < before
    assert bench.turn(wire.Abort("a", 1))[0].choice_index == 0
    outputs = bench.turn(wire.Abort("a"))
    assert finishes_of(outputs) == [(0, FinishReason.ABORTED), (2, FinishReason.ABORTED)]
    assert not bench.core.has_work
    assert bench.turn(wire.Abort("a"), wire.Abort("a", 0)) == []


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_every_choice_ends_exactly_once_in_any_order(bench, order):
    outputs = bench.turn(add("a", max_tokens=4, num_choices=3))
    for choice in order:
        outputs += bench.turn(wire.Abort("a", choice), wire.Abort("a", choice))
    while bench.core.has_work:
        outputs += bench.turn()
    outputs += bench.turn(wire.Abort("a"))
    assert [choice for choice, _ in finishes_of(outputs)] == [0, 1, 2]


def test_an_output_too_long_fails_every_choice_that_has_one(bench):
    outputs = bench.turn(add("bad", HUGE, num_choices=2), add("good", max_tokens=1))
    ends = {(o.request_id, o.choice_index): o.finish_reason for o in outputs}
    assert ends == {
        ("bad", 0): FinishReason.ERROR,
        ("bad", 1): FinishReason.ERROR,
        ("good", 0): FinishReason.LENGTH,
    }


def test_an_output_too_long_for_a_frame_fails_alone(bench):
    outputs = bench.turn(add("good", max_tokens=1), add("bad", HUGE))
    assert {o.request_id: (o.finish_reason, o.failure and o.failure.reason) for o in outputs} == {
        "good": (FinishReason.LENGTH, None),
        "bad": (FinishReason.ERROR, "INTERNAL"),
    }
    assert bench.core.stats.running == 0


def test_an_exception_of_a_step_is_the_end_of_the_process(bench):
    with pytest.raises(RuntimeError, match="a defect"):
        bench.turn(add("a", STEP_RAISES))


def test_a_heartbeat_follows_a_finish_and_knows_of_it(bench):
    bench.turn(add("a", max_tokens=2))
    bench.turn()
    (heartbeat,) = bench.heartbeats
    assert (heartbeat.turn, heartbeat.stats.running) == (2, 0)


def test_heartbeats_come_without_work(bench, monkeypatch):
    monkeypatch.setattr("inference_service.engine.loop.HEARTBEAT_S", 0.0)
    for _ in range(3):
        bench.turn()
        assert len(bench.heartbeats) == 1


def test_a_second_start_is_a_broken_stream(bench):
    with pytest.raises(wire.WireError):
        bench.turn(wire.Start(EngineConfig(model_dir="again")))


def test_a_prompt_that_nobody_waits_for_is_not_prepared(bench, monkeypatch):
    """Whether it is forgotten in its own turn or in a later one; one that is prepared or unknown is not missed."""
    begun = []
    prepare = bench.core.prepare

    def noting(source, pixels):
        begun.append(source)
        return prepare(source, pixels)

    monkeypatch.setattr(bench.core, "prepare", noting)
    sources = [PromptSource(token_ids=(number,)) for number in range(5)]
    first: list[wire.Command] = [wire.Prepare(i, source) for i, source in enumerate(sources)]
    later: list[wire.Command] = [wire.Forget(3), wire.Forget(0), wire.Forget(99)]
    turns = [[*first, wire.Forget(1)], later, [], []]
    replies = []
    for turn in turns:
        bench.turn(*turn)
        replies += [event for event in bench.events if isinstance(event, wire.Prepared)]
    assert begun == [sources[0], sources[2], sources[4]]
    assert sorted(reply.number for reply in replies) == [0, 1, 2, 3, 4]
    assert [r.number for r in replies if r.layout is None and r.failure is None] == [1, 3]


@pytest.mark.parametrize(
    ("prompt_s", "turns"),
    [(0.001, [0, 1, 2, 3]), (0.5, [0, 4, 8, 12]), (1.3, [0, 11, 22, 33])],
)
def test_answers_have_as_much_time_as_prompts(bench, monkeypatch, prompt_s, turns):
    """A long prompt after the other would leave answers a token for each of them."""
    now = 0.0

    def takes(seconds, work):
        def taking(*arguments):
            nonlocal now
            now += seconds
            return work(*arguments)

        return taking

    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr("inference_service.engine.loop.time", clock)
    monkeypatch.setattr(bench.core, "prepare", takes(prompt_s, bench.core.prepare))
    monkeypatch.setattr(bench.core, "step", takes(0.125, bench.core.step))
    commands = [wire.Prepare(number, PromptSource(token_ids=(number,))) for number in range(4)]
    commands.append(add("a", max_tokens=100))
    prepared = []
    for turn in range(turns[-1] + 2):
        assert [output.request_id for output in bench.turn(*commands)] == ["a"]
        prepared += [turn for event in bench.events if isinstance(event, wire.Prepared)]
        commands = []
    assert prepared == turns


def test_without_answers_prompts_do_not_wait(bench, monkeypatch):
    monkeypatch.setattr("inference_service.engine.loop._SHORT_S", 0.0)
    commands = [wire.Prepare(number, PromptSource(token_ids=(number,))) for number in range(4)]
    for _ in range(4):
        bench.turn(*commands)
        assert any(isinstance(event, wire.Prepared) for event in bench.events)
        commands = []
