"""Chooses devices, dtype, placement of the layers, and the size of the KV cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
import math

import torch

from inference_service.engine.graph_capture import obstacle
from inference_service.engine.inputs import SequenceInput, batch_of, pack
from inference_service.engine.prompt_logprobs import PROMPT_LOGITS_ROWS
from inference_service.engine.slots import new_state
from inference_service.engine.staging import Staging
from inference_service.engine_protocol.messages import EngineConfig
from inference_service.families.footprint import (
    STEP_RESERVE_BYTES,
    decode_bytes,
    encoder_cache_bytes,
    largest_media_tokens,
    usable_bytes,
)
from inference_service.families.placement import Placement, place_layers
from inference_service.families.size_limits import Sizes, check_sizes
from inference_service.families.tables import kv_bytes_per_token, layer_parameters, module_parts
from inference_service.kernels.cpu_linear import can_pack
from inference_service.model_spec import DTYPE_BYTES, ModelSpec, resolve_dtype_name
from inference_service.models.vision_language import VisionLanguageModel
from inference_service.process_memory import machine_bytes
from inference_service.processor import has_fast_bfloat16


TORCH_DTYPES: Mapping[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPE_BYTES}
_UNLIMITED_BYTES = 2**50


def resolve_devices(name: str) -> tuple[torch.device, ...]:
    """Resolves `auto`, `cpu`, `cuda`, `cuda:N` or `cuda:N,cuda:M`; auto = the first GPU, else the CPU.

    Raises:
        ValueError: A GPU is listed twice or does not exist; the message is for the operator.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    names = ["cuda:0" if part == "cuda" else part for part in name.split(",")]
    gpus = [part for part in names if part != "cpu"]
    if len(set(gpus)) < len(gpus):
        raise ValueError(f"device lists a GPU twice: {name}")
    devices = tuple(map(torch.device, names))
    count = torch.cuda.device_count()
    for device in devices:
        if device.type == "cuda" and (device.index or 0) >= count:
            raise ValueError(
                f"device {device} does not exist: torch finds {count} GPUs (check CUDA_VISIBLE_DEVICES)"
            )
    return devices


def refuse_impossible_sizes(
    config: EngineConfig, spec: ModelSpec, devices: Sequence[torch.device], dtype: torch.dtype
) -> None:
    """Refuses sizes that the memory of the devices cannot hold; see `check_sizes`.

    Raises:
        SizeError: One is too large.
    """
    on_gpu = all(device.type == "cuda" for device in devices)
    check_sizes(
        spec,
        str(dtype).removeprefix("torch."),
        _sizes(config),
        device=",".join(map(str, devices)),
        device_bytes=(
            sum(_permitted_bytes(config, device) for device in devices)
            if on_gpu
            else machine_bytes()
        ),
        on_gpu=on_gpu,
    )


def _sizes(config: EngineConfig) -> Sizes:
    """The sizes that an operator may set."""
    return Sizes(
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        kv_page_size=config.page_size,
        num_kv_pages=config.num_kv_pages,
        cpu_kv_cache_mib=config.cpu_kv_cache_bytes // 2**20,
        encoder_cache_tokens=config.encoder_cache_tokens,
    )


def plan_placement(
    config: EngineConfig, spec: ModelSpec, devices: Sequence[torch.device], dtype: torch.dtype
) -> Placement | None:
    """Assigns the layers to devices; None = the whole model is on one device.

    Raises:
        ValueError: The devices are too small for the model.
    """
    if len(devices) == 1:
        return None
    parameters = sum(count for _, count in module_parts(spec))
    num_layers, layer = spec.decoder.num_layers, layer_parameters(spec)
    others = (parameters - num_layers * layer) * dtype.itemsize
    return place_layers(
        [str(device) for device in devices],
        [_room(config, device) for device in devices],
        num_layers=num_layers,
        layer_bytes=layer * dtype.itemsize,
        other_bytes=others + _encoder_cache_bytes(config, spec, dtype),
        page_bytes=_layer_page_bytes(config, spec, dtype),
    )


def _room(config: EngineConfig, device: torch.device) -> int:
    """Bytes of a device for weights and caches."""
    if device.type != "cuda":
        return _UNLIMITED_BYTES
    return _permitted_bytes(config, device) - STEP_RESERVE_BYTES


def _permitted_bytes(config: EngineConfig, device: torch.device) -> int:
    """Free bytes of a GPU within `gpu_memory_utilization`."""
    free, total = torch.cuda.mem_get_info(device)
    return usable_bytes(total, total - free, config.gpu_memory_utilization)


def _encoder_cache_bytes(config: EngineConfig, spec: ModelSpec, dtype: torch.dtype) -> int:
    return encoder_cache_bytes(spec, config.encoder_cache_tokens, dtype.itemsize)


def _layer_page_bytes(config: EngineConfig, spec: ModelSpec, dtype: torch.dtype) -> int:
    """Bytes of one page in one layer."""
    token_bytes = kv_bytes_per_token(spec, dtype.itemsize)
    return config.page_size * token_bytes // spec.decoder.num_layers


def resolve_dtype(name: str, checkpoint_dtype: str, device: torch.device) -> torch.dtype:
    """See `resolve_dtype_name`; on a CPU, `auto` is what its instructions promise, to be measured."""
    on_gpu = device.type == "cuda"
    fast = not on_gpu and has_fast_bfloat16() and can_pack(torch.bfloat16)
    return TORCH_DTYPES[
        resolve_dtype_name(name, checkpoint_dtype, on_gpu=on_gpu, fast_bfloat16=fast)
    ]


