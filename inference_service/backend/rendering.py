"""The prompt of a request as callers see it."""

from __future__ import annotations

from inference_service.backend.base import MediaPlaceholder, Rendered
from inference_service.domain import Started
from inference_service.text.output.reasoning import ReasoningStart
from inference_service.text.prompt import Prompt


def rendered(started: Started, prompt: Prompt) -> Rendered:
    """The prompt with what would be known when generation begins."""
    return Rendered(
        started=started,
        placeholders=tuple(
            MediaPlaceholder(offset=image.start, length=image.num_tokens, key=image.key)
            for image in prompt.images
        ),
        begins_with_reasoning=prompt.reasoning is ReasoningStart.OPEN,
    )
