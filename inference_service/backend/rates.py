"""Limits what one caller may ask for in a minute: requests, tokens and bytes of images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
import time
from typing import Final, Self

from inference_service.errors import RateLimitError
from inference_service.settings import ServiceSettings


_PERIOD_S: Final = 60.0
_MAX_CALLERS: Final = 10_000


@dataclass(slots=True, kw_only=True)
class Amounts:
    """Amounts of each limited kind."""

    requests: float = 0.0
    tokens: float = 0.0
    image_bytes: float = 0.0


class RateLimits:
    """A bucket for every caller and kind, which fills in one minute.

    A request needs a bucket that is not empty and takes what it turns out to use, so the bucket may be in debt
    afterwards: tokens and images are counted when they are known.

    Args:
        limits: Amount per minute; None = unlimited.
        clock: Seconds.
    """

    def __init__(
        self, limits: dict[str, int | None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = {kind: limit for kind, limit in limits.items() if limit is not None}
        self._clock = clock
        self._used: OrderedDict[str, tuple[float, Amounts]] = OrderedDict()

    @classmethod
    def from_settings(cls, settings: ServiceSettings) -> Self:
        """The operator's limits."""
        return cls(
            {
                "requests": settings.max_requests_per_minute,
                "tokens": settings.max_tokens_per_minute,
                "image_bytes": settings.max_image_bytes_per_minute,
            }
        )

    def check(self, caller: str) -> None:
        """Refuses a caller that has used up one of its limits.

        Raises:
            RateLimitError: It has.
        """
        if not self._limits:
            return
        used = self._now(caller)
        waits = {
            kind: (getattr(used, kind) - self._limit_before(kind, limit)) * _PERIOD_S / limit
            for kind, limit in self._limits.items()
        }
        kind = max(waits, key=lambda kind: waits[kind])
        if waits[kind] > 0:
            limit, flag = self._limits[kind], f"--max-{kind.replace('_', '-')}-per-minute"
            raise RateLimitError(
                f"You have used the {kind.replace('_', ' ')} of this minute: {limit} are allowed for each API key"
                f" ({flag}); try again in {waits[kind]:.1f} s.",
                metadata={"limit": str(limit), "kind": kind},
                retry_after_s=waits[kind],
            )

    def take(self, caller: str, amounts: Amounts) -> None:
        """Counts what a caller uses."""
        if not self._limits:
            return
        used = self._now(caller)
        for kind in self._limits:
            setattr(used, kind, getattr(used, kind) + getattr(amounts, kind))
        self._used[caller] = (self._clock(), used)
        self._used.move_to_end(caller)
        while len(self._used) > _MAX_CALLERS:
            self._used.popitem(last=False)

    def _limit_before(self, kind: str, limit: int) -> float:
        """What may be used at most before one more request: a request counts at once, the others afterwards."""
        return limit - 1 if kind == "requests" else limit - 1e-9

    def _now(self, caller: str) -> Amounts:
        """What a caller has used and has not been given back by time."""
        then, used = self._used.get(caller, (0.0, Amounts()))
        seconds = self._clock() - then
        return Amounts(
            **{
                kind: max(0.0, getattr(used, kind) - seconds * limit / _PERIOD_S)
                for kind, limit in self._limits.items()
            }
        )
