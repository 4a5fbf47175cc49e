"""A cache that callers share: what one of them fills it with drives out its own entries first."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Generic, TypeVar


Value = TypeVar("Value")


class SharedCache(Generic[Value]):
    """Keeps the values that were used last; an entry is of the caller that used it last.

    Args:
        size: Number of values to keep.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: OrderedDict[bytes, tuple[str, Value]] = OrderedDict()
        self._of_caller: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes, caller: str) -> Value | None:
        """The value of a key, which is then the caller's newest one."""
        found = self._entries.get(key)
        if found is None:
            return None
        self._put(key, caller, found[1])
        return found[1]

    def put(self, key: bytes, caller: str, value: Value) -> None:
        """Adds a value; when there are too many, the oldest one of the caller with the most goes."""
        self._put(key, caller, value)
        if len(self._entries) > self._size:
            most = max(self._of_caller.values())
            oldest = next(
                key for key, (who, _) in self._entries.items() if self._of_caller[who] == most
            )
            self._remove(oldest)

    def _put(self, key: bytes, caller: str, value: Value) -> None:
        if key in self._entries:
            self._remove(key)
        self._entries[key] = (caller, value)
        self._of_caller[caller] += 1

    def _remove(self, key: bytes) -> None:
        caller, _ = self._entries.pop(key)
        self._of_caller[caller] -= 1
        if not self._of_caller[caller]:
            del self._of_caller[caller]
