"""The quarantine of requests that may crash the engine."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from enum import Enum
import hashlib
import time
from typing import Final, NamedTuple

from inference_service.engine_protocol.messages import EngineRequest, PromptMedia, PromptSource


Asked = EngineRequest | PromptSource
"""What an engine is asked: to compute a request, or to prepare a prompt."""


class _Failures(NamedTuple):
    """Number of engine failures, and the time of the latest in seconds of the clock."""

    number: int
    latest: float


class Verdict(Enum):
    """What becomes of a request."""

    ADMITTED = "admitted"
    WAITS = "waits"
    REFUSED = "refused"


class Quarantine:
    """Finds the request that makes the engine fail, and refuses it.

    Clients retry, and one bad image must not keep the engine down. A request that was in flight at `MAX_DEATHS`
    failures, and was not answered in between, is suspected. If it is the only one, it is the cause. Otherwise the
    others may be harmless, such as a prompt that many send: suspects are admitted one at a time. One that is answered
    is cleared, one during which the engine fails twice more is the cause, and only the cause is refused. Everything
    expires, so that a harmful request causes a few failures per period at most.
    """

    MAX_DEATHS: Final = 2
    MAX_ALONE: Final = MAX_DEATHS + 2
    MAX_SUSPECTS: Final = 256
    FORGIVEN_AFTER_S: Final = 600.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[bytes, _Failures] = OrderedDict()
        self._causes: dict[bytes, float] = {}
        self._trial: bytes | None = None

    def blame(self, requests: Sequence[Asked]) -> None:
        """Counts one failure for every distinct request in flight; if a suspect was on trial, for that alone."""
        keys = {fingerprint(request) for request in requests}
        trial, self._trial = self._trial, None
        blamed = keys if trial is None else keys & {trial}
        for key in blamed:
            known = self._known(key)
            self._failures[key] = _Failures(1 if known is None else known.number + 1, self._clock())
            self._failures.move_to_end(key)
        suspects = [key for key in blamed if self._is_suspect(key)]
        if len(suspects) == 1 and (
            trial is None or self._failures[suspects[0]].number >= self.MAX_ALONE
        ):
            self._convict(suspects[0])
        while len(self._failures) > self.MAX_SUSPECTS:
            self._failures.popitem(last=False)

    def admit(self, request: Asked) -> Verdict:
        """Decides about a request; an admitted one is ended by `leave`."""
        if not self._failures and not self._causes:
            return Verdict.ADMITTED
        key = fingerprint(request)
        since = self._causes.get(key)
        if since is not None:
            if self._clock() - since < self.FORGIVEN_AFTER_S:
                return Verdict.REFUSED
            del self._causes[key]
        if not self._is_suspect(key):
            return Verdict.ADMITTED
        if self._trial is not None:
            return Verdict.WAITS
        self._trial = key
        return Verdict.ADMITTED

    def leave(self, request: Asked, *, answered: bool) -> None:
        """Ends an admitted request; one that was answered is no suspect any more."""
        if not self._failures and self._trial is None:
            return
        key = fingerprint(request)
        if answered:
            self._failures.pop(key, None)
        if key == self._trial:
            self._trial = None

    def _convict(self, key: bytes) -> None:
        self._failures.pop(key, None)
        self._causes[key] = self._clock()
        while len(self._causes) > self.MAX_SUSPECTS:
            del self._causes[next(iter(self._causes))]

    def _is_suspect(self, key: bytes) -> bool:
        known = self._known(key)
        return known is not None and known.number >= self.MAX_DEATHS

    def _known(self, key: bytes) -> _Failures | None:
        """The failures of a request, unless they have expired."""
        known = self._failures.get(key)
        if known is None or self._clock() - known.latest < self.FORGIVEN_AFTER_S:
            return known
        del self._failures[key]
        return None


def fingerprint(asked: Asked) -> bytes:
    """A digest of what is asked of the engine; equal for retries, and another for a prompt than for its request."""
    if isinstance(asked, PromptSource):
        return _digest((asked.text, asked.token_ids, asked.is_guarded), (), asked.media)
    prompt = asked.prompt_token_ids
    media = asked.source.media if asked.source else ()
    keys = [image.key for image in asked.images]
    return _digest((prompt, asked.probes) if asked.probes else prompt, keys, media)


def _digest(asked: object, keys: Sequence[bytes], media: Sequence[PromptMedia]) -> bytes:
    digest = hashlib.sha256(repr(asked).encode("utf-8", "surrogatepass"))
    for key in (*keys, *(one.digest for one in media)):
        digest.update(key)
    return digest.digest()
