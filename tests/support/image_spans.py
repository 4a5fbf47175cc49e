"""The images of prompts in tests of the engine's plans, which have no pixels."""

from __future__ import annotations

from inference_service.engine_protocol.messages import ImageSpan


def span(key: bytes, start: int, num_tokens: int) -> ImageSpan:
    """An image of so many tokens from `start` on; equal keys are equal images."""
    return ImageSpan(
        key=key.ljust(32),
        start=start,
        num_tokens=num_tokens,
        grid=(1, 2, 2 * num_tokens),
        height=2,
        width=2,
        pixel_offset=0,
    )
