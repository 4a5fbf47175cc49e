"""Conversations as token ids."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch

from inference_service.demo.batches import (
    SIZES,
    Batches,
    invent_example,
    make_batch,
    picture_tokens,
    progress_at,
)
from inference_service.demo.pictures import smart_resize
from inference_service.demo.questions import Exchange
from inference_service.engine.types import ImageSpan
from inference_service.models.positions import mrope_positions


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

    picture = "<|vision_start|>P<|vision_end|>"
    rest = "<|im_start|>assistant\nTwo.<|im_end|>\n<|im_start|>user\n有什么？<|im_end|>\n"
    rest += "<|im_start|>assistant\n圆形。<|im_end|>\n"
    assert f"<|im_start|>user\n{picture}How many?<|im_end|>\n{rest}" in texts
    assert f"<|im_start|>user\nHow many?{picture}<|im_end|>\n{rest}" in texts
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
    tokens, grid = picture_tokens(size), (1, size[1] // 16, size[0] // 16)
    first = ids.index(codec.picture)
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


def test_a_batch_follows_from_its_seed(codec):
    first, second = (make_batch(codec, 7, 0.5, 3) for _ in range(2))

    assert torch.equal(first.token_ids, second.token_ids)
    assert torch.equal(first.patches, second.patches)


def test_a_batch_holds_as_many_picture_tokens_as_pictures_need(codec):
    for seed in range(20):
        batch = make_batch(codec, seed, 0.75, 2)
        tokens = int((batch.token_ids == codec.picture).sum())
        if batch.patches is None:
            assert tokens == 0
        else:
            _, pictures, patches, _ = batch.patches.shape
            assert tokens == 2 * pictures * patches // 4
            assert patches == batch.grid[0] * batch.grid[1]


def test_the_curriculum_begins_with_single_shapes():
    assert progress_at(0) < progress_at(600) < progress_at(3000) == progress_at(10_000)


def test_without_pictures_there_are_no_patches():
    example = invent_example(Random(1), (128, 128), 0.5, 0)

    assert example.pictures == []
    assert len(example.turns) == 1


def test_resumed_batches_go_on_where_they_stopped(codec):
    source = iter(Batches(codec, 0, 2))
    next(source)
    next(source)

    resumed = next(iter(Batches(codec, 2, 2)))

    assert torch.equal(next(source).token_ids, resumed.token_ids)
