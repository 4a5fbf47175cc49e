"""The quarantine of requests that may crash the engine."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
import hashlib
import time
from typing import Final, NamedTuple

from inference_service.engine_protocol.messages import EngineRequest


class _Failures(NamedTuple):
    """Number of engine failures, and the time of the latest in seconds of the clock."""

    number: int
    latest: float


class Quarantine:
    """Remembers which requests were in flight when the engine failed.

    A request that was in flight at two failures, and was not answered in between, is assumed to be the cause and is
    refused: clients retry, and one bad image must not keep the engine down. Other requests in flight at the same time
    cannot be distinguished from it and are refused too, so the suspicion expires: then a harmless request is answered,
    and a harmful one causes at most one failure per period.
    """

    MAX_DEATHS: Final = 2
    MAX_SUSPECTS: Final = 256
    FORGIVEN_AFTER_S: Final = 600.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[bytes, _Failures] = OrderedDict()

    def blame(self, requests: Sequence[EngineRequest]) -> None:
        """Counts one failure for every distinct request."""
        for key in {_fingerprint(request) for request in requests}:
            known = self._known(key)
            self._failures[key] = _Failures(1 if known is None else known.number + 1, self._clock())
            self._failures.move_to_end(key)
        while len(self._failures) > self.MAX_SUSPECTS:
            self._failures.popitem(last=False)

    def clear(self, request: EngineRequest) -> None:
        """Forgets the failures of a request that was answered."""
        if self._failures:
            self._failures.pop(_fingerprint(request), None)

    def holds(self, request: EngineRequest) -> bool:
        """Whether the request is to be refused."""
        known = self._known(_fingerprint(request)) if self._failures else None
        return known is not None and known.number >= self.MAX_DEATHS

    def _known(self, key: bytes) -> _Failures | None:
        """The failures of a request, unless they have expired."""
        known = self._failures.get(key)
        if known is None or self._clock() - known.latest < self.FORGIVEN_AFTER_S:
            return known
        del self._failures[key]
        return None


def _fingerprint(request: EngineRequest) -> bytes:
    digest = hashlib.sha256(repr(request.prompt_token_ids).encode())
    for image in request.images:
        digest.update(image.key)
    return digest.digest()
