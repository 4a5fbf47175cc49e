"""What every inference service refuses, whatever its model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from qwenvl.fake.tools import problem_of
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import message_pb2 as message_pb


Spec = chat_pb.ChatCompletionSpec | completion_pb.CompletionSpec
"""What the service receives."""

RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "top_k": (-1, 2**31 - 1),
    "min_p": (0, 1),
    "repetition_penalty": (0.001, 10),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "max_tokens": (1, 2**31 - 1),
    "min_tokens": (0, 2**31 - 1),
}
"""Minimum and maximum of sampling settings, as in every inference service; NaN is never allowed."""


class Refused(Exception):  # noqa: N818 - what the service answers, not a fault
    """The service answers with an error.

    Attributes:
        reason: A key of `qwenvl.errors.BY_REASON`.
        message: Its text.
        field: Path of the invalid field, or empty.
        retry_after_s: Seconds after which the service invites a retry, or None.
    """

    def __init__(
        self, reason: str, message: str, field: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s


def check(spec: Spec) -> None:
    """Refuses a request that every inference service refuses.

    Raises:
        Refused: The request is invalid.
    """
    if isinstance(spec, chat_pb.ChatCompletionSpec):
        check_messages(spec.messages)
        if problem := problem_of(spec):
            raise Refused("INVALID_ARGUMENT", *problem)
    elif not (spec.text or spec.token_ids.ids):
        field = spec.WhichOneof("prompt") or "text"
        raise Refused("INVALID_ARGUMENT", "The request has no prompt.", f"spec.{field}")
    for name, (minimum, maximum) in RANGES.items():
        value = getattr(spec.sampling, name)
        if spec.sampling.HasField(name) and not minimum <= value <= maximum:
            message = f"{name} is {value}, but must be between {minimum} and {maximum}."
            raise Refused("INVALID_ARGUMENT", message, f"spec.sampling.{name}")
    if spec.HasField("n") and not 1 <= spec.n <= 4:
        raise Refused("INVALID_ARGUMENT", f"n is {spec.n}, but must be between 1 and 4.", "spec.n")


def check_messages(messages: Sequence[message_pb.Message]) -> None:
    """Refuses messages that every inference service refuses.

    Raises:
        Refused: They are invalid.
    """
    if not messages:
        raise Refused("INVALID_ARGUMENT", "messages is empty.", "spec.messages")
    for index, message in enumerate(messages):
        field = f"spec.messages[{index}]"
        if message.role == message_pb.ROLE_UNSPECIFIED:
            raise Refused("INVALID_ARGUMENT", "role is required.", f"{field}.role")
        for number, part in enumerate(message.parts):
            if part.WhichOneof("kind") is None:
                path = f"{field}.parts[{number}]"
                raise Refused("INVALID_ARGUMENT", "The part has no kind.", path)
