"""Reports whether a model fits a device, for `check`, `download` and `serve`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from inference_service.any_model.choice import BackendKind
from inference_service.any_model.facts import ModelFacts
from inference_service.commands.devices import Device
from inference_service.commands.subject import Subject
from inference_service.families.footprint import (
    STEP_RESERVE_BYTES,
    Capacity,
    Footprint,
    capacity,
    decode_bytes,
    encoder_cache_bytes,
    footprint,
    largest_media_tokens,
    usable_bytes,
)
from inference_service.families.placement import place_layers
from inference_service.families.registry import FAMILIES
from inference_service.families.tables import layer_parameters
from inference_service.model_spec import DTYPE_BYTES, ModelSpec, resolve_dtype_name
from inference_service.processor import has_fast_bfloat16
from inference_service.settings import ServiceSettings


UNITS = {
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
}  # fmt: skip
_BACKENDS = {
    BackendKind.NATIVE: "native",
    BackendKind.TRANSFORMERS: "transformers, the reference path: one sequence after the other, on one device, without"
    " decisions and prefix cache",
}
_VALUES_PER_IMAGE_TOKEN = 4 * 17 * 1280
"""Values in use at once in a vision tower: 17 times the width of a patch, measured with the Qwen towers; a token is
four patches, and the widest tower has 1280."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """Whether a model fits a device, and why.

    Attributes:
        model: What the model needs.
        other_bytes: Memory that is neither weights nor KV cache.
        device: The device.
        usable_bytes: Memory of the device that may be used.
        room: What the KV cache holds.
        by_setting: The operator has set the size of the cache.
        backend: What computes the model.
    """

    model: Footprint
    other_bytes: int
    device: Device
    usable_bytes: int
    room: Capacity
    by_setting: bool = False
    backend: BackendKind = BackendKind.NATIVE

    @property
    def fits(self) -> bool:
        """Whether it fits."""
        return self.room.fits

    @property
    def verdict(self) -> str:
        """`fits`, or why not."""
        if self.fits:
            return "fits"
        if self.backend is BackendKind.TRANSFORMERS and self.device.count > 1:
            return "does not fit: --backend transformers uses one device only"
        if self.usable_bytes < self.model.weight_bytes:
            return f"does not fit: the weights alone take {show_size(self.model.weight_bytes)}"
        if self.by_setting:
            return f"does not fit: --num-kv-pages holds {self.room.cache_tokens} tokens"
        return "does not fit: too little memory is left for the KV cache; reduce --encoder-cache-tokens"

    @property
    def lines(self) -> tuple[str, ...]:
        """The report for people."""
        return (*_describe(self), *_describe_room(self), self.verdict)

    def as_json(self) -> dict[str, object]:
        """The report for programs; sizes in bytes."""
        model, room = self.model, self.room
        return {
            "family": model.family,
            "backend": self.backend.value,
            "parameters": dict(model.parts) | {"total": model.parameter_count},
            "dtype": model.dtype,
            "weight_bytes": model.weight_bytes,
            "other_bytes": self.other_bytes,
            "kv_bytes_per_token": model.kv_bytes_per_token,
            "window_tokens": model.window_tokens,
            "device": {
                "name": self.device.name,
                "gpus": self.device.count if self.device.is_gpu else 0,
                "total_bytes": self.device.total_bytes,
                "usable_bytes": self.usable_bytes,
            },
            "cache_tokens": room.cache_tokens,
            "max_model_len": room.context_tokens,
            "full_requests": room.full_requests,
            "fits": self.fits,
            "verdict": self.verdict,
        }


def assess(spec: Subject, device: Device, settings: ServiceSettings) -> Assessment:
    """Assesses whether a model fits a device.

    Args:
        spec: The model.
        device: The device.
        settings: dtype, `max_model_len` (at most the model's window) and the sizes of caches.
    """
    if isinstance(spec, ModelFacts):
        return _assess_facts(spec, device, settings)
    dtype = resolve_dtype_name(
        settings.dtype,
        spec.checkpoint_dtype,
        on_gpu=device.is_gpu,
        fast_bfloat16=has_fast_bfloat16(),
    )
    model = footprint(spec, dtype, on_gpu=device.is_gpu)
    share = settings.gpu_memory_utilization if device.is_gpu else 1.0
    usable = max(0, usable_bytes(device.total_bytes, device.used_bytes, share))
    # Every further GPU has activations of its own.
    other = _other_bytes(model, spec, settings) + (device.count - 1) * STEP_RESERVE_BYTES
    if device.is_gpu:
        graphs = settings.cuda_graphs == "auto" and device.count == 1
        left = usable - model.weight_bytes - other
        other += decode_bytes(spec, settings, DTYPE_BYTES[dtype], left, graphs=graphs)
    cache_bytes = usable - model.weight_bytes - other
    if not device.is_gpu:
        cache_bytes = min(cache_bytes, settings.cpu_kv_cache_mib * 2**20)
    elif device.count > 1:
        cache_bytes = min(cache_bytes, _placed_cache_bytes(model, spec, device, settings))
    if settings.num_kv_pages is not None:
        cache_bytes = settings.num_kv_pages * settings.kv_page_size * model.kv_bytes_per_token
    room = capacity(model, cache_bytes, settings.max_model_len)
    return Assessment(
        model=model,
        other_bytes=other,
        device=device,
        usable_bytes=usable,
        room=room,
        by_setting=settings.num_kv_pages is not None,
    )


def _assess_facts(facts: ModelFacts, device: Device, settings: ServiceSettings) -> Assessment:
    """As `assess`, for transformers: one device, whose memory for a step only running it would tell."""
    dtype = resolve_dtype_name(
        settings.dtype, facts.checkpoint_dtype, on_gpu=device.is_gpu, fast_bfloat16=False
    )
    model = facts.footprint(dtype, DTYPE_BYTES[dtype])
    share = settings.gpu_memory_utilization if device.is_gpu else 1.0
    usable = max(0, usable_bytes(device.total_bytes, device.used_bytes, share))
    cache_bytes = usable - model.weight_bytes - STEP_RESERVE_BYTES
    if not device.is_gpu:
        cache_bytes = min(cache_bytes, settings.cpu_kv_cache_mib * 2**20)
    elif device.count > 1:
        cache_bytes = 0
    if settings.num_kv_pages is not None:
        cache_bytes = settings.num_kv_pages * settings.kv_page_size * model.kv_bytes_per_token
    return Assessment(
        model=model,
        other_bytes=STEP_RESERVE_BYTES,
        device=device,
        usable_bytes=usable,
        room=capacity(model, cache_bytes, settings.max_model_len),
        by_setting=settings.num_kv_pages is not None,
        backend=BackendKind.TRANSFORMERS,
    )


def _placed_cache_bytes(
    model: Footprint, spec: ModelSpec, device: Device, settings: ServiceSettings
) -> int:
    """Bytes of the KV cache on several GPUs: each has whole layers, and the one with least room limits the pages."""
    value_bytes = DTYPE_BYTES[model.dtype]
    layers, layer_bytes = spec.decoder.num_layers, layer_parameters(spec) * value_bytes
    page_bytes = settings.kv_page_size * model.kv_bytes_per_token
    try:
        placement = place_layers(
            [gpu.name for gpu in device.gpus],
            [
                usable_bytes(gpu.total_bytes, gpu.used_bytes, settings.gpu_memory_utilization)
                - STEP_RESERVE_BYTES
                for gpu in device.gpus
            ],
            num_layers=layers,
            layer_bytes=layer_bytes,
            other_bytes=model.weight_bytes
            - layers * layer_bytes
            + encoder_cache_bytes(spec, settings.encoder_cache_tokens, value_bytes),
            page_bytes=page_bytes // layers,
        )
    except ValueError:
        return 0
    return placement.pages * page_bytes


def _other_bytes(model: Footprint, spec: ModelSpec, settings: ServiceSettings) -> int:
    """Bytes for image features and the activations of a step: neither weights nor KV cache."""
    value_bytes = DTYPE_BYTES[model.dtype]
    encoder_cache = settings.encoder_cache_tokens
    images = largest_media_tokens(spec, settings.max_num_batched_tokens, encoder_cache)
    step_bytes = images * _VALUES_PER_IMAGE_TOKEN * value_bytes
    held = encoder_cache_bytes(spec, encoder_cache, value_bytes)
    return held + max(STEP_RESERVE_BYTES, step_bytes)


def _describe(found: Assessment) -> Iterator[str]:
    model, other = found.model, found.other_bytes
    yield f"{model.family:<12}{_count(model.parameter_count)}"
    for index, (name, count) in enumerate(model.parts):
        branch = "└─" if index == len(model.parts) - 1 else "├─"
        yield f"{branch} {name:<9}{_count(count)}"
    yield f"weights     {_both_units(model.weight_bytes)} in {model.dtype}"
    if model.copied_bytes:
        yield f"            of these, {show_size(model.copied_bytes)} for a packed copy of the token embedding"
    yield f"other       {show_size(other)} for images, and for steps: their activations, state and graphs"
    family = FAMILIES.get(model.family)
    remark = None if family is None else family.memory_remarks.get(model.dtype)
    total = model.weight_bytes + other
    yield f"total       {_both_units(total)} without KV cache{f'; {remark}' if remark else ''}"
    yield f"KV cache    {show_size(model.kv_bytes_per_token)} per token"
    yield f"context     {model.window_tokens} tokens"
    yield f"backend     {_BACKENDS[found.backend]}"


def show_size(num_bytes: int) -> str:
    """A size in the largest binary unit in which it is at least 1."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if num_bytes >= UNITS[unit]:
            return f"{num_bytes / UNITS[unit]:.2f} {unit}"
    return f"{num_bytes} B"


def _both_units(num_bytes: int) -> str:
    """A size in binary and decimal units: `8.27 GiB (8.88 GB)`."""
    return f"{show_size(num_bytes)} ({num_bytes / UNITS['GB']:.2f} GB)"


def _describe_room(found: Assessment) -> Iterator[str]:
    room, device = found.room, found.device
    usable = show_size(found.usable_bytes)
    yield f"device      {device.name}: {usable} usable of {show_size(device.total_bytes)}"
    if room.context_tokens:
        requests = "request" if room.full_requests == 1 else "requests"
        yield (
            f"capacity    {room.cache_tokens} tokens of KV cache = {room.full_requests} {requests}"
            f" of {room.context_tokens} tokens"
        )


def _count(parameters: int) -> str:
    """A rounded and an exact count: `4.44 B  4437815808`."""
    for unit, size in (("B", 10**9), ("M", 10**6)):
        if parameters >= size / 20:
            return f"{parameters / size:6.2f} {unit}  {parameters:>14}"
    return f"{parameters / 1000:6.2f} K  {parameters:>14}"
