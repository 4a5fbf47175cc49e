"""Image embeddings by key, under a budget of tokens.

An image is reserved when the scheduler decides to encode it, filled when the runner has done so, pinned while
a running sequence still needs it, and evicted least recently used first.
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
    value: T | None = None
    owners: set[Hashable] = field(default_factory=set)


class EncoderCache(Generic[T]):
    """Least-recently-used cache with pins."""

    def __init__(self, capacity_tokens: int) -> None:
        self.capacity_tokens = capacity_tokens
        self.num_tokens = 0
        self._entries: OrderedDict[bytes, _Entry[T]] = OrderedDict()

    def __contains__(self, key: bytes) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def reserve(self, key: bytes, num_tokens: int) -> bool:
        """Make room for an image that is not here; False if pinned ones leave too little."""
        pinned = sum(entry.num_tokens for entry in self._entries.values() if entry.owners)
        if pinned + num_tokens > self.capacity_tokens:
            return False
        unpinned = [other for other, entry in self._entries.items() if not entry.owners]
        for other in unpinned:
            if self.num_tokens + num_tokens <= self.capacity_tokens:
                break
            self._discard(other)
        self._entries[key] = _Entry(num_tokens)
        self.num_tokens += num_tokens
        return True

    def fill(self, key: bytes, value: T) -> None:
        """Store the embeddings of a reserved image."""
        self._entries[key].value = value

    def get(self, key: bytes) -> T | None:
        """Embeddings of an image; None while it is only reserved or not here."""
        entry = self._entries.get(key)
        return None if entry is None else entry.value

    def pin(self, key: bytes, owner: Hashable) -> bool:
        """Keep the image until `owner` unpins it; tells whether the pin is new."""
        entry = self._entries[key]
        if owner in entry.owners:
            return False
        entry.owners.add(owner)
        self._entries.move_to_end(key)
        return True

    def unpin(self, key: bytes, owner: Hashable) -> None:
        """The owner needs the image no more. Without effect if it holds no pin."""
        entry = self._entries.get(key)
        if entry is not None:
            entry.owners.discard(owner)

    def discard_unfilled(self) -> None:
        """Forget reservations that were not kept because encoding failed."""
        for key in [key for key, entry in self._entries.items() if entry.value is None]:
            self._discard(key)

    def _discard(self, key: bytes) -> None:
        self.num_tokens -= self._entries.pop(key).num_tokens
