"""Refuses sizes that the memory of the device cannot hold, before anything is allocated. Torch-free.

Python and torch would take such a size, and fill memory until the system kills the process: the service would start
again and again, and never be ready. A size that is refused here cannot work; one that passes may still be too large.
"""

from __future__ import annotations

from dataclasses import dataclass

from inference_service.families.footprint import encoder_cache_bytes, footprint
from inference_service.model_spec import DTYPE_BYTES, ModelSpec


_MIB = 2**20
_PAGE_RECORD_BYTES = 256
"""What the block manager keeps about a page, in Python's objects."""
_TOKEN_INPUT_BYTES = 2 * 8 * 6
"""What `engine.inputs` packs, in the two buffers of `engine.staging`."""
_SEQUENCE_INPUT_BYTES = 2 * 8 * 3
"""The same for a sequence, and its last token in `engine.slots`."""


class SizeError(ValueError):
    """A size is larger than the memory allows; the message names flag, value, reason and maximum.

    Attributes:
        setting: Name of the setting.
        value: Its value.
        text: The reason and the maximum.
    """

    def __init__(self, setting: str, value: int, text: str) -> None:
        super().__init__(f"--{setting.replace('_', '-')}={value}: {text}")
        self.setting = setting
        self.value = value
        self.text = text


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The sizes that an operator may set; see `ServiceSettings`, whose names they have."""

    max_model_len: int | None
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_page_size: int
    num_kv_pages: int | None
    cpu_kv_cache_mib: int
    encoder_cache_tokens: int


def check_sizes(
    spec: ModelSpec, dtype: str, sizes: Sizes, *, device: str, device_bytes: int, on_gpu: bool
) -> None:
    """Checks sizes, each by itself, against the memory that the weights leave.

    Args:
        spec: The model.
        dtype: Dtype of weights and cache, a key of `DTYPE_BYTES`.
        sizes: The sizes.
        device: The name of the device.
        device_bytes: Its memory that may be used, in bytes.
        on_gpu: It is a GPU.

    Raises:
        SizeError: One is too large.
    """
    model = footprint(spec, dtype, on_gpu=on_gpu)
    window = spec.max_position_embeddings
    if sizes.kv_page_size > window:
        text = f"a page cannot have more tokens than the model's context window, {window}"
        raise SizeError("kv_page_size", sizes.kv_page_size, text)
    room = device_bytes - model.weight_bytes
    if room <= 0:
        return  # not these sizes are the problem
    page_bytes = sizes.kv_page_size * model.kv_bytes_per_token + _PAGE_RECORD_BYTES
    pages_per_sequence = -(-(sizes.max_model_len or window) // sizes.kv_page_size)
    taken = {
        "max_num_batched_tokens": (sizes.max_num_batched_tokens, _token_bytes(spec, dtype)),
        "max_num_seqs": (sizes.max_num_seqs, _sequence_bytes(spec, pages_per_sequence)),
        "encoder_cache_tokens": (
            sizes.encoder_cache_tokens,
            encoder_cache_bytes(spec, 1, DTYPE_BYTES[dtype]),
        ),
    }
    if sizes.num_kv_pages is not None:
        taken["num_kv_pages"] = (sizes.num_kv_pages, page_bytes)
    for setting, (value, unit_bytes) in taken.items():
        maximum = room // unit_bytes
        if value > maximum:
            raise SizeError(setting, value, _reason(device, room, maximum))
    if sizes.num_kv_pages is None and not on_gpu:
        usable = sizes.max_num_seqs * pages_per_sequence
        pages = min(sizes.cpu_kv_cache_mib * _MIB // page_bytes, usable)
        if pages * page_bytes > room:
            reason = _reason(device, room, room // _MIB)
            raise SizeError("cpu_kv_cache_mib", sizes.cpu_kv_cache_mib, reason)


def _reason(device: str, room: int, maximum: int) -> str:
    beside = f"{device} has {room / 2**30:.2f} GiB beside the weights"
    return f"is more than memory allows: {beside}, so it is at most {maximum}"


def _token_bytes(spec: ModelSpec, dtype: str) -> int:
    """A lower bound for a token in a step: its inputs, and the activations of one layer."""
    decoder = spec.decoder
    values = 2 * decoder.hidden_size + decoder.intermediate_size
    return _TOKEN_INPUT_BYTES + values * DTYPE_BYTES[dtype]


def _sequence_bytes(spec: ModelSpec, pages: int) -> int:
    """A lower bound for a sequence in a step: its inputs, and its logits in float32."""
    return _SEQUENCE_INPUT_BYTES + 4 * pages + 4 * spec.decoder.vocab_size
