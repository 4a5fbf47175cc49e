"""The shape of a rendered prompt, for the OpenAPI document."""

from __future__ import annotations

from typing import NotRequired

from typing_extensions import TypedDict


class Placeholder(TypedDict):
    """The tokens that stand for an image."""

    offset: int
    length: int


class ImageHashes(TypedDict):
    """What identifies the images."""

    image: list[str]


class ImagePlaceholders(TypedDict):
    """Where the images are."""

    image: list[Placeholder]


class Features(TypedDict):
    """The images of a prompt."""

    mm_hashes: ImageHashes
    mm_placeholders: ImagePlaceholders


class RenderedImage(TypedDict):
    """An image as it was processed; sizes in pixels."""

    original_width: int
    original_height: int
    processed_width: int
    processed_height: int
    tokens: int
    uuid: NotRequired[str]


class SamplingParams(TypedDict):
    """The settings in effect."""

    n: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    max_tokens: int
    min_tokens: int
    ignore_eos: bool
    logit_bias: dict[str, float]
    allowed_token_ids: list[int]
    bad_words: list[str]
    stop: list[str]
    stop_token_ids: list[int]


class Rendered(TypedDict):
    """A prompt, exactly as generation would use it; each dialect adds its usage."""

    request_id: str
    model: str
    token_ids: list[int]
    token_strs: NotRequired[list[str]]
    prompt_text: str
    features: Features | None
    images: list[RenderedImage]
    sampling_params: SamplingParams
    reasoning_ended: bool
    stream: bool
    cache_salt: str | None
    max_model_len: int
