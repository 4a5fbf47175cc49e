"""Images are encoded in pieces between the tokens of answers in progress, and every image ends."""

from __future__ import annotations

from collections.abc import Sequence as Seq
import contextlib
from dataclasses import replace
import random
from typing import Any

import pytest
import torch

from inference_service.engine import runner
from inference_service.engine.core import EngineCore
from inference_service.engine.encoder_cache import EncoderCache
from inference_service.engine.encoding import Encoder, EncoderOutOfMemoryError
from inference_service.engine.pace import Pace
from inference_service.engine.pixels import send_pixels
from inference_service.engine.runner import ModelRunner
from inference_service.engine.sequence import Sequence
from inference_service.engine.stopwatch import Stopwatch
from inference_service.engine_protocol.messages import (
    EngineRequest,
    FinishReason,
    ImageSpan,
    SamplingParams,
)
from inference_service.kernels.pieces import Pieces
from tests.support.conversations import GREEDY, ask, conversation, drain
from tests.support.timeline import Timeline, use_timeline
from tests.support.tiny_qwen_vl import EOS_TOKENS, image


CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PIECE_S = 1.0


class Bench:
    """An encoder whose every piece takes a second, and one piece for each token of an image."""

    def __init__(self, timeline: Timeline | None = None) -> None:
        self.now = 0.0
        self.timeline = timeline
        self.cache: EncoderCache[str] = EncoderCache(1000)
        self.started: list[tuple[bytes, ...]] = []
        self.broken: dict[bytes, type[Exception]] = {}
        self.here: list[Sequence] = []
        device = CUDA if timeline else CPU
        self.encoder = Encoder(self, self.cache, Stopwatch(device), device, clock=lambda: self.now)

    def pixels(self, sequence: Sequence, span: ImageSpan) -> memoryview:
        assert sequence in self.here, "the pixels have left"
        return memoryview(span.key)

    def encode(self, images: Seq[tuple[ImageSpan, memoryview]]) -> Pieces[None]:
        keys = tuple(span.key for span, _ in images)
        assert keys == tuple(pixels for _, pixels in images)
        self.started.append(keys)
        for _ in range(sum(span.num_tokens for span, _ in images)):
            self.now += PIECE_S
            if self.timeline is not None:
                self.timeline.queue(PIECE_S)
            yield
        for key in keys:
            if key in self.broken:
                raise self.broken[key]("an image from hell")
        for key in keys:
            self.cache.fill(key, "embeddings")

    def want(self, *images: tuple[bytes, int], caller: str = "") -> Sequence:
        """A sequence with these images, each a key and tokens."""
        spans = [
            ImageSpan(
                key=key,
                start=0,
                num_tokens=size,
                grid=(1, 2, 2 * size),
                height=2,
                width=2,
                pixel_offset=0,
            )
            for key, size in images
        ]
        request = EngineRequest(
            request_id="r",
            prompt_token_ids=(1,),
            images=tuple(spans),
            sampling=SamplingParams(max_tokens=1),
            caller=caller,
        )
        sequence = Sequence(request)
        self.here.append(sequence)
        new = [span for span in spans if span.key not in self.cache]
        for span in spans:
            if span in new:
                assert self.cache.reserve(span.key, span.num_tokens)
            self.cache.pin(span.key, sequence)
        self.encoder.add([(sequence, span) for span in new])
        return sequence

    def leave(self, sequence: Sequence) -> None:
        self.here.remove(sequence)
        for span in sequence.request.images:
            self.cache.unpin(span.key, sequence)


def test_a_run_ends_when_its_time_is_over() -> None:
    bench = Bench()
    bench.want((b"a", 10))
    for expected in (3.0, 6.0, 9.0):
        assert bench.encoder.run(3 * PIECE_S) == set()
        assert bench.now == expected
        assert bench.encoder.busy
        assert bench.cache.get(b"a") is None
    bench.encoder.run(3 * PIECE_S)
    assert not bench.encoder.busy
    assert bench.cache.get(b"a") == "embeddings"
    assert bench.started == [(b"a",)]


def test_a_run_computes_one_piece_at_least() -> None:
    bench = Bench()
    bench.want((b"a", 2))
    bench.encoder.run(1e-9)
    assert bench.now == PIECE_S


def test_small_images_do_not_wait_for_large_ones_nor_for_ever() -> None:
    bench = Bench()
    bench.want((b"large", 30))
    for index in range(100):
        bench.want((f"small {index}".encode(), 1))
        bench.encoder.run(PIECE_S)
        if bench.cache.get(b"large"):
            break
    assert 30 < index < 90
    assert bench.cache.get(b"small 10")


