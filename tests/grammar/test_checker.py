"""The trial process: good and bad constraints, and hostile ones, which harm nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
import json
import os
from pathlib import Path
import signal
import sys

import pytest

from inference_service.constraint import Constraint, ConstraintKind
from inference_service.errors import EngineUnavailableError, InvalidArgumentError
from inference_service.grammar.checker import ConstraintChecker
from inference_service.grammar.trial_protocol import Verdict
from tests.grammar.conftest import DEMO
from tests.grpc_api.asking import until


BOUND_S = 60


def schema(value: object) -> Constraint:
    return Constraint(kind=ConstraintKind.JSON_SCHEMA, text=json.dumps(value))


def regex(text: str) -> Constraint:
    return Constraint(kind=ConstraintKind.REGEX, text=text)


# Minutes of computing, and gigabytes.
EXPLODING = schema({"type": "integer", "multipleOf": 99999989})
GOOD = schema({"type": "object", "properties": {"a": {"type": "integer"}}})


@pytest.fixture
async def checker() -> AsyncIterator[ConstraintChecker]:
    checker = ConstraintChecker(DEMO)
    async with asyncio.timeout(2 * BOUND_S):
        yield checker
    checker.close()


def process_of(checker: ConstraintChecker) -> int:
    assert checker._process is not None
    return checker._process._process.pid


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def refused(checker: ConstraintChecker, constraint: Constraint, **options: str):
    with pytest.raises(InvalidArgumentError) as caught:
        await checker.check(constraint, **options)
    return caught.value


async def test_good_and_bad_ones(checker: ConstraintChecker) -> None:
    await checker.check(Constraint(kind=ConstraintKind.JSON_OBJECT))
    assert checker._process is None  # nothing to try
    await checker.check(GOOD)
    await checker.check(regex("a+"))
    error = await refused(checker, regex("(a"))
    assert (error.field, error.message) == (
        "spec.constraint.regex",
        "regex cannot be used: unclosed group",
    )
    overlap = {"oneOf": [{"type": "string"}, {"minLength": 1}]}
    error = await refused(checker, schema(overlap), field="spec.tools[0]")
    assert error.field == "spec.tools[0]"
    assert "oneOf" in error.message
    grammar = Constraint(kind=ConstraintKind.LARK, text="start: nothing")
    assert (await refused(checker, grammar)).field == "spec.constraint.grammar"


async def test_an_exploding_schema_is_ended_while_others_are_tried(
    checker: ConstraintChecker,
) -> None:
    await checker.check(GOOD)
    turns = 0

    async def tick() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.005)
            turns += 1

    ticking = asyncio.create_task(tick())
    exploding = asyncio.create_task(refused(checker, EXPLODING))
    for number in range(5):  # beside it
        await checker.check(regex(f"a{{{number}}}"))
    error = await exploding
    ticking.cancel()
    assert error.field == "spec.constraint.json_schema"
    assert "too complex" in error.message
    assert turns > 10
    await checker.check(regex("b+"))


async def test_a_grammar_whose_tokens_cost_more_and_more_is_refused(
    checker: ConstraintChecker,
) -> None:
    """Its first 32 tokens take seconds; a quarter of one shows the growth, not that it may be used."""
    trees = " | ".join("e " * count for count in range(2, 12))
    grammar = Constraint(kind=ConstraintKind.LARK, text=f"start: e\ne: {trees} | L\nL: /[a-z]/")
    assert (await refused(checker, grammar)).field == "spec.constraint.grammar"


async def test_a_trial_goes_on_without_its_caller_and_is_not_repeated(
    checker: ConstraintChecker,
) -> None:
    await checker.check(GOOD)
    for _ in range(5):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await checker.check(EXPLODING)
    assert len(checker._asked) == 1
    await refused(checker, EXPLODING)
    assert not checker._asked
    known = checker._process
    assert known is not None
    count = known._count
    await refused(checker, EXPLODING)
    await checker.check(GOOD)
    assert known._count == count


async def test_a_constraint_that_crashes_the_compiler_is_refused(
    checker: ConstraintChecker,
) -> None:
    """llguidance 1.9.1 ends with a segmentation fault on this number, which `grpc_api` refuses before."""
    await checker.check(GOOD)
    process = checker._process
    assert "too complex" in (await refused(checker, schema({"const": -(2**63)}))).message
    await checker.check(regex("e"))
    assert checker._process is process


async def test_trials_that_nobody_waits_for_do_not_begin(checker: ConstraintChecker) -> None:
    await checker.check(GOOD)
    process = checker._process
    assert process is not None
    begun = process._count
    exploding = [schema({"type": "integer", "multipleOf": 99999989 + n}) for n in range(2)]
    running = [asyncio.create_task(refused(checker, constraint)) for constraint in exploding]
    await asyncio.sleep(0.01)
    for number in range(10):  # behind the two that run
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await checker.check(regex(f"left{number}"))
    await asyncio.gather(*running)
    await checker.check(regex("last"))
    assert process._count == begun + 3
    assert not checker._asked


class Trials:
    """Stands for the trial process: trials last until the test ends them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: list[str] = []
        self.running: list[asyncio.Future[Verdict]] = []
        monkeypatch.setattr(ConstraintChecker, "_run", lambda _, constraint: self._run(constraint))

    async def _run(self, constraint: Constraint) -> Verdict:
        verdict = asyncio.get_running_loop().create_future()
        self.begun.append(constraint.text)
        self.running.append(verdict)
        return await verdict

    async def finish(self, *asked: asyncio.Task[Verdict]) -> None:
        """Ends one trial after the other until all who asked have their verdicts."""
        while not all(task.done() for task in asked):
            for _ in range(5):
                await asyncio.sleep(0)
            if self.running:
                self.running.pop(0).set_result(Verdict(1))


