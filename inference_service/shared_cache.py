"""A cache that callers share: what one of them fills it with drives out its own entries first."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Generic, TypeVar


Value = TypeVar("Value")


class SharedCache(Generic[Value]):
    """Keeps the values that were used last; an entry is of the caller that used it last.

    Args:
        size: Number of values to keep, where one may count as several; the newest one is always kept.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[bytes, tuple[str, Value, int]] = OrderedDict()
        self._of_caller: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes, caller: str) -> Value | None:
        """The value of a key, which is then the caller's newest one."""
        found = self._entries.get(key)
        if found is None:
            return None
        _, value, count = found
        self._put(key, caller, value, count)
        return value

    def put(self, key: bytes, caller: str, value: Value, count: int = 1) -> None:
        """Adds a value that counts as some; while there are too many, the oldest of the caller with the most goes."""
        self._put(key, caller, value, count)
        while self._of_caller.total() > self._size and len(self._entries) > 1:
            older = [(old, who) for old, (who, *_) in self._entries.items() if old != key]
            most = max(self._of_caller[who] for _, who in older)
            self._remove(next(old for old, who in older if self._of_caller[who] == most))

    def _put(self, key: bytes, caller: str, value: Value, count: int) -> None:
        if key in self._entries:
            self._remove(key)
        self._entries[key] = (caller, value, count)
        self._of_caller[caller] += count

    def _remove(self, key: bytes) -> None:
        caller, _, count = self._entries.pop(key)
        self._of_caller[caller] -= count
        if not self._of_caller[caller]:
            del self._of_caller[caller]
