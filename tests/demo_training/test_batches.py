"""Conversations as token ids."""

from __future__ import annotations

from itertools import islice, pairwise
from random import Random

import numpy as np
import pytest
import torch

from demo_training.batches import (
    POOL,
    batches,
    image_tokens,
    looks,
    make_batches,
)
from demo_training.examples import LESSONS, SIZES, invent_example, lesson_of
from demo_training.images import smart_resize
from demo_training.questions import Exchange
from inference_service.engine_protocol.messages import ImageSpan
from inference_service.families.qwen_common.positions import mrope_positions


def test_a_conversation_reads_as_the_template_writes_it(codec):
    turns = [
        Exchange("count", "en", "How many?", "Two."),
        Exchange("describe", "zh", "有什么？", "圆形。"),
    ]

    texts = set()
    for seed in range(40):
        ids, _ = codec.conversation(Random(seed), turns, 1, (128, 128))
        text = codec.tokenizer.decode(ids, skip_special_tokens=False)
        texts.add(text.replace("<|image_pad|>" * 16, "P"))

    image = "<|vision_start|>P<|vision_end|>"
    rest = "<|im_start|>assistant\nTwo.<|im_end|>\n<|im_start|>user\n有什么？<|im_end|>\n"
    rest += "<|im_start|>assistant\n圆形。<|im_end|>\n"
    assert f"<|im_start|>user\n{image}How many?<|im_end|>\n{rest}" in texts
    assert f"<|im_start|>user\nHow many?{image}<|im_end|>\n{rest}" in texts
    assert any(text.startswith("<|im_start|>system\nYou are a helpful") for text in texts)


def test_only_answers_and_their_ends_are_learned(codec):
    turns = [Exchange("count", "en", "How many?", "Two."), Exchange("x", "en", "What?", "A star.")]

    ids, learned = codec.conversation(Random(0), turns, 1, (128, 128))

    kept = [token for token, learn in zip(ids, learned, strict=True) if learn]
    text = codec.tokenizer.decode(kept, skip_special_tokens=False)
    assert text == "Two.<|im_end|>A star.<|im_end|>"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("number", [1, 2])
def test_positions_are_those_of_the_serving_path(codec, size, number):
    ids = codec.prompt("What is this?", number, size)
    tokens, grid = image_tokens(size), (1, size[1] // 16, size[0] // 16)
    first = ids.index(codec.image)
    spans = [
        ImageSpan(
            key=bytes(32),
            start=first + i * (tokens + 2),
            num_tokens=tokens,
            grid=grid,
            height=size[1],
            width=size[0],
            pixel_offset=0,
        )
        for i in range(number)
    ]

    served, _ = mrope_positions(len(ids), spans, 2)

    assert np.array_equal(codec.positions(ids, size), served)


def test_every_size_is_one_that_the_resize_keeps():
    assert all(smart_resize(*size) == size for size in SIZES)


def test_batches_follow_from_their_seed(codec):
    first, second = (make_batches(codec, 7, 3) for _ in range(2))

    for one, two in zip(first, second, strict=True):
        assert torch.equal(one.token_ids, two.token_ids)
        assert one.patches is not None
        assert two.patches is not None
        assert torch.equal(one.patches, two.patches)
        assert one.truth is not None
        assert two.truth is not None
        assert all(map(torch.equal, one.truth, two.truth))


def test_a_batch_holds_as_many_image_tokens_as_images_need(codec):
    for seed in range(12):
        for batch in make_batches(codec, seed, 2):
            tokens = int((batch.token_ids == codec.image).sum())
            if batch.patches is None:
                assert tokens == 0
                assert batch.truth is None
            else:
                _, images, patches, _ = batch.patches.shape
                assert tokens == 2 * images * patches // 4
                assert patches == batch.grid[0] * batch.grid[1]
                assert batch.truth is not None
                assert len(batch.truth.shapes) == 2 * images


def test_rows_of_like_length_are_together(codec):
    lengths = [
        sorted(int((row != codec.padding).sum()) for row in batch.token_ids)
        for batch in make_batches(codec, 3, 4)
    ]
    lengths.sort()

    assert all(one[-1] <= two[0] for one, two in pairwise(lengths))


def test_without_images_there_are_no_patches():
    example = invent_example(Random(1), (128, 128), 0)

    assert example.images == []
    assert len(example.turns) == 1


@pytest.mark.parametrize("done", [2, POOL + 1])
def test_resumed_batches_go_on_where_they_stopped(codec, done):
    whole = islice(batches(codec, 0, 2), done, None)

    resumed = next(batches(codec, done, 2))

    assert torch.equal(next(whole).token_ids, resumed.token_ids)


def test_workers_make_the_same_in_the_same_order(codec):
    alone = zip(batches(codec, 1, 2), looks(0, 1), strict=False)
    helped = zip(batches(codec, 1, 2, workers=2), looks(0, 1, workers=2), strict=False)

    for (batch, look), (same_batch, same_look) in islice(zip(alone, helped, strict=True), 7):
        assert torch.equal(batch.token_ids, same_batch.token_ids)
        assert torch.equal(look.patches, same_look.patches)


def test_looks_are_full_of_things():
    look = next(looks(0, 16))

    assert len(look.patches) == len(look.truth.shapes) == 16
    things = (look.truth.shapes[..., 0] > 0).sum() + (look.truth.characters[..., 0] > 0).sum()
    assert things / 16 > 5


def test_lessons_follow_each_other_and_end():
    seeds = range(LESSONS[-1].until + 8)
    taught = [lesson_of(seed) for seed in seeds]
    assert list(dict.fromkeys(filter(None, taught))) == list(LESSONS)
    assert all(taught[seed] is None for seed in seeds[::4])
    assert not any(taught[LESSONS[-1].until :])


@pytest.mark.parametrize("lesson", LESSONS)
def test_a_lesson_asks_what_it_teaches(lesson):
    asked, turns, words = set(), set(), set()
    for seed in range(40):
        example = invent_example(Random(seed), (128, 128), lesson.images, lesson)
        asked |= {turn.task for turn in example.turns}
        turns.add(len(example.turns))
        words.add(bool((example.labels[0].characters[..., 0] > 0).any()))
    assert set(lesson.tasks) <= asked
    assert max(turns) == lesson.turns
    assert (True in words) == (0 in lesson.counts)
    assert (False in words) == any(lesson.counts)
