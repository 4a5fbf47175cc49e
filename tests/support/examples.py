"""How much a slow test tries: all generated examples and rows of a table, or a part of them in the short tests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


_SHORT_SHARE = 4
_divisor = 1


def try_few() -> None:
    """Called for the short tests, before any test is imported."""
    global _divisor  # noqa: PLW0603 (decorators read it while tests are imported)
    _divisor = _SHORT_SHARE


def examples(count: int) -> int:
    """`count`, and in the short tests a quarter of them. For tests that take seconds."""
    return max(1, count // _divisor)


def one_in(every: int, rows: Iterable[Any]) -> list[Any]:
    """The rows of a table, of which the short tests try the first of every so many. A tuple is several arguments."""
    return [
        pytest.param(
            *(row if isinstance(row, tuple) else (row,)),
            marks=[pytest.mark.full] if place % every else [],
        )
        for place, row in enumerate(rows)
    ]
