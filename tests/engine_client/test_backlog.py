"""What waits for a slow consumer: in pieces, none of it lost, and small."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inference_service.engine_client.backlog import PIECE, Backlog, merge
from inference_service.engine_protocol.messages import (
    ChoiceOutput,
    EngineFailure,
    FinishReason,
    PositionLogprobs,
)
from inference_service.measures import ChoiceTimings


def entry(number: int, top: int = 2) -> PositionLogprobs:
    return PositionLogprobs(
        token_id=number,
        logprob=-0.1 * number,
        rank=1 + number % 7,
        top=tuple((number + k, -0.3 * k) for k in range(top)),
    )


@st.composite
def outputs(draw: st.DrawFn) -> list[ChoiceOutput]:
    """Those of a choice: its prompt in chunks, then tokens, one or a few at a time."""
    number = 0
    found: list[ChoiceOutput] = []
    with_logprobs = draw(st.booleans())
    for size in draw(st.lists(st.sampled_from([1, 3, 255, 256, 257, 600, 1000]), max_size=3)):
        prompt = tuple(entry(number + index) for index in range(size))
        found.append(ChoiceOutput(request_id="r", choice_index=0, prompt_logprobs=prompt))
        number += size
    for size in draw(st.lists(st.integers(1, 3), max_size=300)):
        ids = tuple(range(number, number + size))
        entries = tuple(map(entry, ids)) if with_logprobs else ()
        found.append(
            ChoiceOutput(
                request_id="r",
                choice_index=0,
                token_ids=ids,
                logprobs=entries,
                num_cached_tokens=None if found else 5,
                num_cache_write_tokens=0 if found else 3,
                timings=None if found else ChoiceTimings(queue_s=1.0, prefill_s=2.0),
            )
        )
        number += size
    failed = draw(st.booleans())
    failure = EngineFailure(reason="INTERNAL", message="m", metadata={"a": "b"})
    found.append(
        ChoiceOutput(
            request_id="r",
            choice_index=0,
            finish_reason=FinishReason.ERROR if failed else FinishReason.LENGTH,
            failure=failure if failed else None,
        )
    )
    return found


@given(outputs(), st.lists(st.booleans(), max_size=50))
def test_pieces_are_small_and_together_what_was_pushed(
    pushed: list[ChoiceOutput], pops: list[bool]
) -> None:
    backlog = Backlog()
    popped: list[ChoiceOutput] = []
    for output, pop in zip(pushed, [*pops, *[False] * len(pushed)], strict=False):
        backlog.push(output)
        if pop:
            popped.append(backlog.pop())
    while backlog:
        popped.append(backlog.pop())
    assert merge(popped) == merge(pushed)
    assert all(len(one.token_ids) + len(one.prompt_logprobs) <= PIECE for one in popped)
    assert all(one.finish_reason is None for one in popped[:-1])
    assert backlog.packed_bytes == 0


def test_what_waits_long_is_small() -> None:
    """A position of 20 tokens is 3 KiB of objects."""
    backlog = Backlog()
    prompt = tuple(entry(number, top=20) for number in range(4000))
    backlog.push(ChoiceOutput(request_id="r", choice_index=0, prompt_logprobs=prompt))
    assert sum(isinstance(piece, ChoiceOutput) for piece in backlog._packed) == 0
    assert len(backlog._newest) <= 2
    assert backlog.packed_bytes < 4000 * 400
