"""Ways to cut a sequence into pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def cut(count: int, lengths: Sequence[int]) -> Iterator[slice]:
    """Slices of `count` items: of the lengths given, the last with all the rest; some may be empty."""
    start = 0
    for length in lengths:
        yield slice(start, start + length)
        start += length
    yield slice(start, max(start, count))
