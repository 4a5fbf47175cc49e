"""The encoder cache's bookkeeping."""

from __future__ import annotations

from inference_service.engine.encoder_cache import EncoderCache


def filled(cache: EncoderCache[str], key: bytes, num_tokens: int) -> None:
    assert cache.reserve(key, num_tokens)
    cache.fill(key, key.decode())


def test_values_come_back() -> None:
    cache: EncoderCache[str] = EncoderCache(10)
    filled(cache, b"a", 4)
    assert b"a" in cache
    assert cache.get(b"a") == "a"
    assert cache.get(b"b") is None
    assert (len(cache), cache.num_tokens) == (1, 4)


def test_the_least_recently_used_goes_first() -> None:
    cache: EncoderCache[str] = EncoderCache(10)
    for key in (b"a", b"b"):
        filled(cache, key, 4)
    cache.pin(b"a", "x")
    cache.unpin(b"a", "x")
    filled(cache, b"c", 4)
    assert b"b" not in cache
    assert b"a" in cache
    assert cache.num_tokens == 8


def test_pinned_images_stay() -> None:
    cache: EncoderCache[str] = EncoderCache(10)
    filled(cache, b"a", 6)
    for owner in "xxy":
        cache.pin(b"a", owner)
    assert [cache.is_pinned(b"a", owner) for owner in "xyz"] == [True, True, False]
    assert not cache.reserve(b"b", 5)
    cache.unpin(b"a", "x")
    assert not cache.reserve(b"b", 5)
    assert b"a" in cache, "a refused reservation evicts nothing"
    cache.unpin(b"a", "y")
    assert cache.reserve(b"b", 5)
    assert b"a" not in cache


def test_only_as_much_as_needed_goes() -> None:
    cache: EncoderCache[str] = EncoderCache(9)
    for key in (b"a", b"b", b"c"):
        filled(cache, key, 3)
    assert cache.reserve(b"d", 2)
    assert b"a" not in cache
    assert b"b" in cache


def test_too_large_for_the_whole_cache() -> None:
    cache: EncoderCache[str] = EncoderCache(9)
    filled(cache, b"a", 3)
    assert not cache.reserve(b"b", 10)
    assert b"a" in cache


def test_reservations_without_embeddings_can_be_dropped() -> None:
    cache: EncoderCache[str] = EncoderCache(9)
    filled(cache, b"a", 3)
    cache.reserve(b"b", 3)
    cache.pin(b"b", "x")
    cache.discard_unfilled()
    assert b"a" in cache
    assert b"b" not in cache
    assert cache.num_tokens == 3
    cache.unpin(b"b", "x")


def test_recently_evicted_images_are_known() -> None:
    cache: EncoderCache[str] = EncoderCache(10)
    for key in (b"a", b"b", b"c", b"d"):
        filled(cache, key, 5)
    known = [key for key in (b"a", b"b", b"c", b"d", b"e") if cache.was_evicted(key)]
    assert known == [b"a", b"b"], "as many tokens as there is room for"
    filled(cache, b"a", 5)
    assert not cache.was_evicted(b"a")
    filled(cache, b"e", 5)
    assert [cache.was_evicted(key) for key in (b"b", b"c", b"d")] == [False, True, True]


def test_an_image_that_was_never_encoded_was_not_evicted() -> None:
    cache: EncoderCache[str] = EncoderCache(10)
    assert cache.reserve(b"a", 5)
    cache.discard_unfilled()
    assert not cache.was_evicted(b"a")
