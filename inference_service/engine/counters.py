"""What the engine counts while it plans."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """Sums since the start. Prefix counters count prompt tokens, encoder counters count images, misses by reason."""

    prefix_queries: int = 0
    prefix_hits: int = 0
    prefix_misses: Counter[str] = field(default_factory=Counter)
    encoder_queries: int = 0
    encoder_hits: int = 0
    encoder_misses: Counter[str] = field(default_factory=Counter)
    preemptions: int = 0
