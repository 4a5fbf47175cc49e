"""What it takes to name the pages of prompts: their hashes, by definition and by number, and the plans they take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st
import pytest

from inference_service.engine import blocks as blocks_module
from inference_service.engine import shares as shares_module
from inference_service.engine.blocks import BlockManager, page_hash, root_hash
from inference_service.engine.encoder_cache import EncoderCache
from inference_service.engine.plan import Plan
from inference_service.engine.scheduler import Scheduler
from inference_service.engine.sequence import Sequence, choices_of
from inference_service.engine_protocol.messages import (
    EngineRequest,
    FinishReason,
    ImageSpan,
    Probe,
    SamplingParams,
)


LEAST = blocks_module._LEAST_HASHES
PER_PLAN = blocks_module._HASHES_PER_PLAN


def request(length: int, *, images: tuple[ImageSpan, ...] = (), **changes: Any) -> EngineRequest:
    made = EngineRequest(
        request_id="x",
        prompt_token_ids=tuple(range(length)),
        images=images,
        sampling=SamplingParams(max_tokens=10),
    )
    return replace(made, **changes)


def spans(lengths: Iterable[tuple[int, int]]) -> tuple[ImageSpan, ...]:
    """Images, each so many tokens behind the one before it, and so many tokens long."""
    made: list[ImageSpan] = []
    end = 0
    for gap, num_tokens in lengths:
        made.append(
            ImageSpan(
                key=len(made).to_bytes(32, "big"),
                start=end + gap,
                num_tokens=num_tokens,
                grid=(1, 2, 2 * num_tokens),
                height=2,
                width=2,
                pixel_offset=0,
            )
        )
        end += gap + num_tokens
    return tuple(made)


LAYOUTS = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 9)), max_size=8).map(spans)


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """All hashes that are computed."""
    names: list[bytes] = []

    def counted(*page: Any) -> bytes:
        names.append(page_hash(*page))
        return names[-1]

    monkeypatch.setattr(blocks_module, "page_hash", counted)
    return names


@given(LAYOUTS, st.integers(0, 90), st.integers(0, 20))
def test_images_between(images: tuple[ImageSpan, ...], start: int, length: int) -> None:
    end = start + length
    overlapping = [
        image for image in images if image.start < end and start < image.start + image.num_tokens
    ]
    assert Sequence(request(1, images=images)).images_between(start, end) == overlapping


@given(LAYOUTS, st.integers(1, 8), st.integers(0, 1), st.integers(0, 6))
def test_hashes_are_what_they_are_defined_to_be(
    images: tuple[ImageSpan, ...], page_size: int, level: int, probe_tokens: int
) -> None:
    length = max([40, *(image.start + image.num_tokens for image in images)])
    probes = (Probe(token_ids=tuple(range(probe_tokens)), candidate_ids=(1,)),) * 3
    asked = request(length, images=images, cache_salt=b"s", probes=probes, num_choices=3)
    blocks = BlockManager(1000, page_size)
    for choice in choices_of(asked, lambda _: level):
        blocks.admit(choice)
        blocks.publish(choice, len(choice))
        expected, name = [], root_hash(b"s", level)
        for start in range(0, len(choice) - page_size + 1, page_size):
            end = start + page_size
            here = [
                (image.key, start - image.start)
                for image in images
                if image.start < end and start < image.start + image.num_tokens
            ]
            name = page_hash(name, choice.token_ids[start:end], here)
            expected.append(name)
        assert choice.page_hashes == expected


def test_hashes_do_not_change() -> None:
    one = Sequence(request(64, images=spans([(3, 20), (0, 1), (9, 5)]), cache_salt=b"s"))
    blocks = BlockManager(10, 16)
    blocks.admit(one)
    blocks.publish(one, 64)
    names = [name.hex()[:8] for name in one.page_hashes]
    assert names == ["eb778e95", "e5187e94", "7dbdb64d", "13f7c4a0"]


def test_choices_hash_their_prompt_once(hashed: list[bytes]) -> None:
    blocks = BlockManager(1000, 4)
    for _ in range(2):
        choices = choices_of(request(401, num_choices=8))
        for choice in choices:
            assert blocks.admit(choice)
        for choice in choices:
            blocks.publish(choice, 401)
            blocks.release(choice)
        assert len(hashed) == len(set(hashed)) == 100
        hashed.clear()


def test_answers_of_choices_have_hashes_of_their_own() -> None:
    blocks = BlockManager(100, 4)
    names = set()
    for index, choice in enumerate(choices_of(request(10, num_choices=3))):
        blocks.admit(choice)
        choice.token_ids += [index] * 6
        assert blocks.grow(choice)
        blocks.publish(choice, 16)
        assert len(choice.page_hashes) == 4
        names.update(choice.page_hashes)
    assert len(names) == 2 + 3 * 2, "the answer begins within the third page"


def test_choices_with_other_frequencies_share_no_hash() -> None:
    probes = (
        Probe(token_ids=(), candidate_ids=(1,)),
        Probe(token_ids=(7,) * 20, candidate_ids=(1,)),
    )
    asked = request(40, probes=probes, num_choices=2)
    short, long = choices_of(asked, lambda length: int(length > 50))
    blocks = BlockManager(100, 4)
    for choice in (short, long):
        blocks.admit(choice)
        blocks.publish(choice, len(choice))
    assert not set(short.page_hashes) & set(long.page_hashes)


def test_a_page_looks_at_few_of_many_images() -> None:
    looks = []

    class Watched:
        num_tokens, key = 1, bytes(32)

        def __init__(self, index: int) -> None:
            self._index = index

        @property
        def start(self) -> int:
            looks.append(self._index)
            return 10 + 3 * self._index

    images: Any = tuple(Watched(index) for index in range(512))
    sequence = Sequence(request(2000))
    object.__setattr__(sequence.request, "images", images)
    for start in range(0, 2000, 16):
        sequence.images_between(start, start + 16)
    assert len(looks) < 125 * 40


def cached(blocks: BlockManager, length: int, **changes: Any) -> None:
    """Has the pages of a prompt cached."""
    asked = Sequence(request(length, **changes))
    assert blocks.admit(asked)
    blocks.publish(asked, length)
    blocks.release(asked)


def other(length: int, salt: bytes) -> Sequence:
    return Sequence(request(length, cache_salt=salt))


def plans(blocks: BlockManager) -> Iterator[int]:
    for number in range(1000):
        blocks.begin_plan()
        yield number
    raise AssertionError("for ever")


def test_a_long_prompt_is_hashed_in_several_plans(hashed: list[bytes]) -> None:
    blocks = BlockManager(9000, 1)
    cached(blocks, 8001)
    asked = Sequence(request(8001))
    put_off = 0
    for _ in plans(blocks):
        hashed.clear()
        if blocks.admit(asked):
            break
        assert (blocks.puts_off(asked), asked.pages) == (True, [])
        assert 0 < len(hashed) <= PER_PLAN
        put_off += 1
    assert put_off > 2
    assert asked.num_computed_tokens == 8000, "all is found, as ever"


def test_one_plan_hashes_little_for_many(hashed: list[bytes]) -> None:
    blocks = BlockManager(30_000, 1)
    salts = [bytes([number]) for number in range(10)]
    for salt in salts:
        cached(blocks, 2900, cache_salt=salt)
    waiting = [other(2900, salt) for salt in salts]
    for _ in plans(blocks):
        hashed.clear()
        waiting = [one for one in waiting if not blocks.admit(one)]
        assert len(hashed) <= PER_PLAN + LEAST * len(salts)
        if not waiting:
            return


def test_the_last_one_is_not_put_off_for_ever() -> None:
    """Others come before it in each plan, and have used up what a plan hashes."""
    blocks = BlockManager(30_000, 1)
    cached(blocks, 3000, cache_salt=b"late")
    salts = [bytes([number]) for number in range(10)]
    for salt in salts:
        cached(blocks, 2500, cache_salt=salt)
    late = other(3000, b"late")
    for number in plans(blocks):
        for salt in salts:
            blocks.fits(other(2500, salt))
        if blocks.fits(late):
            return
        assert number <= 3000 // LEAST


def test_short_and_new_prompts_are_not_put_off() -> None:
    blocks = BlockManager(20_000, 1)
    cached(blocks, LEAST, cache_salt=b"short")
    cached(blocks, 8000)
    blocks.begin_plan()
    for _ in range(20):
        blocks.fits(Sequence(request(8000)))
    assert blocks.fits(other(LEAST, b"short"))
    assert blocks.fits(other(9000, b"new"))


def test_what_is_not_looked_for_is_not_put_off(hashed: list[bytes]) -> None:
    blocks = BlockManager(20_000, 1)
    cached(blocks, 8000)
    hashed.clear()
    asked = Sequence(request(8000))
    assert blocks.fits(asked, use_cache=False)
    assert not blocks.puts_off(asked)
    assert not hashed


class Engine:
    """A scheduler with pages of one token; its steps sample the token 7.

    Attributes:
        now_s: The time, which stands still.
    """

    def __init__(self, *, pages: int, seqs: int = 8) -> None:
        self.now_s = 0.0
        self.blocks = BlockManager(pages, 1)
        self.scheduler = Scheduler(
            self.blocks,
            cast(EncoderCache[Any], SimpleNamespace(capacity_tokens=0)),
            max_model_len=pages,
            max_num_seqs=seqs,
            max_num_batched_tokens=64,
            clock=lambda: self.now_s,
        )

    def add(self, name: str, length: int, caller: str, salt: bytes = b"") -> Sequence:
        sampling = SamplingParams(max_tokens=10_000)
        asked = request(length, request_id=name, caller=caller, cache_salt=salt, sampling=sampling)
        (sequence,) = choices_of(asked)
        self.scheduler.add([sequence])
        return sequence

    def step(self) -> Plan:
        plan = self.scheduler.schedule()
        self.scheduler.launched(plan.chunks)
        for chunk in plan.chunks:
            self.scheduler.commit(chunk, 7 if chunk.extends else None)
        return plan


def test_others_go_on_and_are_admitted_meanwhile() -> None:
    engine = Engine(pages=12_000)
    cached(engine.blocks, 8000, cache_salt=b"long")
    answer = engine.add("answer", 10, "a")
    engine.step()
    long = engine.add("long", 8000, "b", b"long")
    waits = [engine.add("more of a", 10, "a", b"1"), engine.add("of c", 10, "c", b"2")]
    put_off = 0
    while not long.pages:
        plan = engine.step()
        assert any(chunk.sequence is answer for chunk in plan.chunks)
        assert all(one.num_answer_tokens for one in waits), "they need not wait for it"
        put_off += 1
    assert put_off > 2
    assert long.num_cached_tokens == 7999


def test_nobody_is_preempted_before_it_is_known_what_is_cached() -> None:
    engine = Engine(pages=12_000, seqs=2)
    cached(engine.blocks, 8000, cache_salt=b"long")
    for name in ("x", "y"):
        engine.add(name, 10, "greedy", name.encode())
    for _ in range(2):
        engine.step()
    long = engine.add("long", 8000, "b", b"long")
    put_off = 0
    while not long.pages:
        assert engine.scheduler.counters.preemptions == 0
        engine.step()
        put_off += 1
    assert put_off > 2
    assert engine.scheduler.counters.preemptions == 1


def test_nobody_waits_for_a_late_one_that_is_put_off() -> None:
    """All slots were taken by others, so that it was not looked at before it was late."""
    engine = Engine(pages=12_000, seqs=2)
    cached(engine.blocks, 8000, cache_salt=b"long")
    answers = [engine.add(name, 10, name, name.encode()) for name in "xy"]
    engine.step()
    long = engine.add("long", 8000, "b", b"long")
    engine.now_s = 2 * shares_module._PATIENCE_S
    engine.step()
    assert not long.page_hashes
    for answer in answers:
        engine.scheduler.finish(answer, FinishReason.STOP_TOKEN)
    newcomer = engine.add("newcomer", 10, "c", b"new")
    engine.step()
    assert newcomer.num_answer_tokens
    put_off = 1
    while not long.pages:
        engine.step()
        put_off += 1
    assert put_off > 2
    assert newcomer.epoch == 0, "nobody gives way to it"


def test_it_is_not_told_whether_there_would_be_room_before_it_is_known_what_is_cached() -> None:
    engine = Engine(pages=12_000)
    cached(engine.blocks, 8000, cache_salt=b"long")
    engine.add("answer", 10, "a")
    engine.step()
    long = engine.add("long", 8000, "b", b"long")
    told = []
    for _ in plans(engine.blocks):
        told.append(engine.scheduler._batch.may_fit(long))
        if told[-1]:
            break
    assert len(told) > 3
