"""What the fake service answers, and what it has received."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
import threading

from qwenvl.fake.checks import Refused, Spec, check
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import decision_service_pb2 as decision_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of the fake service.

    Attributes:
        text: What the model says, before `stop` and `max_tokens` are applied.
        groundings: The boxes, for requests that ask for them.
        reasoning: What it thinks before.
        tool_calls: Its calls behind the text, if that is not cut.
    """

    text: str = ""
    groundings: Sequence[usage_pb.Grounding] = ()
    reasoning: str = ""
    tool_calls: Sequence[message_pb.ToolCall] = ()


Answering = str | Reply | Callable[[Spec], str | Reply] | None


def check_reply(answer: object, name: str) -> None:
    """Checks what a test wants to be answered.

    Raises:
        TypeError: It cannot be answered.
    """
    if not isinstance(answer, str | Reply | None):
        kind = type(answer).__name__
        raise TypeError(f"{name} is a text, a Reply or None, not {kind}")


class FakeModel:
    """What the service answers, and what it has received; threads share it.

    Args:
        answer: See `FakeServer`.
        names: The served names, the canonical one first.
        api_key: The key that calls need, or empty.
    """

    def __init__(self, answer: Answering, names: Sequence[str], api_key: str) -> None:
        self.names = tuple(names)
        self.requests: list[Spec | decision_pb.DecisionSpec] = []
        self.failures: list[Refused] = []
        self.delay_s = 0.0
        self.closed = threading.Event()
        self._answer = answer
        self._api_key = api_key
        self._lock = threading.Lock()

    def accept(self, spec: Spec | decision_pb.DecisionSpec) -> None:
        """Takes a request.

        Raises:
            Refused: The model is not served, or the request was to fail.
        """
        with self._lock:
            self.requests.append(spec)
            failure = self.failures.pop(0) if self.failures else None
        if failure:
            raise failure
        self.canonical_name(spec.model, "spec.model")

    def wait(self) -> None:
        """Waits as long as answers are to take."""
        self.closed.wait(self.delay_s)

    def receive(self, spec: Spec) -> Reply:
        """What to answer to a request.

        Raises:
            Refused: The request is invalid, or was to fail.
        """
        self.accept(spec)
        check(spec)
        self.wait()
        answer = self._answer
        if callable(answer):
            answer = answer(spec)
            check_reply(answer, "what the answer function returned")
        if answer is None:
            answer = last_text(spec)
        return Reply(answer) if isinstance(answer, str) else answer

    def check_key(self, metadata: Mapping[str, str | bytes]) -> None:
        """Checks the key of a call.

        Raises:
            Refused: It is missing or wrong.
        """
        if self._api_key and metadata.get("authorization") != f"Bearer {self._api_key}":
            raise Refused(
                "UNAUTHENTICATED",
                "The API key is missing or unknown: send `authorization: Bearer KEY`.",
            )

    def canonical_name(self, name: str, field: str) -> str:
        """The canonical name of a served model; empty = the canonical one.

        Raises:
            Refused: It is not served.
        """
        if name and name not in self.names:
            message = f"The model {name!r} is not served here; served: {', '.join(self.names)}."
            raise Refused("MODEL_NOT_FOUND", message, field)
        return self.names[0]


def last_text(spec: Spec) -> str:
    """The text of the last message, or the prompt."""
    if isinstance(spec, chat_pb.ChatCompletionSpec):
        return "".join(part.text for part in spec.messages[-1].parts)
    return spec.text or "".join(map(chr, spec.token_ids.ids))
