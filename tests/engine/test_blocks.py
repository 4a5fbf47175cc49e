"""Pages, references and prefixes, example by example; `test_scheduler_properties` covers the rest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inference_service.engine.blocks import BlockManager, page_hash, root_hash
from inference_service.engine.sequence import Sequence
from inference_service.engine_protocol.messages import EngineRequest, ImageSpan, SamplingParams
from tests.support.image_spans import span


def sequence(*token_ids: int, images: tuple[ImageSpan, ...] = (), salt: bytes = b"") -> Sequence:
    return Sequence(
        EngineRequest(
            request_id="x",
            prompt_token_ids=token_ids,
            images=images,
            sampling=SamplingParams(max_tokens=10),
            cache_salt=salt,
        )
    )


def image(key: bytes, start: int, num_tokens: int) -> ImageSpan:
    return span(key * 32, start, num_tokens)


def compute(blocks: BlockManager, sequence: Sequence) -> None:
    sequence.num_computed_tokens = len(sequence)
    blocks.publish(sequence, len(sequence))


def run(blocks: BlockManager, sequence: Sequence) -> Sequence:
    """Admits, computes and releases."""
    assert blocks.admit(sequence)
    compute(blocks, sequence)
    blocks.release(sequence)
    return sequence


def hits(blocks: BlockManager, sequence: Sequence) -> int:
    return len(blocks._find_prefix(sequence)) * blocks.page_size


def test_hash_depends_on_everything() -> None:
    base = page_hash(root_hash(b""), [1, 2], [(b"k" * 32, 0)])
    others = [
        page_hash(root_hash(b"salt"), [1, 2], [(b"k" * 32, 0)]),
        page_hash(root_hash(b""), [2, 1], [(b"k" * 32, 0)]),
        page_hash(root_hash(b""), [1, 2], [(b"l" * 32, 0)]),
        page_hash(root_hash(b""), [1, 2], [(b"k" * 32, 1)]),
        page_hash(root_hash(b""), [1, 2], [(b"k" * 32, -1)]),
        page_hash(root_hash(b""), [1, 2], []),
        page_hash(root_hash(b""), [1, 2], [(b"k" * 32, 0), (b"k" * 32, 0)]),
    ]
    assert len({base, *others}) == 1 + len(others)
    assert base == page_hash(root_hash(b""), [1, 2], [(b"k" * 32, 0)])


def test_full_pages_are_shared_and_the_last_token_is_computed() -> None:
    blocks = BlockManager(10, 2)
    first = sequence(1, 2, 3, 4, 5)
    blocks.admit(first)
    compute(blocks, first)
    second = sequence(1, 2, 3, 4)
    blocks.admit(second)
    assert second.num_computed_tokens == 2, "page 1 holds the last token"
    assert second.pages[0] == first.pages[0]
    assert second.pages[1] != first.pages[1]
    assert blocks.num_used == 4
    blocks.release(first)
    assert blocks.num_used == 2
    blocks.release(second)
    assert (blocks.num_used, blocks.num_cached) == (0, 2)


def test_uncomputed_pages_are_not_found() -> None:
    blocks = BlockManager(10, 2)
    first = sequence(1, 2, 3, 4, 5)
    blocks.admit(first)
    assert hits(blocks, sequence(1, 2, 3, 4, 5)) == 0
    first.num_computed_tokens = 3
    blocks.publish(first, 3)
    assert hits(blocks, sequence(1, 2, 3, 4, 5)) == 2


def test_equal_prefix_behind_another_begin_is_not_found() -> None:
    blocks = BlockManager(10, 2)
    run(blocks, sequence(1, 2, 3, 4, 5))
    assert hits(blocks, sequence(9, 9, 3, 4, 5)) == 0


def test_salts_are_apart() -> None:
    blocks = BlockManager(10, 2)
    run(blocks, sequence(1, 2, 3, salt=b"a"))
    assert hits(blocks, sequence(1, 2, 3, salt=b"b")) == 0
    assert hits(blocks, sequence(1, 2, 3, salt=b"a")) == 2


def test_images_are_part_of_the_prefix() -> None:
    blocks = BlockManager(20, 2)
    run(blocks, sequence(1, 9, 9, 9, 2, 3, 4, images=(image(b"a", 1, 3),)))
    assert hits(blocks, sequence(1, 9, 9, 9, 2, 3, 4, images=(image(b"a", 1, 3),))) == 6
    assert hits(blocks, sequence(1, 9, 9, 9, 2, 3, 4, images=(image(b"b", 1, 3),))) == 0
    # The same placeholders, and another image from the second page on.
    halves = (image(b"a", 1, 1), image(b"b", 2, 2))
    assert hits(blocks, sequence(1, 9, 9, 9, 2, 3, 4, images=halves)) == 2


def test_cached_pages_go_last_and_oldest_first() -> None:
    blocks = BlockManager(4, 1)
    run(blocks, sequence(1, 2))
    run(blocks, sequence(3, 4))
    assert blocks.num_cached == 4
    newcomer = sequence(5)
    blocks.admit(newcomer)
    assert hits(blocks, sequence(1, 2, 0)) == 1, "the tail of the oldest went, its begin is there"
    assert hits(blocks, sequence(3, 4, 0)) == 2


def test_a_hit_renews() -> None:
    blocks = BlockManager(3, 1)
    run(blocks, sequence(1))
    run(blocks, sequence(2))
    run(blocks, sequence(1, 7))
    blocks.admit(sequence(8))
    assert hits(blocks, sequence(1, 0)) == 1
    assert hits(blocks, sequence(2, 0)) == 0


def test_admission_counts_the_hits_it_takes_from_the_cached_pages() -> None:
    blocks = BlockManager(3, 1)
    run(blocks, sequence(1, 2))
    assert not blocks.admit(sequence(1, 2, 3, 4)), "two hits and one free page are not four pages"
    assert (blocks.num_used, blocks.num_cached) == (0, 2)
    assert blocks.admit(sequence(1, 2, 3))


def test_refused_admission_changes_nothing() -> None:
    blocks = BlockManager(2, 2)
    refused = sequence(1, 2, 3, 4, 5)
    assert not blocks.admit(refused)
    assert refused.pages == []
    assert blocks.num_available == 2


def test_a_sequence_takes_a_page_when_its_last_is_full() -> None:
    blocks = BlockManager(2, 2)
    growing = sequence(1, 2)
    blocks.admit(growing)
    growing.token_ids.append(3)
    assert blocks.grow(growing)
    growing.token_ids.append(4)
    assert blocks.grow(growing)
    assert len(growing.pages) == 2
    growing.token_ids.append(5)
    assert not blocks.grow(growing)


def test_twins_keep_their_own_pages() -> None:
    """Two equal sequences computed side by side: one page is findable, both are given back."""
    blocks = BlockManager(4, 2)
    one, two = sequence(1, 2, 3), sequence(1, 2, 3)
    blocks.admit(one)
    blocks.admit(two)
    compute(blocks, one)
    compute(blocks, two)
    assert not set(one.pages) & set(two.pages)
    blocks.release(one)
    blocks.release(two)
    assert (blocks.num_used, blocks.num_cached) == (0, 1)
    assert hits(blocks, sequence(1, 2, 3)) == 2


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(1, 12)), max_size=20))
def test_pages_beside_sequences_are_counted(changes: list[tuple[bool, int, int]]) -> None:
    """Each change ends a sequence, or adds an answer to one; a prompt has a few tokens of one or the other text."""
    blocks = BlockManager(19, 2)
    running: list[Sequence] = []
    for ends, which, length in changes:
        if ends and which < len(running):
            blocks.release(running.pop(which))
        elif which < len(running):
            running[which].token_ids.append(5)
            blocks.grow(running[which])
        elif blocks.admit(one := sequence(*range(which, which + length))):
            compute(blocks, one)
            running.append(one)
        for kept in (running, running[::2], running[:1], []):
            pages = {page for one in kept for page in one.pages}
            assert blocks.num_beside(kept) == 19 - len(pages)


def test_without_caching_nothing_is_kept() -> None:
    blocks = BlockManager(4, 2, enable_prefix_caching=False)
    run(blocks, sequence(1, 2, 3))
    assert blocks.num_cached == 0
    assert hits(blocks, sequence(1, 2, 3)) == 0


def misses(blocks: BlockManager, *token_ids: int) -> dict[str, int]:
    """Why the tokens of a prompt are not found; none of them is computed."""
    asked = sequence(*token_ids)
    assert blocks.admit(asked)
    found = asked.prefix_misses
    blocks.release(asked)
    return dict(found)


def test_misses_tell_new_pages_from_evicted_ones() -> None:
    blocks = BlockManager(4, 2)
    assert misses(blocks, 1, 2, 3, 4, 5) == {"new": 4, "partial_page": 1}
    run(blocks, sequence(1, 2, 3, 4, 5))
    assert misses(blocks, 1, 2, 3, 4, 5) == {"partial_page": 1}
    assert misses(blocks, 1, 2, 3, 9, 9, 9) == {"new": 2, "partial_page": 2}
    assert misses(blocks, 1, 2, 3, 4) == {"partial_page": 2}, "the last token is computed"
    run(blocks, sequence(*range(11, 18)))  # takes all pages
    assert misses(blocks, 1, 2, 3, 4, 5) == {"evicted": 4, "partial_page": 1}


def test_what_twice_the_cache_would_not_have_is_new_again() -> None:
    blocks = BlockManager(2, 2)
    run(blocks, sequence(1, 2, 3))
    for number in range(10, 40, 10):
        assert misses(blocks, 1, 2, 3)["partial_page"] == 1
        run(blocks, sequence(*range(number, number + 4)))
    assert misses(blocks, 1, 2, 3) == {"new": 2, "partial_page": 1}
    run(blocks, sequence(1, 2, 3))
    assert misses(blocks, 1, 2, 3) == {"partial_page": 1}


def test_misses_by_choice() -> None:
    blocks = BlockManager(4, 2)
    asked = sequence(1, 2, 3)
    assert blocks.admit(asked, use_cache=False)
    assert asked.prefix_misses == {"prompt_logprobs": 3}
    assert misses(BlockManager(4, 2, enable_prefix_caching=False), 1, 2, 3) == {"disabled": 3}
