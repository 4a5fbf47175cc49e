"""How many generated examples a slow test tries: all of them, or a part of them in the short tests."""

from __future__ import annotations


_SHORT_SHARE = 4
_divisor = 1


def try_few() -> None:
    """Called for the short tests, before any test is imported."""
    global _divisor  # noqa: PLW0603 (decorators read it while tests are imported)
    _divisor = _SHORT_SHARE


def examples(count: int) -> int:
    """`count`, and in the short tests a quarter of them. For tests that take seconds."""
    return max(1, count // _divisor)
