"""Log probabilities are the largest part of an answer: they are never held as objects of Python."""

from __future__ import annotations

from collections.abc import Callable
import gc
import json
from typing import Any
import weakref

import orjson
import pytest

from qwenvl.inference.v1 import generation_pb2 as generation_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from rest_adapter.openai import answer
from rest_adapter.openai.completions.logprobs import LegacyLogprobs
from rest_adapter.openai.responses.output import Output, OutputOptions


TOP = 20


def entry(number: int) -> usage_pb.LogprobEntry:
    def token(rank: int) -> usage_pb.TokenLogprob:
        text = f" w{number}.{rank}"
        return usage_pb.TokenLogprob(
            token_id=rank, token=text, bytes=text.encode(), logprob=-0.1 * rank, rank=rank
        )

    return usage_pb.LogprobEntry(chosen=token(1), top=[token(rank) for rank in range(1, TOP + 1)])


def of_chat(entries: list[usage_pb.LogprobEntry]) -> object:
    return answer.logprobs(entries)


def of_prompt(entries: list[usage_pb.LogprobEntry]) -> object:
    return answer.prompt_logprobs(entries)


def of_completion(entries: list[usage_pb.LogprobEntry]) -> object:
    form = LegacyLogprobs(TOP)
    form.add(entries)
    return form.take()


def of_response(entries: list[usage_pb.LogprobEntry]) -> object:
    output = Output(OutputOptions(logprobs=True))
    events: list[Any] = []
    for each in entries:
        events += output.add(generation_pb.Delta(text="x", logprobs=[each]))
        del events[:]
    events += output.finish(complete=True)
    return [events, output]


MAKERS: dict[str, Callable[[list[usage_pb.LogprobEntry]], object]] = {
    "chat": of_chat,
    "prompt": of_prompt,
    "completion": of_completion,
    "response": of_response,
}


def objects_in(root: object) -> int:
    """How many objects are reachable that the garbage collector and `dict`, `list` and `tuple` know."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, type | weakref.ref):
            continue
        seen.add(id(each))
        if isinstance(each, dict | list | tuple):
            waiting += gc.get_referents(each)
        elif hasattr(each, "__dict__") and type(each).__module__.startswith("rest_adapter"):
            waiting += vars(each).values()
    return len(seen)


@pytest.mark.parametrize("maker", MAKERS)
def test_a_token_takes_few_objects(maker: str) -> None:
    """And not one for each of its rivals, and for each of their fields."""
    few, many = (objects_in(MAKERS[maker]([entry(n) for n in range(count)])) for count in (10, 110))
    assert (many - few) / 100 < 8


def test_the_json_is_that_of_openai() -> None:
    found = json.loads(orjson.dumps(answer.logprobs([entry(7)])))
    [token] = found["content"]
    assert (token["token"], token["bytes"]) == (" w7.1", list(b" w7.1"))
    assert [rival["token"] for rival in token["top_logprobs"]] == [
        f" w7.{rank}" for rank in range(1, TOP + 1)
    ]
    assert orjson.dumps(answer.logprobs([])) == b'{"content":[],"refusal":null}'
    assert orjson.dumps(answer.prompt_logprobs([usage_pb.LogprobEntry()])) == b"[null]"
