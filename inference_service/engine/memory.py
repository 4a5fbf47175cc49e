"""Where the model lives and how large its KV cache may be.

Owns the meaning of `auto` for device and dtype, and the sizing of the cache. Must not know requests or scheduling.
"""

from __future__ import annotations

import math

import torch

from inference_service.engine.types import EngineConfig
from inference_service.kernels.attention import AttentionMetadata
from inference_service.models.batch import ForwardBatch
from inference_service.models.spec import ModelSpec
from inference_service.models.tables import kv_bytes_per_token
from inference_service.models.vision_language import VisionLanguageModel


DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def resolve_device(name: str) -> torch.device:
    """The device meant by `auto`, `cpu`, `cuda` or `cuda:N`; auto = the first GPU if there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device("cuda:0" if name == "cuda" else name)


def resolve_dtype(name: str, checkpoint_dtype: str, device: torch.device) -> torch.dtype:
    """The dtype meant by `auto` or a name; auto = the checkpoint's on a GPU, float32 on a CPU.

    Raises:
        ValueError: The name is none of ours.
    """
    if name == "auto":
        name = checkpoint_dtype if device.type == "cuda" else "float32"
    if name not in DTYPES:
        raise ValueError(f"dtype must be auto or one of {', '.join(DTYPES)}, not {name}")
    return DTYPES[name]


def resolve_max_model_len(config: EngineConfig, spec: ModelSpec) -> int:
    """The context window wished for, before the size of the cache is known.

    Raises:
        ValueError: More than the model has learnt.
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
    """Pages of the KV cache: as configured, or as many as memory and use allow.

    Raises:
        ValueError: There is no memory for a single page.
    """
    if config.num_kv_pages is not None:
        return config.num_kv_pages
    page_bytes = config.page_size * kv_bytes_per_token(model.spec, model.dtype.itemsize)
    on_gpu = model.device.type == "cuda"
    free_bytes = _free_bytes_on_gpu(config, model) if on_gpu else config.cpu_kv_cache_bytes
    fitting = free_bytes // page_bytes
    if fitting < 1:
        raise ValueError("no memory is left for the KV cache")
    pages_per_sequence = -(-resolve_max_model_len(config, model.spec) // config.page_size)
    return min(fitting, config.max_num_seqs * pages_per_sequence)


def _free_bytes_on_gpu(config: EngineConfig, model: VisionLanguageModel) -> int:
    """What is left of the permitted share after weights, the largest step and the encoder cache."""
    device = model.device
    torch.cuda.synchronize(device)
    held = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    _run_largest_step(config, model)
    torch.cuda.synchronize(device)
    step_bytes = torch.cuda.max_memory_allocated(device) - held
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    levels = 1 + model.spec.decoder.deepstack_levels
    embedding_bytes = model.spec.decoder.hidden_size * levels * model.dtype.itemsize
    encoder_bytes = config.encoder_cache_tokens * embedding_bytes
    permitted = int(total * config.gpu_memory_utilization)
    return permitted - (total - free) - step_bytes - encoder_bytes


@torch.inference_mode()
def _run_largest_step(config: EngineConfig, model: VisionLanguageModel) -> None:
    """The most memory that one step takes: a full picture, a full batch, a full set of logits."""
    policy, num_tokens = model.spec.image_policy, config.max_num_batched_tokens
    largest_picture = max(num_tokens, policy.max_pixels // policy.pixel_step**2)
    side = policy.square_side or policy.pixel_step * math.isqrt(
        min(largest_picture, config.encoder_cache_tokens)
    )
    patches = side // policy.patch_size
    pixels = torch.zeros(1, side, side, 3, dtype=torch.uint8)
    model.encode_images([pixels], [(1, patches, patches)])

    num_pages = -(-num_tokens // config.page_size)
    index = torch.arange(num_tokens, device=model.device)
    batch = ForwardBatch(
        token_ids=torch.zeros_like(index),
        positions=index.expand(3, -1),
        attention=AttentionMetadata(
            slot_mapping=index,
            page_table=torch.arange(num_pages, device=model.device).unsqueeze(0),
            query_start=[0, num_tokens],
            context_lens=[num_tokens],
        ),
    )
    hidden = model.forward(batch, model.new_kv_cache(num_pages, config.page_size))
    model.logits(hidden[: config.max_num_seqs]).softmax(dim=-1)
