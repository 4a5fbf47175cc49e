"""A cache that callers share."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inference_service.shared_cache import SharedCache


def key(number: int) -> bytes:
    return number.to_bytes(4)


def test_what_is_used_stays() -> None:
    cache: SharedCache[int] = SharedCache(3)
    for number in range(3):
        cache.put(key(number), "a", number)
    assert cache.get(key(0), "a") == 0
    cache.put(key(3), "a", 3)
    assert [cache.get(key(number), "a") for number in range(4)] == [0, None, 2, 3]


def test_one_caller_does_not_drive_out_what_others_have() -> None:
    cache: SharedCache[int] = SharedCache(8)
    for number in range(3):
        cache.put(key(number), "few", number)
    for number in range(100, 700):
        cache.put(key(number), "many", number)
    assert [cache.get(key(number), "few") for number in range(3)] == [0, 1, 2]
    assert len(cache) == 8


def test_a_value_is_of_whoever_used_it_last() -> None:
    cache: SharedCache[int] = SharedCache(4)
    cache.put(key(0), "many", 0)
    assert cache.get(key(0), "few") == 0
    for number in range(1, 50):
        cache.put(key(number), "many", number)
    assert cache.get(key(0), "few") == 0


def test_a_large_value_counts_as_several() -> None:
    cache: SharedCache[int] = SharedCache(8)
    for number in range(3):
        cache.put(key(number), "few", number)
    cache.put(key(10), "large", 10, 6)
    assert [cache.get(key(number), "few") for number in range(3)] == [None, 1, 2]
    for number in range(11, 50):
        cache.put(key(number), "large", number, 6)
        assert len(cache) == 3
    cache.put(key(99), "large", 99, 100)
    assert cache.get(key(99), "large") == 99
    assert len(cache) == 1


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 12), st.sampled_from("abc")), max_size=80),
    st.integers(1, 6),
)
def test_no_caller_loses_values_below_its_share(
    uses: list[tuple[bool, int, str]], size: int
) -> None:
    """And what is kept is what was put."""
    cache: SharedCache[int] = SharedCache(size)
    for puts, number, caller in uses:
        before = {who: count for who, count in cache._of_caller.items() if who != caller}
        kept = number in {int.from_bytes(known) for known in cache._entries}
        if puts:
            cache.put(key(number), caller, number)
        else:
            assert cache.get(key(number), caller) == (number if kept else None)
        assert len(cache) <= size
        assert cache._of_caller.total() == len(cache)
        for who, count in before.items():
            if count * len(cache._of_caller | before) <= size and not kept:
                assert cache._of_caller[who] == count