async def test_callers_take_turns_with_their_trials(
    checker: ConstraintChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = Trials(monkeypatch)
    many = [asyncio.create_task(checker.verdict(regex(f"m{n}"), "many")) for n in range(60)]
    await asyncio.sleep(0)
    few = [asyncio.create_task(checker.verdict(regex(f"f{n}"), "few")) for n in range(3)]
    # Which of them is behind 50 others in the turns of the other caller.
    few.append(asyncio.create_task(checker.verdict(regex("m55"), "few")))
    await trials.finish(*few)
    assert len(trials.begun) < 16
    await trials.finish(*many)
    assert len(set(trials.begun)) == len(trials.begun) == 63
    assert not checker._asked
    assert not checker._line.held


async def test_verdicts_are_kept_for_each_caller(
    checker: ConstraintChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = Trials(monkeypatch)
    await trials.finish(asyncio.create_task(checker.verdict(regex("mine"), "few")))
    many = [asyncio.create_task(checker.verdict(regex(f"m{n}"), "many")) for n in range(600)]
    await trials.finish(*many)
    begun = len(trials.begun)
    assert (await checker.verdict(regex("mine"), "few")).passed
    assert (await checker.verdict(regex("m599"), "many")).passed
    assert len(trials.begun) == begun


async def test_those_who_leave_the_line_are_not_waited_for(
    checker: ConstraintChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = Trials(monkeypatch)
    gone = [asyncio.create_task(checker.verdict(regex(f"g{n}"), "many")) for n in range(50)]
    stays = [asyncio.create_task(checker.verdict(regex("g40"), who)) for who in ("many", "few")]
    await asyncio.sleep(0)
    for task in gone:
        task.cancel()
    await asyncio.gather(*gone, return_exceptions=True)
    await trials.finish(*stays)
    assert len(trials.begun) <= 4
    while trials.running:
        trials.running.pop().set_result(Verdict(1))
    await until(lambda: not checker._line.held)
    assert not checker._asked


async def test_a_trial_that_somebody_else_ends_says_nothing(checker: ConstraintChecker) -> None:
    await checker.check(GOOD)
    await until(lambda: not children_of(process_of(checker)))
    trial = asyncio.create_task(checker.check(EXPLODING))
    await until(lambda: bool(children_of(process_of(checker))))
    os.kill(children_of(process_of(checker))[0], signal.SIGKILL)
    with pytest.raises(EngineUnavailableError):
        await trial
    assert "too complex" in (await refused(checker, EXPLODING)).message


async def test_a_lost_process_is_replaced(checker: ConstraintChecker) -> None:
    await checker.check(GOOD)
    os.kill(process_of(checker), signal.SIGSTOP)
    trial = asyncio.create_task(checker.check(regex("c")))
    await asyncio.sleep(0.05)
    os.kill(process_of(checker), signal.SIGKILL)
    with pytest.raises(EngineUnavailableError):
        await trial
    await checker.check(regex("c"))


async def test_a_process_that_cannot_start() -> None:
    checker = ConstraintChecker(DEMO, command=("/nowhere/python",))
    with pytest.raises(EngineUnavailableError):
        await checker.check(GOOD)
    ending = ConstraintChecker(DEMO, command=(sys.executable, "-c", ""))
    async with asyncio.timeout(BOUND_S):
        with pytest.raises(EngineUnavailableError):
            await ending.check(GOOD)
    ending.close()


async def test_closing_ends_process_and_trials() -> None:
    checker = ConstraintChecker(DEMO)
    async with asyncio.timeout(BOUND_S):
        await checker.check(GOOD)
        pid = process_of(checker)
        trial = asyncio.create_task(checker.check(EXPLODING))
        await asyncio.sleep(0.05)
        checker.close()
        with pytest.raises(EngineUnavailableError):
            await trial
        with pytest.raises(EngineUnavailableError):
            await checker.check(regex("d"))
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
