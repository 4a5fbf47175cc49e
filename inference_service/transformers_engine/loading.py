"""Loads a model of the library into the memory that there is."""

from __future__ import annotations

from functools import partial
from pathlib import Path
import time
from typing import Final

import torch
from transformers import GenerationConfig

from inference_service.any_model.folder import check_folder
from inference_service.engine.compiling import Grammars
from inference_service.engine.device import note_progress
from inference_service.engine.memory import TORCH_DTYPES, resolve_devices
from inference_service.engine_protocol.messages import EngineConfig, EngineReady
from inference_service.families.footprint import STEP_RESERVE_BYTES, usable_bytes
from inference_service.grammar.vocabulary import load_vocabulary
from inference_service.model_spec import resolve_dtype_name
from inference_service.process_memory import machine_bytes
from inference_service.processor import usable_cores
from inference_service.transformers_engine import library, sizes
from inference_service.transformers_engine.core import Parts, TransformersCore
from inference_service.transformers_engine.prompts import PromptMaker
from inference_service.transformers_engine.trial import state_bytes


_SLOW: Final = "transformers computes it, one sequence after the other"


def load_core(config: EngineConfig) -> TransformersCore:
    """Loads the model of a directory.

    Raises:
        ValueError: It cannot be served; the message is for the operator.
    """
    started = time.monotonic()
    model_dir = Path(config.model_dir)
    check_folder(model_dir)
    _refuse_quantization(config)
    device = _device(config.device)
    if device.type == "cpu" or config.cpu_threads is not None:
        torch.set_num_threads(config.cpu_threads or usable_cores())
    settings = library.load_config(model_dir)
    name = resolve_dtype_name(
        config.dtype, sizes.checkpoint_dtype(settings), on_gpu=device.type == "cuda"
    )
    dtype = TORCH_DTYPES[name]
    parts = sizes.count_parts(library.new_meta_model(settings))
    weight_bytes = sum(count for _, count in parts) * dtype.itemsize
    _refuse_too_large(config, device, weight_bytes)
    model = library.load_model(model_dir, settings, dtype, device)
    if device.type == "cuda":
        note_progress(model, partial(torch.cuda.synchronize, device))
    else:
        note_progress(model)
    token_bytes = sizes.kv_values_per_token(settings) * dtype.itemsize
    window = sizes.context_tokens(settings)
    _refuse_longer_window(config, window)
    vocab_size = model.get_output_embeddings().weight.shape[0]
    ends = sizes.end_tokens(model.generation_config, settings)
    # What is ours to choose: beams, stop strings, the kind of cache would be taken from the checkpoint.
    model.generation_config = GenerationConfig()
    state_tokens = -(-state_bytes(model, ends[0]) // token_bytes)
    activations = sizes.activation_bytes_per_token(settings, dtype.itemsize)
    longest, tokens = _limits(config, device, window, (token_bytes, activations, state_tokens))
    prompts = PromptMaker(library.load_processor(model_dir, settings), settings)
    ready = EngineReady(
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        max_model_len=longest,
        kv_pages_total=tokens,
        kv_page_tokens=1,
        kv_bytes_per_token=token_bytes,
        weight_bytes=weight_bytes,
        parts=parts,
        load_seconds=time.monotonic() - started,
        slow_path=_SLOW,
    )
    return TransformersCore(
        Parts(
            model=model,
            prompts=prompts,
            grammars=Grammars(partial(load_vocabulary, model_dir, vocab_size, ends)),
            ready=ready,
            vocab_size=vocab_size,
            max_num_seqs=config.max_num_seqs,
            state_tokens=state_tokens,
        )
    )


def _device(name: str) -> torch.device:
    devices = resolve_devices(name)
    if len(devices) > 1:
        raise ValueError(
            f"device is {name}, but --backend transformers computes on one device only: name one"
        )
    return devices[0]


def _refuse_quantization(config: EngineConfig) -> None:
    if config.quantization != "none":
        raise ValueError(
            f"quantization is {config.quantization} (--quantization), but --backend transformers does not quantise"
        )


def _refuse_longer_window(config: EngineConfig, window: int) -> None:
    if config.max_model_len is not None and config.max_model_len > window:
        raise ValueError(
            f"max_model_len is {config.max_model_len}, but the model's context window is {window}"
        )


def _refuse_too_large(config: EngineConfig, device: torch.device, weight_bytes: int) -> None:
    """Raises ValueError if the weights do not fit, before gigabytes of them are read."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        room = usable_bytes(total, total - free, config.gpu_memory_utilization)
    else:
        room = machine_bytes()
    if weight_bytes > room:
        raise ValueError(
            f"the weights take {weight_bytes / 2**30:.2f} GiB, but {device} has {room / 2**30:.2f} GiB for them"
        )


def _limits(
    config: EngineConfig, device: torch.device, window: int, needs: tuple[int, int, int]
) -> tuple[int, int]:
    """Tokens of the longest sequence, and those that the caches of all sequences together may hold.

    Args:
        config: What the operator has set.
        device: Where the caches are.
        window: The model's context window.
        needs: Bytes of one token in the cache, bytes of its activations, and tokens for which the state of a sequence
            takes the room.

    Raises:
        ValueError: There is no memory for one.
    """
    wanted = config.max_model_len or window
    token_bytes, activations, state_tokens = needs
    if config.num_kv_pages is not None:
        tokens = config.num_kv_pages * config.page_size
        longest, tokens = sizes.limits(tokens, wanted, 1, 0, state_tokens)
    elif device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        room = usable_bytes(total, total - free, config.gpu_memory_utilization) - STEP_RESERVE_BYTES
        longest, tokens = sizes.limits(room, wanted, token_bytes, activations, state_tokens)
    else:  # the size of the cache is set, and activations have the memory of the machine
        longest, tokens = sizes.limits(
            config.cpu_kv_cache_bytes, wanted, token_bytes, 0, state_tokens
        )
    if longest < 1:
        raise ValueError(
            "no memory is left for the KV cache: increase --gpu-memory-utilization, --cpu-kv-cache-mib or"
            " --num-kv-pages"
        )
    return longest, tokens
