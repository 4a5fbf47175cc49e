"""Constraints are compiled for callers in turn, and only while somebody waits, by a compiler that tests hold up."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import wait
import itertools
import threading
from types import SimpleNamespace
from typing import Any, cast

from llguidance import LLTokenizer
import pytest

from inference_service.constraint import Constraint, ConstraintKind
from inference_service.engine import compiling
from inference_service.engine.compiling import COMPILED, Compilation, Grammars
from inference_service.grammar.matcher import GrammarError


BOUND_S = 60.0


def regex(text: str) -> Constraint:
    return Constraint(kind=ConstraintKind.REGEX, text=text)


class Compiler:
    """Compiles one constraint whenever it may, and knows which ones it began."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self._may = threading.Semaphore(0)

    def __call__(self, vocabulary: object, constraint: Constraint) -> Any:
        self.begun.append(constraint.text)
        assert self._may.acquire(timeout=BOUND_S)
        if constraint.text.startswith("bad"):
            raise GrammarError("bad")
        if constraint.text.startswith("panic"):
            raise BaseException("panic")  # noqa: TRY002 - as those of Rust
        return SimpleNamespace(compute_bitmask=lambda: b"", is_error=lambda: False)

    def release(self, count: int = 1) -> None:
        self._may.release(count)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiler]:
    compiler = Compiler()
    monkeypatch.setattr(compiling, "new_matcher", compiler)
    monkeypatch.setattr(compiling, "_THREADS", 1)
    yield compiler
    compiler.release(1000)


@pytest.fixture
def grammars(compiler: Compiler) -> Grammars:
    return Grammars(lambda: cast(LLTokenizer, None))


def finish(compiler: Compiler, *compilations: Compilation) -> None:
    compiler.release(len(compilations))
    _, late = wait([one.matcher for one in compilations], BOUND_S)
    assert not late


def test_callers_take_turns(grammars: Grammars, compiler: Compiler) -> None:
    many = [grammars.wait_for(regex(f"m{number}"), "many") for number in range(50)]
    few = [grammars.wait_for(regex(f"f{number}"), "few") for number in range(2)]
    finish(compiler, *many, *few)
    assert max(compiler.begun.index("f0"), compiler.begun.index("f1")) <= 4
    assert len(compiler.begun) == 52


def test_what_another_caller_waits_for_is_compiled_in_either_turn(
    grammars: Grammars, compiler: Compiler
) -> None:
    many = [grammars.wait_for(regex(f"m{number}"), "many") for number in range(50)]
    same = grammars.wait_for(regex("m49"), "few")
    assert same is many[49]
    finish(compiler, *many)
    assert compiler.begun.index("m49") <= 2
    assert len(compiler.begun) == 50  # each once


def test_what_nobody_waits_for_is_not_compiled(grammars: Grammars, compiler: Compiler) -> None:
    for number in range(500):
        grammars.leave(grammars.wait_for(regex(f"gone{number}"), "many"))
    two = [grammars.wait_for(regex("shared"), "few") for _ in range(2)]
    grammars.leave(two[0])
    last = grammars.wait_for(regex("last"), "many")
    compiler.release()  # one that had begun
    finish(compiler, two[1], last)
    gone = [text for text in compiler.begun if text.startswith("gone")]
    assert len(gone) <= 1
    assert not grammars._queues
    again = grammars.wait_for(regex("gone7"), "many")
    finish(compiler, again)


def test_what_was_compiled_is_kept_for_each_caller(grammars: Grammars, compiler: Compiler) -> None:
    mine = grammars.wait_for(regex("mine"), "few")
    finish(compiler, mine)
    many = [grammars.wait_for(regex(f"m{number}"), "many") for number in range(2 * COMPILED)]
    finish(compiler, *many)
    assert grammars.wait_for(regex("mine"), "few") is mine
    assert grammars.wait_for(regex(f"m{2 * COMPILED - 1}"), "many") is many[-1]
    assert not grammars._unfinished
    assert len(grammars._compiled) == COMPILED


def test_what_takes_long_to_compile_counts_as_several(
    grammars: Grammars, compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is large: 32 such constraints would have more than a gigabyte."""
    spent_s = itertools.count(step=0.65)
    monkeypatch.setattr(compiling, "time", SimpleNamespace(thread_time=lambda: next(spent_s)))
    many = [grammars.wait_for(regex(f"m{number}"), "many") for number in range(10)]
    finish(compiler, *many)
    assert len(grammars._compiled) == COMPILED // 7


@pytest.mark.parametrize("text", ["bad", "panic"])
def test_what_fails_is_tried_again(grammars: Grammars, compiler: Compiler, text: str) -> None:
    for count in (1, 2):
        compilation = grammars.wait_for(regex(text), "few")
        finish(compiler, compilation)
        assert isinstance(compilation.matcher.exception(), Exception)
        grammars.leave(compilation)
        assert compiler.begun == [text] * count
        assert not grammars._unfinished
