"""Maps the proto fields of all requests to fields of OpenAI's JSON, for the `param` of an error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final


if TYPE_CHECKING:
    from rest_adapter.openai.fields import AnswerRequest


_PARAMS: Final = {
    "stop.strings": "stop",
    "stop.token_ids": "stop_token_ids",
    "stop.include_stop_string": "include_stop_str_in_output",
    "response.return_token_ids": "return_token_ids",
    "response.return_prompt_token_ids": "return_token_ids",
    "response.keep_special_tokens": "skip_special_tokens",
    "response.grounding": "grounding",
    "template.enable_thinking": "chat_template_kwargs.enable_thinking",
    "media.min_pixels": "mm_processor_kwargs.min_pixels",
    "media.max_pixels": "mm_processor_kwargs.max_pixels",
    "media.oversized": "mm_processor_kwargs.oversized_image",
    "name": "model",
}
_PREFIXES: Final = (
    ("sampling.", ""),
    ("logprobs.", ""),
    ("template.", ""),
)


def own_param(request: AnswerRequest, path: str) -> str | None:
    """The field by which the caller set an option that has several, such as the pixel budget; None = it has one.

    Args:
        request: The request.
        path: The proto field: of the request, or of an image that has no budget of its own.
    """
    name = path.rpartition(".")[2]
    if name == "repetition_penalty" and request.repetition_penalty is None:
        return None if request.repeat_penalty is None else "repeat_penalty"
    if name not in ("min_pixels", "max_pixels"):
        return None
    nested = request.mm_processor_kwargs
    if nested is not None and getattr(nested, name) is not None:
        return f"mm_processor_kwargs.{name}"
    return name if getattr(request, name) is not None else None


def plain_param(path: str) -> str:
    """The JSON path of a proto field, relative to the request: `top_p` for `sampling.top_p`."""
    path = _PARAMS.get(path.partition("[")[0], path)
    for prefix, replacement in _PREFIXES:
        if path.startswith(prefix):
            path = replacement + path.removeprefix(prefix)
            break
    return "logit_bias" if path.startswith("logit_bias") else path