@pytest.mark.parametrize("size", [1, 5, 50])
def test_an_image_does_not_wait_for_those_of_another_caller(size: int) -> None:
    """However many, small or large they are."""
    bench = Bench()
    for index in range(100 // size):
        bench.want((f"bulk {index}".encode(), size), caller="bulk")
    bench.encoder.run(PIECE_S)
    bench.want((b"mine", 4), caller="neighbour")
    runs = 0
    while not bench.cache.get(b"mine"):
        bench.encoder.run(PIECE_S)
        runs += 1
    assert runs <= 2 * (4 + 1), "every other one is for it"
    while bench.encoder.busy:
        bench.encoder.run(PIECE_S)
    assert len(bench.started) == 100 // size + 1


def test_an_image_for_nobody_is_dropped() -> None:
    bench = Bench()
    only = bench.want((b"a", 10))
    bench.encoder.run(PIECE_S)
    bench.leave(only)
    bench.encoder.run(PIECE_S)
    assert not bench.encoder.busy
    assert bench.now == PIECE_S
    assert b"a" not in bench.cache
    assert bench.cache.num_tokens == 0
    bench.want((b"a", 2))
    bench.encoder.run(9 * PIECE_S)
    assert bench.cache.get(b"a")


def test_an_image_whose_place_was_given_away_is_encoded_for_the_next_one() -> None:
    bench = Bench()
    first = bench.want((b"a", 5), (b"b", 5))
    bench.encoder.run(PIECE_S)
    bench.cache.unpin(b"a", first)
    assert bench.cache.reserve(b"c", 995), "a's place"
    assert b"a" not in bench.cache
    bench.cache.discard(b"c")
    bench.want((b"a", 5))
    bench.encoder.run(20 * PIECE_S)
    assert bench.cache.get(b"a")
    assert bench.cache.get(b"b")
    assert bench.started == [(b"a", b"b")]


@pytest.mark.parametrize("seed", range(30))
def test_who_comes_and_goes_leaves_the_images_of_others_alone(seed: int) -> None:
    """Pixels are there while a sequence is; images of several are encoded for those that stay."""
    chance = random.Random(seed)
    bench = Bench()
    bench.broken = dict.fromkeys((b"0", b"1"), RuntimeError)
    for _ in range(60):
        match chance.choice(["want", "want", "leave", "run", "run"]):
            case "want":
                keys = chance.sample("01234567", chance.randint(1, 4))
                bench.want(*((key.encode(), 1 + int(key)) for key in keys))
            case "leave" if bench.here:
                bench.leave(chance.choice(bench.here))
            case _:
                end(bench, bench.encoder.run(chance.randint(1, 9) * PIECE_S))
    while bench.encoder.busy:
        end(bench, bench.encoder.run(60))
    for sequence in bench.here:
        assert all(bench.cache.get(span.key) for span in sequence.request.images)


def end(bench: Bench, broken: set[bytes]) -> None:
    """What the pipeline does with who has a broken image."""
    assert broken <= bench.broken.keys()
    for sequence in list(bench.here):
        if any(span.key in broken for span in sequence.request.images):
            bench.leave(sequence)


def test_a_broken_image_is_told_from_the_others() -> None:
    bench = Bench()
    bench.broken = {b"b": RuntimeError}
    bench.want((b"a", 1), (b"b", 1), (b"c", 1))
    assert bench.encoder.run(60) == {b"b"}
    assert bench.cache.get(b"a")
    assert bench.cache.get(b"c")
    assert b"b" not in bench.cache
    assert not bench.encoder.busy


@pytest.mark.parametrize("error", [RuntimeError, ValueError, torch.OutOfMemoryError, MemoryError])
def test_an_image_that_fails_takes_no_time_of_a_gpu(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """Who waits for it can still be told how long its images took, as when it waits for others, too."""
    timeline = use_timeline(monkeypatch)
    bench = Bench(timeline)
    bench.broken = {b"b": error}
    sequence = bench.want((b"a", 2), (b"b", 3))
    with contextlib.suppress(EncoderOutOfMemoryError):
        bench.encoder.run(60)
    timeline.wait(timeline.end)
    alone = error in {RuntimeError, ValueError}  # then each is tried alone
    assert (bench.cache.get(b"a") is not None) == alone
    assert sum(seconds() for seconds in sequence.encodings) == (2 * PIECE_S if alone else 0)


def test_without_memory_all_images_are_given_up() -> None:
    bench = Bench()
    bench.broken = {b"a": torch.OutOfMemoryError}
    bench.want((b"b", 50))
    bench.encoder.run(PIECE_S)
    bench.want((b"a", 1))
    with pytest.raises(EncoderOutOfMemoryError) as caught:
        bench.encoder.run(60)
    assert caught.value.keys == {b"a"}
    assert not bench.encoder.busy
    assert len(bench.cache) == 0


# In the core

TEXT = conversation(["Tell me a story."])
LARGE = conversation(["Look: ", image(4, 6, 11), " and tell."])
OTHER = conversation(["Look: ", image(4, 6, 12), " and tell."])
LONG = SamplingParams(max_tokens=60, temperature=0.0, eos_token_ids=EOS_TOKENS, ignore_eos=True)


@pytest.fixture
def one_piece_a_step(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every step computes one piece; the list has the pieces of each step."""
    real, pieces = Encoder.run, []

    def run(self: Encoder, limit_s: float) -> set[bytes]:
        pieces.append(1)
        return real(self, 1e-9)

    monkeypatch.setattr(Encoder, "run", run)
    monkeypatch.setattr(Pace, "_measures_alone", lambda *_: False)
    monkeypatch.setattr(Pace, "encode_s_beside", lambda *_: 1.0)
    return pieces


def test_answers_get_their_tokens_between_the_pieces(
    make_core: Any, one_piece_a_step: list[int]
) -> None:
    core: EngineCore = make_core()
    core.add(TEXT.request("text", LONG), b"")
    core.step()
    core.add(LARGE.request("large"), LARGE.pixels)
    seen: list[str] = []
    while "large" not in seen:
        outputs = core.step()
        assert "text" in [output.request_id for output in outputs], "every step has a token"
        seen += [output.request_id for output in outputs]
    assert len(one_piece_a_step) > 5
    assert len(seen) > 5
    drain(core)


def test_no_piece_sends_the_pixels_of_many_images(
    make_core: Any, one_piece_a_step: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []

    def send(*image: Any) -> torch.Tensor:
        sent.append(len(one_piece_a_step))
        return send_pixels(*image)

    monkeypatch.setattr(runner, "send_pixels", send)
    core: EngineCore = make_core()
    shown = conversation(["Look: ", *(image(4, 6, seed) for seed in range(5)), " and tell."])
    core.add(shown.request("images"), shown.pixels)
    drain(core)
    assert len(sent) == len(set(sent)) == 5, "each image in a step of its own"


def test_images_get_on_beside_answers_without_end(make_core: Any) -> None:
    """With the real pace, which now and then computes answers alone."""
    core: EngineCore = make_core()
    endless = replace(LONG, max_tokens=1000)
    core.add(TEXT.request("text", endless), b"")
    core.step()
    core.add(LARGE.request("large"), LARGE.pixels)
    for _ in range(300):
        if "large" in [output.request_id for output in core.step()]:
            return
    pytest.fail("the image was not encoded in 300 steps")


def test_answers_are_the_same_in_pieces(make_core: Any, request: pytest.FixtureRequest) -> None:
    at_once = ask(make_core(), [TEXT, LARGE, TEXT])
    pieces = request.getfixturevalue("one_piece_a_step")
    assert ask(make_core(), [TEXT, LARGE, TEXT]) == at_once
    assert len(pieces) > 5


def test_a_request_can_leave_between_the_pieces(
    make_core: Any, one_piece_a_step: list[int]
) -> None:
    core: EngineCore = make_core()
    alone = ask(make_core(), [LARGE])
    core.add(LARGE.request("gone"), LARGE.pixels)
    core.step()
    core.step()
    assert core._pipeline._encoder.busy
    core.abort("gone")
    core.add(LARGE.request("stays"), LARGE.pixels)
    core.add(TEXT.request("text"), b"")
    answers = drain(core)
    assert answers["stays"].token_ids == alone[0]
    assert not core._pipeline._encoder.busy


@pytest.mark.parametrize("depth", [0, 1])
def test_an_image_for_nobody_takes_no_memory(
    make_core: Any, one_piece_a_step: list[int], depth: int
) -> None:
    core: EngineCore = make_core(pipeline_depth=depth)
    core.add(LARGE.request("gone"), LARGE.pixels)
    core.step()
    core.step()
    encoder = core._pipeline._encoder
    assert encoder.busy
    core.abort("gone")
    for _ in range(3):
        if core.has_work:
            assert core.step() == []
    assert not core.has_work
    assert encoder._cache.num_tokens == 0


def test_an_image_of_two_is_encoded_if_the_first_leaves_before(
    make_core: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client cancels and sends the same again, while answers get their tokens first."""
    alone = ask(make_core(), [LARGE])
    core: EngineCore = make_core()
    for name in ("gone", "stays"):
        core.add(LARGE.request(name), LARGE.pixels)
    with monkeypatch.context() as patch:
        patch.setattr(Pace, "encode_s_beside", lambda *_: 0.0)
        core.step()
    core.abort("gone")
    core.add(OTHER.request("gone"), OTHER.pixels)
    answers = drain(core)
    assert answers["stays"].token_ids == alone[0]
    assert answers["gone"].token_ids == ask(make_core(), [OTHER])[0]


def test_memory_runs_out_between_the_pieces(
    make_core: Any, one_piece_a_step: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends the request with the image, not an answer in progress."""
    real = ModelRunner.encode

    def encode(self: ModelRunner, images: Any) -> Pieces[None]:
        for _ in zip(range(3), real(self, images), strict=False):
            yield
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(ModelRunner, "encode", encode)
    core: EngineCore = make_core()
    core.add(LARGE.request("large"), LARGE.pixels)
    core.add(TEXT.request("text", GREEDY), b"")
    answers = drain(core)
    assert answers["large"].finish_reason is FinishReason.ERROR
    assert answers["text"].finish_reason is not FinishReason.ERROR
    assert not core.has_work
