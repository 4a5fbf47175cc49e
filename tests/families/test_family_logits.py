"""Logits of the whole model equal those of transformers, over the paged cache in every way an engine runs it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from inference_service.engine.loader import load_model
from tests.support.paged_forward import PagedForward
from tests.support.tiny_qwen_vl import (
    FAMILIES,
    Clip,
    Seen,
    build_checkpoint,
    clip,
    image,
    prompt,
    reference_inputs,
    reference_logits,
    reference_model,
)


CPU = torch.device("cpu")
LAYOUTS: dict[str, list[int | Seen]] = {
    "text only": [33],
    "one token": [1],
    "one image": [4, image(3, 2, 1), 6],
    "image first": [image(2, 5, 2), 3],
    "image last": [3, image(5, 2, 3)],
    "two of one size": [2, image(2, 3, 4), 1, image(2, 3, 5), 2],
    "three shapes, neighbours": [5, image(4, 1, 6), image(1, 7, 7), 2, image(3, 3, 8), 9],
    "several turns": [9, image(2, 2, 9), 12, 14, image(4, 3, 10), 8, 21, image(2, 2, 11), 5],
    "beyond the position table": [2, image(9, 8, 12), 4],
    "a strip": [1, image(1, 24, 13), 1],
}


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory):
    return build_checkpoint(tmp_path_factory.mktemp(request.param), family=request.param)


@pytest.fixture(scope="module")
def reference(checkpoint):
    return reference_model(checkpoint)


def images_of(layout):
    return [item for item in layout if not isinstance(item, int)]


@pytest.mark.parametrize("name", LAYOUTS)
def test_logits_equal_transformers(name, model, reference):
    ids, spans = prompt(LAYOUTS[name], seed=len(name))
    images = images_of(LAYOUTS[name])
    expected = reference_logits(reference, ids, images)
    assert expected.std() >= 1
    torch.testing.assert_close(
        PagedForward(model).logits(ids, spans, images), expected, atol=1e-4, rtol=0
    )


VIDEOS = {
    "one video": [4, clip(3, 2, 4, 1), 6],
    "an odd frame": [2, clip(2, 4, 5, 2), 3],
    "one frame": [2, clip(2, 2, 1, 3), 3],
    "a long one": [2, clip(2, 1, 14, 4), 3],
    "beside images": [
        1,
        image(2, 3, 5),
        clip(4, 3, 3, 6),
        2,
        image(2, 2, 7),
        clip(3, 3, 4, 8),
        5,
    ],
}
STEPS = {"qwen2_vl": [1.0], "qwen2_5_vl": [1.0, 0.5, 1.3, 8.0]}


@pytest.mark.parametrize(
    ("checkpoint", "step"),
    [(family, step) for family, steps in STEPS.items() for step in steps],
    indirect=["checkpoint"],
)
@pytest.mark.parametrize("name", VIDEOS)
def test_videos_equal_transformers(name, step, model, reference):
    layout = [replace(i, time_step=step) if isinstance(i, Clip) else i for i in VIDEOS[name]]
    assert_equal(layout, model, reference)


@pytest.mark.parametrize("checkpoint", ["qwen3_vl"], indirect=True)
def test_videos_of_qwen3_vl_stand_in_pairs_of_frames(model, reference):
    """What the reference encodes as one video, we encode as its pairs: no frame sees another."""
    whole = clip(3, 4, 6, 1)
    pairs = [Clip(whole.frames[i : i + 2]) for i in range(0, 6, 2)]
    layout = [3, image(2, 2, 9), *(part for pair in pairs for part in (4, pair)), 5]
    ids, spans = prompt(layout)
    seen = images_of(layout)
    extra = reference_inputs(torch.tensor([ids]), [seen[0], whole])
    with torch.inference_mode():
        expected = reference(input_ids=torch.tensor([ids]), use_cache=False, **extra).logits[0]
    torch.testing.assert_close(
        PagedForward(model).logits(ids, spans, seen), expected, atol=1e-4, rtol=0
    )


def assert_equal(layout, model, reference):
    ids, spans = prompt(layout)
    seen = images_of(layout)
    expected = reference_logits(reference, ids, seen)
    assert expected.std() >= 1
    ours = PagedForward(model).logits(ids, spans, seen)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"tied": True},
        {"attention_bias": True},
        {"deepstack": (1,)},
        {"deepstack": ()},
        {"max_shard_size": "200KB", "tied": True},
        {"family": "qwen2_vl", "tied": True},
        {"family": "qwen2_5_vl", "tied": True},
    ],
    ids=str,
)
def test_variants_of_the_checkpoint(settings, tmp_path):
    build_checkpoint(tmp_path, seed=5, **settings)
    model = load_model(tmp_path, dtype=torch.float32, device=CPU)
    for layout in (LAYOUTS["several turns"], LAYOUTS["text only"]):
        ids, spans = prompt(layout)
        expected = reference_logits(reference_model(tmp_path), ids, images_of(layout))
        assert expected.std() >= 1
        ours = PagedForward(model).logits(ids, spans, images_of(layout))
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_chunked_prefill_and_decode_equal_one_pass(chunk, model, reference):
    layout = LAYOUTS["several turns"]
    ids, spans = prompt([*layout, 9])
    images = images_of(layout)
    expected = reference_logits(reference, ids, images)
    # The answer is text behind the prompt: its positions come from delta alone.
    engine = PagedForward(model)
    sequence = engine.add(ids[:-9], spans, images)
    sequence.ids = ids
    got = []
    while sequence.done < len(ids):
        left = len(ids) - 9 - sequence.done
        got.append(engine.step([(sequence, min(chunk, left) if left > 0 else 1)])[0])
    torch.testing.assert_close(torch.cat(got), expected, atol=1e-4, rtol=0)


def test_what_a_sequence_gets_does_not_depend_on_the_batch(model):
    layouts = list(LAYOUTS.values())
    prompts = [prompt([*layout, 6], seed=i) for i, layout in enumerate(layouts)]
    alone = [
        PagedForward(model).logits(*prompts[i], images_of(layout))
        for i, layout in enumerate(layouts)
    ]
    engine = PagedForward(model)
    running = [engine.add(*prompts[i], images_of(layout)) for i, layout in enumerate(layouts)]
    got: list[list[Any]] = [[] for _ in running]
    # Each starts a step later than the one before and takes other chunks: prefill and decode mix in every way.
    for step in range(200):
        work = []
        for i, sequence in enumerate(running[: step + 1]):
            left = len(sequence.ids) - sequence.done
            if left:
                work.append((sequence, 1 if left <= 6 else min(left - 6, 3 + i)))
        if not work:
            break
        for (sequence, _), logits in zip(work, engine.step(work), strict=True):
            got[running.index(sequence)].append(logits)
    for ours, expected in zip(got, alone, strict=True):
        torch.testing.assert_close(torch.cat(ours), expected, atol=2e-5, rtol=0)


def test_images_of_one_step_do_not_see_each_other(model):
    many = [
        image(2, 3, 1),
        image(4, 2, 2),
        image(2, 3, 3),
        image(1, 1, 4),
        image(3, 2, 5),
    ]
    grids = [(1, p.shape[0] // 8, p.shape[1] // 8) for p in many]
    with torch.inference_mode():
        together = model.encode_images([torch.from_numpy(p)[None] for p in many], grids)
        for p, grid, tokens in zip(many, grids, together, strict=True):
            (alone,) = model.encode_images([torch.from_numpy(p)[None]], [grid])
            levels = 1 + model.spec.decoder.deepstack_levels
            assert tokens.shape == (grid[1] * grid[2] // 4, 64 * levels)
            torch.testing.assert_close(tokens, alone, atol=1e-5, rtol=0)


def test_pixels_that_do_not_fit_their_grid_are_refused(model):
    with pytest.raises(ValueError, match="do not match the grid"):
        model.encode_images([torch.zeros(1, 16, 32, 3, dtype=torch.uint8)], [(1, 4, 2)])
    with pytest.raises(ValueError, match="do not match the grid"):
        model.encode_images([torch.zeros(3, 16, 32, 3, dtype=torch.uint8)], [(1, 2, 4)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_stays_near_float32(dtype, checkpoint, reference):
    layout = LAYOUTS["one image"]
    ids, spans = prompt(layout)
    model = load_model(checkpoint, dtype=dtype, device=CPU)
    ours = PagedForward(model).logits(ids, spans, images_of(layout))
    expected = reference_logits(reference, ids, images_of(layout))
    assert ours.dtype == torch.float32
    assert (ours - expected).std() < 0.05 * expected.std()
