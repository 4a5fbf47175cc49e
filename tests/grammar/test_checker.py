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
    assert len(checker._pending) == 1
    await refused(checker, EXPLODING)
    assert not checker._pending
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
    assert not checker._pending


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
