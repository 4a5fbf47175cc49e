"""Renders the chunks of streamed text completions."""

from __future__ import annotations

from typing import Any, Final

import orjson

from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from rest_adapter.openai import answer
from rest_adapter.openai.completions import translate
from rest_adapter.openai.completions.logprobs import LegacyLogprobs
from rest_adapter.openai.completions.prompts import PromptEvent
from rest_adapter.openai.completions.schema import CompletionRequest
from rest_adapter.reply import size_of


_END: Final = b"]}\n\n"


class CompletionChunkWriter:
    """Renders the events of all prompts of a request, in order.

    With `echo` the first chunk of a choice is its prompt, with the prompt's log probabilities; other events are held
    back until these are complete.
    """

    def __init__(self, request: CompletionRequest, request_id: str, version: str) -> None:
        self._request = request
        self._request_id = request_id
        self._version = version
        self._prompts = translate.prompts_of(request)
        self._n = 1 if request.n is None else request.n
        extra = request.stream_options
        self._with_usage = bool(extra and extra.include_usage)
        self._with_running_usage = bool(extra and extra.continuous_usage_stats)
        self._running_usage = answer.RunningUsage()
        self._wants_prompt = request.prompt_logprobs is not None or bool(
            request.echo and request.logprobs is not None
        )
        self._only_prompt = translate.only_prompt(request)
        self._usages: list[usage_pb.Usage] = []
        self._shared = b""
        self._started = generation_pb.Started()
        self._opens = False
        self._awaited = 0
        self._prompt_bytes = 0
        self._held: list[completion_pb.StreamCompletionResponse] = []
        self._forms: list[LegacyLogprobs] = []

    def size_of(self, event: PromptEvent, /) -> int:
        """About how many bytes `render` works on: those of the event, and what is held back for it."""
        size = size_of(event)
        if event[1].WhichOneof("event") == "delta" and event[1].delta.prompt_logprobs:
            self._prompt_bytes += size
        return size + (self._prompt_bytes if self._opens else 0)

    def render(self, event: PromptEvent, /) -> bytes:
        """The bytes of an event: none, one or several chunks.

        Raises:
            ApiError: The answer was aborted.
        """
        prompt, what = event
        if self._only_prompt:
            what = translate.without_answer(what)
        match what.WhichOneof("event"):
            case "started":
                self._begin(what.started)
            case "delta" if what.delta.prompt_logprobs:
                self._started.prompt_logprobs.extend(what.delta.prompt_logprobs)
            case "delta" | "finished":
                self._held.append(what)
            case "usage":
                return self._release(prompt) + self._usage(what.usage)
        missing = self._awaited - len(self._started.prompt_logprobs)
        return self._release(prompt) if self._held and missing <= 0 else b""

    def _release(self, prompt: int) -> bytes:
        """The chunks of the prompt and of the held back events."""
        chunks = [self._opening(prompt)]
        for what in self._held:
            if what.WhichOneof("event") == "delta":
                chunks.append(self._delta(prompt, what.delta))
            else:
                chunks.append(self._finished(prompt, what.finished))
        self._held.clear()
        return b"".join(chunks)

    def _begin(self, started: generation_pb.Started) -> None:
        if not self._shared:
            head = translate.head(started, self._request_id, self._version)
            self._shared = b"data: " + orjson.dumps(head)[:-1] + b","
        self._started = started
        self._prompt_bytes = 0
        self._running_usage.prompt_tokens += started.prompt_usage.prompt_tokens
        self._opens = True
        self._awaited = started.prompt_usage.prompt_tokens if self._wants_prompt else 0
        count = self._request.logprobs or 0
        self._forms = [LegacyLogprobs(count) for _ in range(self._n)]

    def _opening(self, prompt: int) -> bytes:
        """The chunks of the prompt itself, once, before those of its answers."""
        if not self._opens:
            return b""
        self._opens = False
        extra = translate.prompt_fields(self._started, self._request)
        text = ""
        if self._request.echo:
            text = translate.echoed_text(self._prompts[prompt], self._started)
            for form in self._forms:
                form.add_prompt(self._started)
        if not (text or extra):
            return b""
        choices = range(self._n if text else 1)
        return b"".join(
            self._chunk(prompt, index, text, extra if index == 0 else {}) for index in choices
        )

    def _delta(self, prompt: int, delta: generation_pb.Delta) -> bytes:
        self._running_usage.add(len(delta.token_ids))
        ids = self._request.return_token_ids and delta.token_ids
        entries = answer.of_text(delta.logprobs)
        if not (delta.text or entries or ids):
            return b""
        self._forms[delta.choice_index].add(entries)
        extra = {"token_ids": list(delta.token_ids)} if ids else {}
        return self._chunk(prompt, delta.choice_index, delta.text, extra)

    def _finished(self, prompt: int, finished: generation_pb.Finished) -> bytes:
        extra: dict[str, Any] = {
            "finish_reason": answer.finish_reason(finished.reason),
            "stop_reason": answer.stop_reason(finished.stop_detail),
        }
        if self._request.grounding:
            extra["grounding"] = answer.groundings(finished.groundings)
        if finished.choice_index == 0:
            extra["effective_max_tokens"] = translate.max_tokens(self._started, self._request)
        return self._chunk(prompt, finished.choice_index, "", extra)

    def _usage(self, usage: usage_pb.Usage) -> bytes:
        self._usages.append(usage)
        if not self._with_usage or len(self._usages) < len(self._prompts):
            return b""
        total = orjson.dumps(translate.usage(self._usages))
        return self._shared + b'"usage":%b,"choices":[%b' % (total, _END)

    def _chunk(self, prompt: int, index: int, text: str, extra: dict[str, Any]) -> bytes:
        """One chunk of one choice; `index` counts the choices of its prompt."""
        logprobs = self._forms[index].take() if self._request.logprobs is not None else None
        choice = {
            "index": prompt * self._n + index,
            "text": text,
            "logprobs": logprobs if logprobs and logprobs["tokens"] else None,
            "finish_reason": None,
        }
        usage = b'"usage":null,' if self._with_usage else b""
        if self._with_running_usage:
            usage = b'"usage":%b,' % orjson.dumps(self._running_usage.document())
        return self._shared + usage + b'"choices":[%b%b' % (orjson.dumps(choice | extra), _END)
