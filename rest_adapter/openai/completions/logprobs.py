"""The legacy format of log probabilities in `/v1/completions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qwenvl.inference.v1 import generation_pb2 as generation_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from rest_adapter.openai.answer import MIN_LOGPROB


class LegacyLogprobs:
    """Collects the `logprobs` of a completion: four lists with one item per token."""

    def __init__(self, count: int) -> None:
        """Takes the number of most likely tokens per token."""
        self._count = count
        self._offset = 0
        self._lists: dict[str, list[Any]] = {}
        self.take()

    def take(self) -> dict[str, Any]:
        """Returns the items added since the last call."""
        taken = self._lists
        names = ("text_offset", "token_logprobs", "tokens", "top_logprobs")
        self._lists = {name: [] for name in names}
        return taken

    def add_prompt(self, started: generation_pb.Started) -> None:
        """Adds the prompt; its first token has no probability, and its text is the rest of the prompt text."""
        entries = started.prompt_logprobs
        if not entries:
            return
        whole = started.prompt_text.encode()
        rest = b"".join(entry.chosen.bytes for entry in entries)
        first = whole.removesuffix(rest) if whole.endswith(rest) else b""
        self._append(first.decode(errors="replace"), None, None)
        self.add(entries[1:])

    def add(self, entries: Sequence[usage_pb.LogprobEntry]) -> None:
        """Adds tokens."""
        for entry in entries:
            top: dict[str, float] = {}
            for token in (*entry.top[: self._count], entry.chosen):
                top.setdefault(token.token, max(token.logprob, MIN_LOGPROB))
            logprob = max(entry.chosen.logprob, MIN_LOGPROB)
            self._append(entry.chosen.token, logprob, top)

    def _append(self, token: str, logprob: float | None, top: dict[str, float] | None) -> None:
        self._lists["text_offset"].append(self._offset)
        self._lists["token_logprobs"].append(logprob)
        self._lists["tokens"].append(token)
        self._lists["top_logprobs"].append(top)
        self._offset += len(token)
