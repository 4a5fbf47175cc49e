"""Greedy answers of the engine are those of transformers, whatever batch, chunks, preemptions and caches do."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from inference_service.engine import blocks as blocks_module
from inference_service.engine.blocks import BlockManager
from inference_service.engine.core import EngineCore
from inference_service.engine.inputs import SequenceInput
from inference_service.engine.runner import ModelRunner
from tests.support.conversations import (
    Conversation,
    ask,
    conversation,
    generate,
    video_conversations,
)
from tests.support.tiny_qwen_vl import build_checkpoint, image, reference_model


# With these seeds no greedy choice of the prompts is a near tie; see `generate`.
SEEDS = {"qwen2_vl": 5, "qwen2_5_vl": 1, "qwen3_vl": 4}


@pytest.fixture(scope="module", params=SEEDS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(request.param)
    return build_checkpoint(directory, family=request.param, seed=SEEDS[request.param])


@pytest.fixture(scope="module")
def reference(checkpoint: Path):
    return reference_model(checkpoint)


@pytest.fixture(scope="module")
def expected(reference, prompts: list[Conversation]) -> list[list[int]]:
    return [generate(reference, prompt) for prompt in prompts]


def test_the_prompts_tell_apart(prompts, expected) -> None:
    """A test of equality is worth nothing if all answers are equal."""
    assert len(prompts) >= 24
    assert {len(prompt.seen) for prompt in prompts} == {0, 1, 2, 3}
    assert all(len(answer) >= 3 for answer in expected)
    assert all(one != other for one, other in combinations(expected, 2))


def test_requests_alone_answer_as_transformers(make_core, prompts, expected) -> None:
    core = make_core(enable_prefix_caching=False)
    assert [ask(core, [prompt])[0] for prompt in prompts] == expected
    assert core.stats.preemptions == core.stats.prefix_hits == 0


def test_in_mixed_batches_of_8(make_core, prompts, expected) -> None:
    core = make_core(max_num_seqs=8)
    assert ask(core, prompts) == expected


@pytest.mark.parametrize("tokens", [pytest.param(1, marks=pytest.mark.full), 7, 64])
def test_prefill_in_chunks(make_core, prompts, expected, tokens: int) -> None:
    """Chunks end inside images; decodes and chunks share a step."""
    core = make_core(max_num_seqs=8, max_num_batched_tokens=tokens)
    assert ask(core, prompts) == expected


def test_order_does_not_matter(make_core, prompts, expected) -> None:
    core = make_core(max_num_seqs=5, max_num_batched_tokens=50)
    assert ask(core, prompts[::-1]) == expected[::-1]


@pytest.mark.parametrize(("caching", "chunk"), [(True, 2048), (False, 2048), (True, 16)])
def test_forced_preemption(make_core, prompts, expected, caching: bool, chunk: int) -> None:
    longest = max(len(prompt.token_ids) for prompt in prompts)
    core = make_core(
        num_kv_pages=-(-(longest + 14) // 4) + 8,
        max_model_len=longest + 14,
        enable_prefix_caching=caching,
        max_num_batched_tokens=chunk,
        encoder_cache_tokens=70,
    )
    assert ask(core, prompts) == expected
    assert core.stats.preemptions > 0


def test_cache_hits(make_core, prompts, expected) -> None:
    core = make_core(max_num_seqs=8)
    assert ask(core, prompts) == expected
    before = core.stats
    assert ask(core, prompts[::-1]) == expected[::-1]
    after = core.stats
    assert after.prefix_hits - before.prefix_hits > 0.9 * (
        after.prefix_queries - before.prefix_queries
    )


def test_encoder_cache_hits(make_core, prompts, expected) -> None:
    core = make_core(enable_prefix_caching=False)
    assert ask(core, prompts) == expected
    before = core.stats
    assert ask(core, prompts) == expected
    images = sum(len(prompt.seen) for prompt in prompts)
    assert core.stats.encoder_queries - before.encoder_queries == images
    assert core.stats.encoder_hits - before.encoder_hits == images


def test_a_hit_may_end_inside_an_image(make_core, reference) -> None:
    """The rest of the image is computed, from the right place in it."""
    shown = image(5, 5, 8)
    first, second = conversation(["ab", shown, "c"]), conversation(["ab", shown, "d"])
    core = make_core(page_size=16)
    ask(core, [first])
    assert ask(core, [second]) == [generate(reference, second)]
    assert 0 < core.stats.prefix_hits < first.images[0].start + first.images[0].num_tokens


def test_one_image_under_two_budgets(make_core, prompts, expected) -> None:
    assert prompts[7].images[0].num_tokens != prompts[8].images[0].num_tokens
    core = make_core()
    assert ask(core, [prompts[7], prompts[8]]) == [expected[7], expected[8]]
    assert expected[7] != expected[8]


@pytest.mark.parametrize("checkpoint", ["qwen2_vl", "qwen2_5_vl"], indirect=True)
def test_videos(make_core, reference) -> None:
    """Alone, in chunks that end inside them, together, and again from the caches."""
    videos = video_conversations()
    per_second = getattr(reference.config.vision_config, "tokens_per_second", 0)
    rate = {"second_per_grid_ts": [1 / per_second] * 2} if per_second else {}
    wanted = [generate(reference, video, **rate) for video in videos]
    for changes in ({"max_num_seqs": 1}, {"max_num_batched_tokens": 7}, {}):
        core = make_core(**changes)
        assert ask(core, videos) == wanted
        assert ask(core, videos[::-1]) == wanted[::-1]


def test_repetition_penalty(make_core, prompts, reference) -> None:
    """Prompt, placeholders and answer count as in transformers."""
    some = [prompts[3], prompts[12], prompts[20]]
    wanted = [generate(reference, prompt, repetition_penalty=1.4) for prompt in some]
    assert ask(make_core(), some, repetition_penalty=1.4) == wanted
    assert ask(make_core(), some) != wanted


# The suite above must be able to fail. Each mutation below is a mistake that somebody could make.


def broken(core: EngineCore, prompts: list[Conversation], expected: list[list[int]]) -> bool:
    """Whether a first or a second pass (with warm caches) gives other answers."""
    return ask(core, prompts) != expected or ask(core, prompts) != expected


def test_notices_exchanged_images(make_core, prompts, expected) -> None:
    prompt = prompts[12]
    first, second = prompt.seen
    exchanged = replace(prompt, seen=(second, first))
    assert ask(make_core(), [exchanged]) != [expected[12]]


def test_notices_a_prefix_hash_without_images(
    make_core, prompts, expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = blocks_module.page_hash
    monkeypatch.setattr(blocks_module, "page_hash", lambda parent, ids, _: real(parent, ids, []))
    assert broken(make_core(max_num_seqs=8), prompts, expected)


def test_notices_a_hit_on_a_wrong_page(
    make_core, prompts, expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = BlockManager._find_prefix

    def find_prefix(self: BlockManager, sequence) -> list[int]:
        pages = real(self, sequence)
        return [*pages[1:2], *pages[1:]]  # the first page is taken for the second

    monkeypatch.setattr(BlockManager, "_find_prefix", find_prefix)
    assert broken(make_core(max_num_seqs=8), prompts, expected)


def test_notices_one_key_for_two_images(make_core, prompts, expected) -> None:
    one, two = prompts[4], prompts[5]
    assert one.images[0].num_tokens == two.images[0].num_tokens
    mixed_up = replace(two, images=one.images)
    assert broken(make_core(), [one, mixed_up], expected[4:6])
    assert broken(make_core(enable_prefix_caching=False), [one, mixed_up], expected[4:6])


def test_notices_a_chunk_that_restarts_its_image(
    make_core, prompts, expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ModelRunner._image_rows

    def image_rows(self: ModelRunner, chunks):
        rows, embeddings = real(self, chunks)
        images = [i for c in chunks for i in c.sequence.images_between(c.start, c.end)]
        restarted = []
        for span, part in zip(images, embeddings, strict=True):
            cached = self._encoder_cache.get(span.key)
            assert cached is not None
            restarted.append(cached[: len(part)])
        return rows, restarted

    monkeypatch.setattr(ModelRunner, "_image_rows", image_rows)
    assert broken(make_core(max_num_batched_tokens=7), prompts, expected)
    assert not broken(make_core(enable_prefix_caching=False), prompts[4:6], expected[4:6])


def test_notices_text_positions_behind_images(
    make_core, prompts, expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ModelRunner._input

    def without_delta(self: ModelRunner, chunk) -> SequenceInput:
        return replace(real(self, chunk), delta=0)

    monkeypatch.setattr(ModelRunner, "_input", without_delta)
    assert broken(make_core(), prompts, expected)
