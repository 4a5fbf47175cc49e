"""A box as a model wrote it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WrittenBox:
    """A box as the model wrote it.

    Attributes:
        label: Its label; may be empty.
        corners: x and y of one corner and of the opposite one, in the unit of the notation.
    """

    label: str
    corners: tuple[float, float, float, float]
