"""The response resource: what the request asked for, the settings in effect, and the output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import time
from typing import Any, Final

from qwenvl.inference.v1 import generation_pb2 as generation_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from rest_adapter.errors import ApiError
from rest_adapter.openai.responses.schema import Asked
from rest_adapter.openai.responses.tools import function_document


COMPLETED: Final = "completed"
INCOMPLETE: Final = "incomplete"
CANCELLED: Final = "cancelled"
FAILED: Final = "failed"
IN_PROGRESS: Final = "in_progress"

_ERROR_CODES: Final = {
    "CONTEXT_LENGTH_EXCEEDED": "invalid_prompt",
    "IMAGE_FETCH_FAILED": "failed_to_download_image",
    "IMAGE_FETCH_TIMEOUT": "failed_to_download_image",
    "IMAGE_TOO_LARGE": "image_too_large",
    "IMAGE_URL_REFUSED": "invalid_image_url",
    "INVALID_ARGUMENT": "invalid_prompt",
    "INVALID_IMAGE": "invalid_image",
    "INVALID_IMAGE_URL": "invalid_image_url",
    "QUEUE_FULL": "rate_limit_exceeded",
    "RATE_LIMIT_EXCEEDED": "rate_limit_exceeded",
}
"""`error.code` of a failed response, a closed list of OpenAI's; that of all other reasons is `server_error`."""
_ECHOED: Final = ("prompt_cache_retention", "user")
"""Optional fields that are in the response if they are in the request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """What is known of a response when its generation begins.

    Attributes:
        asked: The request.
        response_id: The response's id.
        stored: Whether the response is stored.
        started: What the service says.
    """

    asked: Asked
    response_id: str
    stored: bool
    started: generation_pb.Started


def resource_of(beginning: Beginning) -> dict[str, Any]:
    """The response in progress; all keys that OpenAI's clients expect are there."""
    asked, started = beginning.asked, beginning.started
    request = asked.request
    sampling = started.effective_settings.sampling
    reasoning = request.reasoning
    limit = None if request.max_output_tokens is None else sampling.max_tokens
    echoed = {name: getattr(request, name) for name in _ECHOED}
    return {
        "id": beginning.response_id,
        "object": "response",
        "created_at": started.created,
        "completed_at": None,
        "status": IN_PROGRESS,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": request.instructions,
        "max_output_tokens": limit,
        "max_tool_calls": request.max_tool_calls,
        "model": started.model,
        "output": [],
        "parallel_tool_calls": asked.tools.parallel is not False,
        "previous_response_id": request.previous_response_id,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {
            "effort": reasoning and reasoning.effort,
            "summary": reasoning and (reasoning.summary or reasoning.generate_summary),
        },
        "safety_identifier": request.safety_identifier,
        "service_tier": "default",
        "store": beginning.stored,
        "temperature": sampling.temperature,
        "text": {"format": asked.form.document, "verbosity": "medium"},
        "tool_choice": asked.tools.choice.document(),
        "tools": [function_document(each) for each in asked.tools.functions],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "truncation": request.truncation or "disabled",
        "usage": None,
        "metadata": request.metadata or {},
    } | {name: value for name, value in echoed.items() if value is not None}


def ended(
    resource: Mapping[str, Any],
    status: str,
    output: Sequence[Mapping[str, Any]],
    usage: usage_pb.Usage | None = None,
    error: ApiError | None = None,
) -> dict[str, Any]:
    """A response that has ended.

    Args:
        resource: The response in progress.
        status: Its status now.
        output: Its items.
        usage: The tokens; None = unknown, since it did not end by itself.
        error: Why it failed.
    """
    details = {"reason": "max_output_tokens"} if status == INCOMPLETE else None
    failure = None
    if error is not None:
        code = _ERROR_CODES.get(error.reason, "server_error")
        failure = {"code": code, "message": error.message or code}
    return {
        **resource,
        "status": status,
        "completed_at": int(time.time()) if status == COMPLETED else None,
        "incomplete_details": details,
        "error": failure,
        "output": [*output],
        "usage": None if usage is None else usage_document(usage),
    }


def usage_document(usage: usage_pb.Usage) -> dict[str, Any]:
    """OpenAI's usage of a response."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.cache_write_tokens,
        },
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }
