"""Room for log probabilities in the one message of a unary answer: what cannot fit is not computed to the end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from inference_service.domain import Request, TokenUsage
from inference_service.errors import InvalidArgumentError
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from qwenvl.limits import MAX_MESSAGE_BYTES


_LEAST_BYTES: Final = 12
"""Of one token: tags, lengths, id, rank and probability, but no text."""


class LogprobRoom:
    """The room that is left.

    Args:
        request: The request.
        limit_bytes: Maximum size of a message.
    """

    def __init__(self, request: Request, limit_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._request = request
        self._limit_bytes = limit_bytes
        self._used_bytes = 0

    def begin(self, usage: TokenUsage) -> None:
        """Refuses a prompt whose entries certainly do not fit.

        Raises:
            InvalidArgumentError: They do not.
        """
        top = self._request.prompt_logprobs
        if top is not None and usage.prompt_tokens * (top + 1) * _LEAST_BYTES > self._limit_bytes:
            raise self._error(
                "prompt_logprobs", top, f"the {usage.prompt_tokens} tokens of the prompt have"
            )

    def take(
        self,
        prompt: Iterable[usage_pb.LogprobEntry],
        answer: Iterable[usage_pb.LogprobEntry],
    ) -> None:
        """Takes the room of further entries.

        Raises:
            InvalidArgumentError: There is none.
        """
        for name, entries in (("prompt_logprobs", prompt), ("top_logprobs", answer)):
            self._used_bytes += sum(entry.ByteSize() for entry in entries)
            if self._used_bytes > self._limit_bytes:
                top: int | None = getattr(self._request, name)
                raise self._error(name, top or 0, "prompt and answers have")

    def _error(self, name: str, top: int, what: str) -> InvalidArgumentError:
        return InvalidArgumentError(
            f"{name} is {top}, but {what} more log probabilities than a message of {self._limit_bytes} bytes holds. Ask"
            " for fewer, for shorter or fewer answers, or for a stream.",
            field=f"spec.logprobs.{name}",
            metadata={"max_bytes": str(self._limit_bytes)},
        )
