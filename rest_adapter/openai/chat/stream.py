"""Renders the chunks of a streamed chat completion.

The fields that all chunks share are rendered once, so that a token costs one `orjson.dumps` of its text.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import generation_pb2 as generation_pb
from rest_adapter.openai import answer
from rest_adapter.openai.chat.translate import completion_id


_END: Final = b"]}\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkOptions:
    """The contents of a stream besides the text.

    Attributes:
        n: Number of answers.
        usage: Send a last chunk with the usage; every other chunk then has `"usage": null`.
        running_usage: Every chunk has the tokens so far instead; the service then tells the token ids.
        logprobs: Fill `choices[].logprobs`.
        token_ids: Send `choices[].token_ids` in every chunk, and the prompt's in the first.
        grounding: Send `choices[].grounding` in the last chunk of a choice.
        named: The request named the function to call.
    """

    n: int
    usage: bool
    logprobs: bool
    token_ids: bool
    running_usage: bool = False
    grounding: bool = False
    named: bool = False


class ChunkWriter:
    """Renders the events of one answer, in order."""

    def __init__(self, options: ChunkOptions, version: str) -> None:
        self._options = options
        self._version = version
        self._shared = b""
        self._usage = answer.RunningUsage()

    def render(self, event: chat_pb.StreamChatCompletionResponse) -> bytes:
        """The bytes of an event: none, one or several chunks.

        Raises:
            ApiError: The answer was aborted.
        """
        match event.WhichOneof("event"):
            case "delta":
                return self._delta(event.delta)
            case "started":
                return self._started(event.started)
            case "finished":
                return self._finished(event.finished)
            case "usage" if self._options.usage:
                return self._shared + b'"usage":%b,"choices":[%b' % (
                    orjson.dumps(answer.usage(event.usage)),
                    _END,
                )
            case _:
                return b""

    def _started(self, started: generation_pb.Started) -> bytes:
        shared = {
            "id": completion_id(started),
            "object": "chat.completion.chunk",
            "created": started.created,
            "model": started.model,
            "system_fingerprint": answer.fingerprint(started.model, self._version),
        }
        self._shared = b"data: " + orjson.dumps(shared)[:-1] + b","
        self._usage = answer.RunningUsage(started.prompt_usage.prompt_tokens)
        extra: dict[str, Any] = {"effective_max_tokens": answer.max_tokens(started)}
        if self._options.token_ids:
            extra["prompt_token_ids"] = list(started.prompt_token_ids)
        chunks = []
        for index in range(self._options.n):
            chunks.append(self._chunk(index, b'{"role":"assistant","content":""}', extra))
            extra = {}
        return b"".join(chunks)

    def _delta(self, delta: generation_pb.Delta) -> bytes:
        self._usage.add(len(delta.token_ids))
        entries = answer.of_text(delta.logprobs) if self._options.logprobs else []
        ids = self._options.token_ids and delta.token_ids
        fields = []
        if delta.reasoning:
            fields.append(b'"reasoning_content":' + orjson.dumps(delta.reasoning))
        if delta.text:
            fields.append(b'"content":' + orjson.dumps(delta.text))
        if delta.tool_calls:
            calls = [_call(call) for call in delta.tool_calls]
            fields.append(b'"tool_calls":' + orjson.dumps(calls))
        if not (fields or entries or ids or delta.prompt_logprobs):
            return b""
        content = b"{" + (b",".join(fields) or b'"content":""')
        extra = {}
        if delta.prompt_logprobs:
            extra["prompt_logprobs"] = answer.prompt_logprobs(delta.prompt_logprobs)
        return self._chunk(
            delta.choice_index,
            content + b"}",
            extra,
            logprobs=orjson.dumps(answer.logprobs(entries)) if entries else b"null",
            token_ids=list(delta.token_ids) if ids else (),
        )

    def _finished(self, finished: generation_pb.Finished) -> bytes:
        stop = orjson.dumps(answer.stop_reason(finished.stop_detail))
        reason = orjson.dumps(answer.finish_reason(finished.reason, named=self._options.named))
        finish = reason + b',"stop_reason":' + stop
        if self._options.grounding:
            finish += b',"grounding":' + orjson.dumps(answer.groundings(finished.groundings))
        return self._chunk(finished.choice_index, b"{}", {}, finish=finish)

    def _chunk(
        self,
        index: int,
        delta: bytes,
        extra: MutableMapping[str, Any],
        *,
        logprobs: bytes = b"null",
        finish: bytes = b"null",
        token_ids: list[int] | tuple[()] = (),
    ) -> bytes:
        """One chunk of one choice.

        Args:
            index: Index of the choice.
            delta: `choices[].delta` in JSON.
            extra: Other fields next to `choices`.
            logprobs: `choices[].logprobs` in JSON.
            finish: `choices[].finish_reason` in JSON, and the fields after it.
            token_ids: The new tokens, if requested.
        """
        parts = [self._shared]
        if self._options.running_usage:
            parts += (b'"usage":', orjson.dumps(self._usage.document()), b",")
        elif self._options.usage:
            parts.append(b'"usage":null,')
        if extra:
            parts += (orjson.dumps(extra)[1:-1], b",")
        parts += (b'"choices":[{"index":%d,"delta":' % index, delta, b',"logprobs":', logprobs)
        parts += (b',"finish_reason":', finish)
        if self._options.token_ids:
            parts += (b',"token_ids":', orjson.dumps(token_ids))
        parts += (b"}", _END)
        return b"".join(parts)


def _call(call: generation_pb.ToolCallDelta) -> dict[str, Any]:
    """A piece of a call; id and name only in its first piece."""
    function = {"arguments": call.arguments_json}
    if not call.id:
        return {"index": call.index, "function": function}
    return {
        "index": call.index,
        "id": call.id,
        "type": "function",
        "function": {"name": call.name} | function,
    }