def resolve_max_model_len(config: EngineConfig, spec: ModelSpec) -> int:
    """The configured context window, not yet limited by the size of the cache.

    Raises:
        ValueError: It exceeds the model's context window.
    """
    if config.max_model_len is None:
        return spec.max_position_embeddings
    if config.max_model_len > spec.max_position_embeddings:
        raise ValueError(
            f"max_model_len is {config.max_model_len}, but the model's context window is"
            f" {spec.max_position_embeddings}"
        )
    return config.max_model_len


def count_kv_pages(config: EngineConfig, model: VisionLanguageModel) -> int:
    """Number of pages of the KV cache: as configured, or as many as fit into memory and can be used.

    Raises:
        ValueError: The memory is too small for one page.
    """
    if config.num_kv_pages is not None:
        if model.device.type == "cuda":  # compiles the kernels that no check has launched
            _run_largest_step(config, model)
        return config.num_kv_pages
    page_bytes = _layer_page_bytes(config, model.spec, model.dtype)
    free = _free_bytes(config, model)
    fitting = min(free[device] // (layers * page_bytes) for device, layers in _layers_on(model))
    if fitting < 1:
        raise ValueError(
            "no memory is left for the KV cache: increase --gpu-memory-utilization, or reduce --encoder-cache-tokens or"
            " --max-num-batched-tokens"
        )
    pages_per_sequence = -(-resolve_max_model_len(config, model.spec) // config.page_size)
    return min(fitting, config.max_num_seqs * pages_per_sequence)


def _layers_on(model: VisionLanguageModel) -> list[tuple[torch.device, int]]:
    """The devices with layers, and their numbers of layers."""
    if model.placement is None:
        return [(model.device, model.spec.decoder.num_layers)]
    counts = Counter(model.placement.layer_devices)
    return [(torch.device(name), layers) for name, layers in counts.items()]


def _free_bytes(config: EngineConfig, model: VisionLanguageModel) -> dict[torch.device, int]:
    """Bytes for the cache on each device."""
    devices = [model.device, *(device for device, _ in _layers_on(model))]
    gpus = [device for device in dict.fromkeys(devices) if device.type == "cuda"]
    measured = _free_bytes_on_gpus(config, model, gpus) if gpus else {}
    return dict.fromkeys(devices, config.cpu_kv_cache_bytes) | measured


def _free_bytes_on_gpus(
    config: EngineConfig, model: VisionLanguageModel, gpus: Sequence[torch.device]
) -> dict[torch.device, int]:
    """Bytes for the cache after weights, the largest step, the encoder cache, the state of the slots and graphs."""
    held = {}
    for device in gpus:
        torch.cuda.synchronize(device)
        held[device] = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    _run_largest_step(config, model)
    step = {}
    for device in gpus:
        torch.cuda.synchronize(device)
        step[device] = torch.cuda.max_memory_allocated(device) - held[device]
    torch.cuda.empty_cache()
    free = {device: _permitted_bytes(config, device) - step[device] for device in gpus}
    if model.device in free:
        free[model.device] -= _encoder_cache_bytes(config, model.spec, model.dtype)
        free[model.device] -= _decode_bytes(config, model, free[model.device])
    return free


def _decode_bytes(config: EngineConfig, model: VisionLanguageModel, room: int) -> int:
    """Bytes of the state of the slots, and of graphs if there are to be any; see `decode_bytes`."""
    sizes = _sizes(config)
    if model.placement is not None:  # the other devices have the cache too
        sizes = replace(sizes, max_model_len=resolve_max_model_len(config, model.spec))
    graphs = not obstacle(config, model)
    return decode_bytes(model.spec, sizes, model.dtype.itemsize, room, graphs=graphs)


def _allocated_bytes(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


@torch.inference_mode()
def _run_largest_step(config: EngineConfig, model: VisionLanguageModel) -> None:
    """Runs a step of maximum size: a full image or video, a full batch, a full set of logits."""
    policy, num_tokens = model.spec.image_policy, config.max_num_batched_tokens
    largest_media = largest_media_tokens(model.spec, num_tokens, config.encoder_cache_tokens)
    side = policy.square_side or policy.pixel_step * math.isqrt(largest_media)
    patches = side // policy.patch_size
    grid = (1, patches, patches)
    pixels = torch.zeros(1, side, side, 3, dtype=torch.uint8)
    # If all images have the same size, a step takes several of them for the same number of tokens.
    count = max(1, num_tokens // policy.tokens_of(grid)) if policy.square_side else 1
    images = ([pixels] * count, [grid] * count)
    held_bytes = [_allocated_bytes(model.device) for _ in model.encoding(*images)]
    # Images are encoded over several steps: in the worst case the tower's tensors stay beside those of the decoder
    # from where they take most.
    encoding = model.encoding(*images)
    held = list(islice(encoding, 1 + held_bytes.index(max(held_bytes))))

    num_pages = -(-num_tokens // config.page_size)
    sequence = SequenceInput(token_ids=[0] * num_tokens, start=0, pages=range(num_pages))
    packed = pack([sequence], page_size=config.page_size)
    # Its page table is all zeros: every token is in page 0, which takes the same memory.
    state = new_state(1, num_pages, num_tokens, model.spec.decoder.vocab_size, model.device)
    batch = batch_of(packed, Staging(model.device).send(packed.arrays), state)
    hidden = model.forward(batch, model.new_kv_cache(num_pages, config.page_size))
    rows = min(num_tokens, max(config.max_num_seqs, PROMPT_LOGITS_ROWS))
    logits = model.logits(hidden[:rows])
    logits.softmax(dim=-1)
    logits.topk(logits.shape[-1])  # as for `top_p`
    del held
    encoding.close()
