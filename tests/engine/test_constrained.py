"""Constrained answers of the engine core with the demo model: beside others, under preemption, and when they fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
import itertools
import json
from pathlib import Path
import re
import threading
import time
from types import SimpleNamespace
from typing import Any

import jsonschema
from llguidance import LLMatcher, LLParserLimits
import pytest

from inference_service.constraint import Constraint, ConstraintKind
from inference_service.engine import compiling, constrained
from inference_service.engine.constraint_state import ConstraintState
from inference_service.engine.core import EngineCore
from inference_service.engine_protocol.messages import (
    ChoiceOutput,
    EngineConfig,
    EngineRequest,
    FinishReason,
    SamplingParams,
)
from inference_service.errors import InvalidArgumentError, RequestIdInUseError
from inference_service.grammar import matcher
from inference_service.text.tokenizer_json import JsonTokenizer
from tests.support.conversations import Answer, drain, drain_choices


DEMO = Path("inference_service/demo/model")
ENDS = (1232, 1230)
THINK_END = 1249
TOKENIZER = JsonTokenizer.from_dir(DEMO)
SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "blue"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "words": {"type": "array", "items": {"type": "string", "maxLength": 6}, "maxItems": 3},
    },
    "required": ["colour", "count", "words"],
    "additionalProperties": False,
}
JSON = Constraint(kind=ConstraintKind.JSON_SCHEMA, text=json.dumps(SCHEMA))
DIGITS = Constraint(kind=ConstraintKind.REGEX, text="[0-9]{3}")
SAMPLED = SamplingParams(max_tokens=120, temperature=1.0, eos_token_ids=ENDS, seed=3)
GREEDY = replace(SAMPLED, temperature=0.0)

MakeCore = Callable[..., EngineCore]


@pytest.fixture
def make_demo() -> MakeCore:
    def make(**changes: Any) -> EngineCore:
        settings = {"page_size": 4, "num_kv_pages": 300, "cpu_threads": 1}
        return EngineCore(EngineConfig(model_dir=str(DEMO), **(settings | changes)))

    return make


def request(
    name: str,
    constraint: Constraint | None,
    sampling: SamplingParams = SAMPLED,
    question: str = "What is this?",
    **changes: Any,
) -> EngineRequest:
    text = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return EngineRequest(
        request_id=name,
        prompt_token_ids=tuple(TOKENIZER.encode(text)),
        sampling=sampling,
        constraint=constraint,
        **changes,
    )


def text_of(answer: Answer) -> str:
    return TOKENIZER.decode(answer.token_ids)


def reason_of(answer: Answer) -> str | None:
    failure = answer.outputs[-1].failure
    return None if failure is None else failure.reason


def check_json(answer: Answer) -> None:
    assert answer.finish_reason is FinishReason.EOS
    jsonschema.validate(json.loads(text_of(answer)), SCHEMA)


def test_every_kind_beside_answers_without_one(make_demo: MakeCore) -> None:
    """The others are what they are alone; and so are the constrained ones."""
    lark = Constraint(kind=ConstraintKind.LARK, text='start: "<" /[a-z]{2,4}/ ">"')
    choice = Constraint(kind=ConstraintKind.CHOICES, values=("red", "green", "light blue"))
    anything = Constraint(kind=ConstraintKind.JSON_OBJECT)
    requests = [
        request("plain", None),
        request("json", JSON),
        request("digits", DIGITS),
        request("greedy", None, GREEDY, "Who are you?"),
        request("lark", lark),
        request("choice", choice, GREEDY),
        request("object", anything, replace(SAMPLED, max_tokens=30)),
        request("hot", None, replace(SAMPLED, seed=8, top_p=0.9)),
    ]
    core = make_demo()
    for one in requests:
        core.add(one, b"")
    together = drain(core)
    check_json(together["json"])
    assert re.fullmatch("[0-9]{3}", text_of(together["digits"]))
    assert re.fullmatch("<[a-z]{2,4}>", text_of(together["lark"]))
    assert text_of(together["choice"]) in choice.values
    assert text_of(together["object"]).startswith("{")
    for one in requests:
        core.add(one, b"")
        alone = drain(core)[one.request_id]
        assert alone.token_ids == together[one.request_id].token_ids, one.request_id
        assert alone.finish_reason is together[one.request_id].finish_reason


def test_every_choice_has_a_state_of_its_own(make_demo: MakeCore) -> None:
    core = make_demo()
    core.add(request("n", JSON, num_choices=4), b"")
    answers = drain_choices(core)
    for answer in answers.values():
        check_json(answer)
    assert len({text_of(answer) for answer in answers.values()}) > 1


def test_preemption_keeps_the_state(make_demo: MakeCore) -> None:
    expected: dict[str, Answer] = {}
    for name in "abc":
        core = make_demo()
        core.add(request(name, JSON, replace(SAMPLED, seed=ord(name))), b"")
        expected |= drain(core)
    core = make_demo(num_kv_pages=22)
    for name in "abc":
        core.add(request(name, JSON, replace(SAMPLED, seed=ord(name))), b"")
    answers = drain(core)
    assert core.stats.preemptions > 0
    for name in "abc":
        check_json(answers[name])
        assert answers[name].token_ids == expected[name].token_ids


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_a_complete_answer_ends_whatever_is_asked(
    make_demo: MakeCore, sampling: SamplingParams
) -> None:
    core = make_demo()
    core.add(request("x", DIGITS, replace(sampling, ignore_eos=True, min_tokens=50)), b"")
    answer = drain(core)["x"]
    assert re.fullmatch("[0-9]{3}", text_of(answer))
    assert (answer.finish_reason, answer.token_ids[-1] in ENDS) == (FinishReason.EOS, True)


@pytest.mark.parametrize("changes", [{"ignore_eos": True}, {"min_tokens": 12}])
def test_an_answer_that_may_go_on_goes_on(make_demo: MakeCore, changes: dict[str, Any]) -> None:
    open_end = Constraint(kind=ConstraintKind.REGEX, text="[0-9]+")
    core = make_demo()
    bias = ((ENDS[0], 100.0),)
    core.add(
        request("x", open_end, replace(SAMPLED, max_tokens=12, logit_bias=bias, **changes)), b""
    )
    core.add(request("y", open_end, replace(SAMPLED, max_tokens=12, logit_bias=bias)), b"")
    answers = drain(core)
    assert (len(answers["x"].token_ids), answers["x"].finish_reason) == (12, FinishReason.LENGTH)
    assert answers["y"].finish_reason is FinishReason.EOS


def test_the_mask_wins_over_the_bias(make_demo: MakeCore) -> None:
    core = make_demo()
    bias = ((TOKENIZER.encode("a")[0], 100.0), (ENDS[0], 100.0))
    penalties: dict[str, Any] = {
        "repetition_penalty": 1.5,
        "presence_penalty": 2.0,
        "frequency_penalty": 2.0,
    }
    options = replace(SAMPLED, logit_bias=bias, top_k=2, min_p=0.1, top_p=0.5, **penalties)
    core.add(request("x", DIGITS, options), b"")
    assert re.fullmatch("[0-9]{3}", text_of(drain(core)["x"]))


def test_log_probabilities_are_those_of_the_model(make_demo: MakeCore) -> None:
    core = make_demo()
    core.add(request("x", DIGITS, replace(GREEDY, logprobs=3)), b"")
    first = drain(core)["x"].outputs[0].logprobs[0]
    core.add(request("y", None, replace(GREEDY, logprobs=3)), b"")
    plain = drain(core)["y"].outputs[0].logprobs[0]
    assert [token for token, _ in first.top] == [token for token, _ in plain.top]
    assert [value for _, value in first.top] == pytest.approx([v for _, v in plain.top], abs=1e-4)
    assert first.token_id != plain.token_id
    assert first.rank > 1


def test_a_constraint_begins_after_a_token(make_demo: MakeCore) -> None:
    """Until then the answer is free, but must not end; then it is constrained."""
    options = replace(SAMPLED, logit_bias=((THINK_END, 6.0),), max_tokens=300)
    core = make_demo()
    for seed in range(3):
        core.add(
            request(f"{seed}", DIGITS, replace(options, seed=seed), constraint_after=THINK_END), b""
        )
    for answer in drain(core).values():
        if THINK_END not in answer.token_ids:
            assert answer.finish_reason is FinishReason.LENGTH
            continue
        begin = answer.token_ids.index(THINK_END)
        assert not set(ENDS) & set(answer.token_ids[:begin])
        assert re.fullmatch(
            "[0-9]{3}", TOKENIZER.decode(answer.token_ids[begin + 1 :]).lstrip("\n")
        )
    core.add(request("never", DIGITS, GREEDY, constraint_after=THINK_END), b"")
    never = drain(core)["never"]
    assert never.finish_reason is FinishReason.LENGTH
    with pytest.raises(InvalidArgumentError):
        core.add(request("x", DIGITS, constraint_after=1280), b"")


def test_a_matcher_that_fails_ends_its_answer_with_an_error(
    make_demo: MakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never as a complete answer, although a failed matcher permits only the end."""
    narrow = LLParserLimits(step_lexer_fuel=1, precompute_large_lexemes=False, max_lexer_states=9)
    monkeypatch.setattr(matcher, "_limits", lambda: narrow)
    core = make_demo()
    core.add(request("bad", Constraint(kind=ConstraintKind.REGEX, text=r"(\w+ ?){1,900}\.")), b"")
    core.add(request("good", None, GREEDY), b"")
    answers = drain(core)
    assert answers["bad"].finish_reason is FinishReason.ERROR
    assert reason_of(answers["bad"]) == "CONSTRAINT_FAILED"
    assert answers["good"].finish_reason is FinishReason.EOS
    assert core.stats.kv_pages_used == 0


