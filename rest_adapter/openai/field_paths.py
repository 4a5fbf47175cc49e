"""Maps the proto fields of all requests to fields of OpenAI's JSON, for the `param` of an error."""

from __future__ import annotations

from typing import Final


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
    "name": "model",
}
_PREFIXES: Final = (
    ("sampling.", ""),
    ("logprobs.", ""),
    ("template.", ""),
    ("constraint", "response_format"),
)


def plain_param(path: str) -> str:
    """The JSON path of a proto field, relative to the request: `top_p` for `sampling.top_p`."""
    path = _PARAMS.get(path, path)
    for prefix, replacement in _PREFIXES:
        if path.startswith(prefix):
            path = replacement + path.removeprefix(prefix)
            break
    return "logit_bias" if path.startswith("logit_bias") else path
