"""Caches image embeddings by key, within a budget of tokens.

An image is reserved when the scheduler decides to encode it, filled by the runner, pinned while a running sequence
needs it, and evicted in least-recently-used order.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar


T = TypeVar("T")


@dataclass(slots=True)
class _Entry(Generic[T]):
    num_tokens: int
    caller: str
    value: T | None = None
    owners: set[Hashable] = field(default_factory=set)


class EncoderCache(Generic[T]):
    """A least-recently-used cache with pins."""

    def __init__(self, capacity_tokens: int) -> None:
        self.capacity_tokens = capacity_tokens
        self.num_tokens = 0
        self._entries: OrderedDict[bytes, _Entry[T]] = OrderedDict()
        # What was cached until recently, with its tokens: at most the capacity, as twice the cache would have them.
        self._evicted: OrderedDict[bytes, int] = OrderedDict()
        self._num_evicted_tokens = 0

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def reserve(self, key: bytes, num_tokens: int, caller: str = "") -> bool:
        """Reserve space for a caller's image that is not cached; False if pinned images leave too little."""
        pinned = sum(entry.num_tokens for entry in self._entries.values() if entry.owners)
        if pinned + num_tokens > self.capacity_tokens:
            return False
        unpinned = [other for other, entry in self._entries.items() if not entry.owners]
        for other in unpinned:
            if self.num_tokens + num_tokens <= self.capacity_tokens:
                break
            self._evict(other)
        self._num_evicted_tokens -= self._evicted.pop(key, 0)
        self._entries[key] = _Entry(num_tokens, caller)
        self.num_tokens += num_tokens
        return True

    def was_evicted(self, key: bytes) -> bool:
        """Whether an image that is not cached was until recently: a cache of twice the size would still have it."""
        return key in self._evicted

    def unfilled_tokens(self, caller: str) -> int:
        """Tokens of a caller's images that are reserved only."""
        entries = self._entries.values()
        return sum(e.num_tokens for e in entries if e.value is None and e.caller == caller)

    def fill(self, key: bytes, value: T) -> None:
        """Store the embeddings of an image, unless its reservation has been given up."""
        if key in self._entries:
            self._entries[key].value = value

    def get(self, key: bytes) -> T | None:
        """The embeddings of an image; None if it is only reserved or not cached."""
        entry = self._entries.get(key)
        return None if entry is None else entry.value

    def is_pinned(self, key: bytes, owner: Hashable = None) -> bool:
        """Whether a running sequence needs the image: this one (None = any)."""
        entry = self._entries.get(key)
        return entry is not None and (
            bool(entry.owners) if owner is None else owner in entry.owners
        )

    def pin(self, key: bytes, owner: Hashable) -> None:
        """Keep the image until `owner` unpins it; doing so twice changes nothing."""
        entry = self._entries[key]
        if owner not in entry.owners:
            entry.owners.add(owner)
            self._entries.move_to_end(key)

    def unpin(self, key: bytes, owner: Hashable) -> None:
        """Remove the owner's pin, if any."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.owners.discard(owner)

    def discard_unfilled(self) -> None:
        """Remove reservations that were not filled because encoding failed."""
        for key in [key for key, entry in self._entries.items() if entry.value is None]:
            self._discard(key)

    def discard(self, key: bytes) -> None:
        """Remove the reservation of an image that will not be encoded, if it is there and not filled."""
        entry = self._entries.get(key)
        if entry is not None and entry.value is None:
            self._discard(key)

    def _evict(self, key: bytes) -> None:
        if self._entries[key].value is None:
            self._discard(key)
            return
        self._evicted[key] = self._entries[key].num_tokens
        self._num_evicted_tokens += self._evicted[key]
        while self._num_evicted_tokens > self.capacity_tokens:
            self._num_evicted_tokens -= self._evicted.popitem(last=False)[1]
        self._discard(key)

    def _discard(self, key: bytes) -> None:
        self.num_tokens -= self._entries.pop(key).num_tokens
