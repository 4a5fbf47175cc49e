"""What may go to the engine: no more pixels than there is memory for, and nothing that makes it fail."""

from __future__ import annotations

from collections.abc import Sequence

from inference_service.engine_client.budget import PixelBudget
from inference_service.engine_client.quarantine import Asked, Quarantine, Verdict
from inference_service.errors import EngineUnavailableError, InternalError, ServiceError
from inference_service.line import Place


class Gate:
    """Admits requests and prompts. Belongs to one event loop.

    Args:
        pixel_budget_bytes: Maximum bytes of pixels in flight; what is over it waits in a line.
    """

    def __init__(self, pixel_budget_bytes: int) -> None:
        self._budget = PixelBudget(pixel_budget_bytes)
        self._quarantine = Quarantine()

    @property
    def pixel_bytes(self) -> int:
        """Bytes of pixels in flight."""
        return self._budget.used_bytes

    def enter(self, asked: Asked, pixel_bytes: int, caller: str) -> Place:
        """Reserves a caller the bytes of what the quarantine admits; see `PixelBudget.reserve`. `leave` ends it.

        Raises:
            ImageTooLargeError: The pixels exceed the whole budget.
            InternalError: It makes the engine fail.
            EngineUnavailableError: It may do so, and another such request is tried now.
        """
        reservation = self._budget.reserve(pixel_bytes, caller)
        try:
            self._check(asked)
        except ServiceError:
            reservation.leave()
            raise
        return reservation

    def leave(self, asked: Asked, reservation: Place, *, answered: bool) -> None:
        """Ends what has entered; `answered` clears it of the suspicion that it makes the engine fail."""
        reservation.leave()
        self._quarantine.leave(asked, answered=answered)

    def blame(self, asked: Sequence[Asked]) -> None:
        """Notes what the engine had when it failed."""
        self._quarantine.blame(asked)

    def _check(self, asked: Asked) -> None:
        match self._quarantine.admit(asked):
            case Verdict.REFUSED:
                raise InternalError(
                    f"This request was in flight at {Quarantine.MAX_DEATHS} failures of the engine and is refused for "
                    f"{Quarantine.FORGIVEN_AFTER_S:.0f} s after the last one."
                )
            case Verdict.WAITS:
                raise EngineUnavailableError(
                    "This request was in flight when the engine failed; it is computed again as soon as another such"
                    " request has been answered.",
                    retry_after_s=1.0,
                    repeatable=False,
                )
