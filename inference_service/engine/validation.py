"""Refuses requests that would fail the whole engine process, such as by an index out of bounds."""

from __future__ import annotations

from collections.abc import Iterator

from inference_service.engine_protocol.messages import EngineRequest, ImageSpan, SamplingParams
from inference_service.errors import InvalidArgumentError
from inference_service.model_spec import ImagePolicy


def check_request(
    request: EngineRequest, num_pixel_bytes: int, *, vocab_size: int, policy: ImagePolicy
) -> None:
    """Checks a request against itself and the model.

    Args:
        request: The request.
        num_pixel_bytes: Size of its pixel buffer.
        vocab_size: Number of token ids of the model.
        policy: How the model cuts images into tokens.

    Raises:
        InvalidArgumentError: The request is inconsistent or does not match the model.
    """
    if request.num_choices < 1:
        raise InvalidArgumentError(f"num_choices is {request.num_choices}, but must be at least 1.")
    _check_probes(request)
    _check_token_ids(request, vocab_size)
    _check_images(request, num_pixel_bytes, policy)


def _check_probes(request: EngineRequest) -> None:
    if request.probes and len(request.probes) != request.num_choices:
        raise InvalidArgumentError(
            f"num_choices is {request.num_choices}, but must be the number of probes, {len(request.probes)}."
        )
    if not all(probe.candidate_ids for probe in request.probes):
        raise InvalidArgumentError("A probe has no candidates, but at least one is required.")


def _check_token_ids(request: EngineRequest, vocab_size: int) -> None:
    if not request.prompt_token_ids:
        raise InvalidArgumentError("The prompt is empty, but at least one token is required.")
    begins = () if request.constraint_after is None else (request.constraint_after,)
    judged = [i for p in request.probes for i in (*p.token_ids, *p.candidate_ids)]
    named = (*named_ids(request.sampling), *request.sampling.eos_token_ids)
    used = (*request.prompt_token_ids, *named, *begins, *judged)
    if min(used) < 0 or max(used) >= vocab_size:
        raise InvalidArgumentError(
            f"Token ids must be 0 to {vocab_size - 1}, but the request has {min(used)} to {max(used)}."
        )
    check_lists(request.sampling, vocab_size)


def named_ids(sampling: SamplingParams) -> Iterator[int]:
    """The token ids that a request's sampling parameters name."""
    yield from (token_id for token_id, _ in sampling.logit_bias)
    yield from sampling.stop_token_ids
    for sequence in sampling.bad_sequences:
        yield from sequence


def check_lists(sampling: SamplingParams, vocab_size: int) -> None:
    """Checks the lists of tokens that may be sampled, and that may not.

    Raises:
        InvalidArgumentError: The allowed tokens are not those of the vocabulary, or a bad word has a single token.
    """
    allowed = sampling.allowed_tokens
    size = 4 * -(-vocab_size // 32)
    if allowed and (
        len(allowed) != size or not 0 < int.from_bytes(allowed, "little") < 2**vocab_size
    ):
        raise InvalidArgumentError(
            f"allowed_tokens must be {size} bytes for the token ids 0 to {vocab_size - 1}, and name one of them."
        )
    if any(len(sequence) < 2 for sequence in sampling.bad_sequences):
        raise InvalidArgumentError("A sequence of bad_sequences must have at least two tokens.")


def _check_images(request: EngineRequest, num_pixel_bytes: int, policy: ImagePolicy) -> None:
    end = 0
    for image in request.images:
        fits = (
            image.start >= end
            and image.start + image.num_tokens <= len(request.prompt_token_ids)
            and image.pixel_offset + image.pixel_bytes <= num_pixel_bytes
        )
        if not fits or not _is_consistent(image, policy):
            raise InvalidArgumentError(
                "The size or the position of an image does not match the prompt."
            )
        end = image.start + image.num_tokens


def _is_consistent(image: ImageSpan, policy: ImagePolicy) -> bool:
    """Whether size, grid and number of tokens of an image are consistent."""
    step, patch = policy.pixel_step, policy.patch_size
    times = -(-image.frames // policy.temporal_patch_size)
    return (
        image.height % step == image.width % step == 0
        and image.grid == (times, image.height // patch, image.width // patch)
        and image.num_tokens == policy.tokens_of(image.grid)
        and image.num_tokens > 0
    )
