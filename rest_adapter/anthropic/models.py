"""Anthropic's JSON of the served models: what a client can ask of each, and pages of them."""

from __future__ import annotations

from collections.abc import Sequence
import datetime as dt
from typing import Any, Final

from starlette.datastructures import QueryParams

from qwenvl.inference.v1 import model_service_pb2 as model_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from rest_adapter.query import integer_of
from rest_adapter.validation import wrong


_DEFAULT_PAGE: Final = 20
_MAX_PAGE: Final = 1000
_LIFECYCLES: Final = ("active", "deprecated", "retired")


def model_list(models: Sequence[model_pb.Model], params: QueryParams) -> dict[str, Any]:
    """A page of models: of those in the stages `lifecycle`, behind `after_id` or before `before_id`.

    Raises:
        ApiError: A parameter is invalid.
    """
    limit = integer_of(params, "limit", _DEFAULT_PAGE, minimum=1, maximum=_MAX_PAGE)
    found = list(models) if _wants_active(params) else []
    ids = [each.name for each in found]
    begin, end = 0, len(found)
    if after := params.get("after_id"):
        begin = _position(ids, "after_id", after) + 1
    if before := params.get("before_id"):
        end = _position(ids, "before_id", before)
    if before and not after:
        page = range(max(begin, end - limit), end)
        has_more = page.start > begin
    else:
        page = range(begin, max(begin, min(begin + limit, end)))
        has_more = page.stop < end
    data = [model(found[index]) for index in page]
    return {
        "data": data,
        "has_more": has_more,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }


def _wants_active(params: QueryParams) -> bool:
    """Whether the list is to have the models that can be used, which are all."""
    given = [*params.getlist("lifecycle"), *params.getlist("lifecycle[]")]
    stages = [stage for value in given for stage in value.split(",") if stage]
    for stage in stages:
        if stage not in _LIFECYCLES:
            raise wrong("lifecycle", stage, "active, deprecated or retired")
    return not stages or "active" in stages


def _position(ids: Sequence[str], name: str, value: str) -> int:
    if value not in ids:
        raise wrong(name, value, "the id of one of the models")
    return ids.index(value)


def model(value: model_pb.Model) -> dict[str, Any]:
    """Anthropic's `ModelInfo`."""
    created = dt.datetime.fromtimestamp(value.created, dt.UTC)
    return {
        "type": "model",
        "id": value.name,
        "display_name": value.name,
        "created_at": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "deprecated_at": None,
        "retires_at": None,
        "line": None,
        "max_input_tokens": value.max_context_tokens,
        "max_tokens": value.max_context_tokens,
        "capabilities": _capabilities(value),
    }


def _capabilities(value: model_pb.Model) -> dict[str, Any]:
    thinks = "reasoning" in value.features
    may_not_think = not thinks or "thinking_switch" in value.features
    yes, no, thinking = ({"supported": supported} for supported in (True, False, thinks))
    silent = {"supported": may_not_think}
    return {
        "batch": no,
        "citations": no,
        "code_execution": no,
        "context_management": {
            "supported": True,
            "clear_thinking_20251015": yes,
            "clear_tool_uses_20250919": no,
            "compact_20260112": no,
        },
        "effort": {
            "supported": thinks,
            **dict.fromkeys(("low", "medium", "high", "xhigh", "max"), thinking),
        },
        "image_input": {"supported": usage_pb.MODALITY_IMAGE in value.input_modalities},
        "pdf_input": no,
        "server_tools": {"supported": False, "code_execution": no, "web_search": no},
        "structured_outputs": {"supported": "json_schema" in value.features},
        "thinking": {
            "supported": thinks,
            "types": {
                "adaptive": yes,
                "between_tools": silent,
                "disabled": silent,
                "enabled": thinking,
            },
        },
    }
