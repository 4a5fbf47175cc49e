"""The legacy format of log probabilities in `/v1/completions`."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

import orjson

from qwenvl.inference.v1 import generation_pb2 as generation_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from rest_adapter.openai.answer import MIN_LOGPROB, list_of, of_text


class LegacyLogprobs:
    """Collects the `logprobs` of a completion: four lists with one item per token.

    A token's `text_offset` is where its first character begins in the text: several tokens of one character have the
    same.
    """

    def __init__(self, count: int) -> None:
        """Takes the number of most likely tokens per token."""
        self._count = count
        self._offset = 0
        self._decoder = _new_decoder()
        self._lists: dict[str, list[Any]] = {}
        self._tops: list[bytes] = []  # in JSON, which takes less memory
        self.take()

    def take(self) -> dict[str, Any]:
        """Returns the items added since the last call."""
        taken: dict[str, Any] = self._lists | {"top_logprobs": list_of(self._tops)}
        self._lists = {name: [] for name in ("text_offset", "token_logprobs", "tokens")}
        self._tops = []
        return taken

    def add_prompt(self, started: generation_pb.Started) -> None:
        """Adds the prompt; its first token has no probability, and its text is the rest of the prompt text."""
        entries = started.prompt_logprobs
        if not entries:
            return
        self._append(_first_token(started), None, None)
        self.add(entries[1:])
        self._offset += len(self._decoder.decode(b"", final=True))

    def add(self, entries: Sequence[usage_pb.LogprobEntry]) -> None:
        """Adds tokens of the text."""
        for entry in of_text(entries):
            top: dict[str, float] = {}
            for token in (*entry.top[: self._count], entry.chosen):
                top.setdefault(token.token, max(token.logprob, MIN_LOGPROB))
            logprob = max(entry.chosen.logprob, MIN_LOGPROB)
            self._append(entry.chosen.bytes, logprob, top)

    def _append(self, token: bytes, logprob: float | None, top: dict[str, float] | None) -> None:
        self._lists["text_offset"].append(self._offset)
        self._lists["token_logprobs"].append(logprob)
        self._lists["tokens"].append(token.decode(errors="replace"))
        self._tops.append(orjson.dumps(top))
        self._offset += len(self._decoder.decode(token))


def _new_decoder() -> codecs.IncrementalDecoder:
    """Decodes bytes as the inference service does."""
    return codecs.getincrementaldecoder("utf-8")(errors="replace")


def _first_token(started: generation_pb.Started) -> bytes:
    """The bytes of the prompt's first token, of which no entry tells."""
    whole = started.prompt_text.encode()
    rest = b"".join(entry.chosen.bytes for entry in started.prompt_logprobs)
    if whole.endswith(rest):
        return whole.removesuffix(rest)
    # Bytes that are not valid are longer in the text.
    characters = len(started.prompt_text) - len(rest.decode(errors="replace"))
    return started.prompt_text[: max(0, characters)].encode()
