"""Translates the JSON of a request to the proto: pure functions."""

from __future__ import annotations

from typing import Final

from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import message_pb2 as message_pb
from rest_adapter.anthropic.messages.conversation import Place, add_messages
from rest_adapter.anthropic.messages.schema import MessagesRequest, ToolChoice
from rest_adapter.errors import of_reason
from rest_adapter.json_values import text_of
from rest_adapter.media import ImageSources
from rest_adapter.proto_fields import set_fields


_MODES: Final = {
    "auto": message_pb.TOOL_CHOICE_MODE_AUTO,
    "any": message_pb.TOOL_CHOICE_MODE_REQUIRED,
    "none": message_pb.TOOL_CHOICE_MODE_NONE,
}
_THINKS: Final = {"enabled": True, "between_tools": False, "disabled": False}
"""With `between_tools` the model does not think, and only reports of its progress would come as thinking."""
_DEFAULT_EFFORT: Final = "high"


def to_spec(
    request: MessagesRequest, *, max_media_bytes: int
) -> tuple[chat_pb.ChatCompletionSpec, list[Place]]:
    """Converts a request to the proto.

    Args:
        request: The validated JSON.
        max_media_bytes: Maximum total bytes of all decoded images.

    Returns:
        The request, and where each of its messages comes from.

    Raises:
        ApiError: The model has no name, the images are too large, or a message cannot be converted.
    """
    if not request.model:  # over gRPC that is the canonical model
        message = "model is empty; GET /v1/models lists the names of the models."
        raise of_reason("MODEL_NOT_FOUND", message, param="model")
    spec = chat_pb.ChatCompletionSpec(model=request.model)
    places = add_messages(spec, request, ImageSources(max_media_bytes))
    set_fields(spec.sampling, request, ("max_tokens", "temperature", "top_p", "top_k"))
    if request.only_prompt:
        # The engine always generates at least one token, which the answer leaves out.
        spec.sampling.max_tokens = 1
    spec.stop.strings.extend(filter(None, request.stop_sequences or ()))
    _set_tools(spec, request)
    _set_thinking(spec.template, request)
    if request.form is not None:
        name = "output_config.format" if request.output_format is None else "output_format"
        spec.constraint.json_schema = text_of(request.form.json_schema, f"{name}.schema")
    return spec, places


def _set_thinking(target: chat_pb.TemplateOptions, request: MessagesRequest) -> None:
    thinking = request.thinking
    target.reasoning_effort = request.effort or ""
    if thinking is None:
        # A client that did not ask for thinking expects the text first; a model that always thinks does so.
        target.prefer_thinking = False
    elif thinking.type in _THINKS:
        target.enable_thinking = _THINKS[thinking.type]
    elif request.effort is None:
        # The model decides. An effort, unlike the switch, has no effect on a model that does not think.
        target.reasoning_effort = _DEFAULT_EFFORT


def _set_tools(spec: chat_pb.ChatCompletionSpec, request: MessagesRequest) -> None:
    for index, tool in enumerate(request.tools or ()):
        target = spec.tools.add(
            name=tool.name,
            description=tool.description or "",
            parameters_json_schema=text_of(tool.input_schema, f"tools[{index}].input_schema"),
        )
        set_fields(target, tool, ("strict",))
    if request.tool_choice is not None and request.tools:
        _set_choice(spec.tool_choice, request.tool_choice)


def _set_choice(target: message_pb.ToolChoice, choice: ToolChoice) -> None:
    if choice.type == "tool":
        target.function_name = choice.name or ""
    else:
        target.mode = _MODES[choice.type]
    if choice.disable_parallel_tool_use is not None:
        target.parallel = not choice.disable_parallel_tool_use