@pytest.mark.parametrize("depth", [0, 1])
def test_a_constraint_that_takes_too_much_time_ends_its_answer_alone(
    make_demo: MakeCore, monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    """By clocks that count what rows do: the first one takes 0.1 s for each mask and token, the other nothing."""
    costs_s = iter([0.1, 0.0])

    def begun(compiled: LLMatcher, after: int | None) -> ConstraintState:
        return ConstraintState(compiled, after, itertools.count(step=next(costs_s)).__next__)

    monkeypatch.setattr(constrained, "ConstraintState", begun)
    core = make_demo(pipeline_depth=depth)
    endless = Constraint(kind=ConstraintKind.REGEX, text="[a-z]{400}")
    core.add(request("slow", endless), b"")
    core._held.wait(60.0)  # so that it begins first
    core.add(request("cheap", JSON), b"")
    answers = drain(core)
    assert reason_of(answers["slow"]) == "CONSTRAINT_FAILED"
    failure = answers["slow"].outputs[-1].failure
    assert failure is not None
    assert "too much time" in failure.message
    assert 1 < len(answers["slow"].token_ids) < 10
    check_json(answers["cheap"])
    assert core.stats.kv_pages_used == 0


def test_the_first_mask_is_computed_beside_the_loop(
    make_demo: MakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copies of a compiled constraint know it."""
    masks: list[str] = []

    def compiled(vocabulary: Any, constraint: Constraint) -> Any:
        made = original(vocabulary, constraint)
        return SimpleNamespace(
            compute_bitmask=lambda: masks.append(threading.current_thread().name),
            deep_copy=made.deep_copy,
            is_error=made.is_error,
        )

    original = matcher.new_matcher
    monkeypatch.setattr(compiling, "new_matcher", compiled)
    core = make_demo()
    core.add(request("x", JSON, num_choices=3), b"")
    drain_choices(core)
    (name,) = masks
    assert name.startswith("grammars")


def test_what_cannot_be_compiled_fails_alone(make_demo: MakeCore) -> None:
    core = make_demo()
    core.add(request("bad", Constraint(kind=ConstraintKind.REGEX, text="(a"), num_choices=2), b"")
    core.add(request("good", JSON), b"")
    answers = drain_choices(core)
    assert {reason_of(answers["bad", choice]) for choice in (0, 1)} == {"CONSTRAINT_FAILED"}
    check_json(answers["good", 0])


def test_requests_that_wait_for_their_constraint(
    make_demo: MakeCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are counted, can be aborted, hold nobody up, and their ids are taken."""
    compiled: list[str] = []
    may_go: list[bool] = []

    def slow(vocabulary: Any, constraint: Constraint) -> Any:
        while not may_go:
            time.sleep(0.001)
        compiled.append(constraint.text)
        return original(vocabulary, constraint)

    original = matcher.new_matcher
    monkeypatch.setattr(compiling, "new_matcher", slow)
    core = make_demo()
    core.add(request("all", JSON, num_choices=3), b"")
    core.add(request("some", JSON, num_choices=3), b"")
    core.add(request("one", JSON), b"")
    with pytest.raises(RequestIdInUseError):
        core.add(request("one", JSON), b"")
    core.add(request("plain", None, GREEDY), b"")
    outputs: list[ChoiceOutput] = []
    while not outputs or outputs[-1].finish_reason is None:
        outputs += core.step()
    assert {output.request_id for output in outputs} == {"plain"}
    assert core.stats.waiting == 7
    core.abort("all")
    core.abort("some", 1)
    core.abort("unknown")
    assert core.stats.waiting == 3
    assert core.step() == []
    may_go.append(True)
    answers = drain_choices(core)
    assert answers.keys() == {("some", 0), ("some", 2), ("one", 0)}
    assert len(compiled) == 1  # for all of them
    for answer in answers.values():
        check_json(answer)


def test_only_the_latest_constraints_are_kept(make_demo: MakeCore) -> None:
    core = make_demo()
    for number in range(40):
        text = f"[0-9]{{2}}-{number}"
        core.add(request(str(number), Constraint(kind=ConstraintKind.REGEX, text=text)), b"")
    for name, answer in drain(core).items():
        assert text_of(answer).endswith(f"-{name}")
    assert len(core._held._grammars._compiled) == compiling.COMPILED
    assert not core._held._grammars._unfinished
