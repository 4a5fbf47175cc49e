"""Loads the model, and makes the parts of an engine that fit it and the configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
import logging
from pathlib import Path
import time

import torch
from torch import Tensor

from inference_service.engine.blocks import BlockManager
from inference_service.engine.cpu_forms import (
    Layout,
    pack_large,
    quantise_large,
    refuse_quantization,
    settle_form,
)
from inference_service.engine.device import note_progress
from inference_service.engine.encoder_cache import EncoderCache
from inference_service.engine.gpu_forms import captured_s, launched_s, multiply_skinny
from inference_service.engine.graph_capture import (
    Capture,
    CudaCapture,
    capture_graphs,
    most_rows,
    obstacle,
)
from inference_service.engine.graph_check import GraphCheck
from inference_service.engine.loader import load_model
from inference_service.engine.memory import (
    count_kv_pages,
    plan_placement,
    refuse_impossible_sizes,
    resolve_devices,
    resolve_dtype,
    resolve_max_model_len,
)
from inference_service.engine.pace import Pace
from inference_service.engine.runner import ModelRunner
from inference_service.engine.scheduler import Scheduler
from inference_service.engine_protocol.messages import EngineConfig, EngineReady
from inference_service.families.footprint import graph_sizes
from inference_service.families.registry import load_spec
from inference_service.families.tables import kv_bytes_per_token, module_parts
from inference_service.model_spec import ModelSpec
from inference_service.models.vision_language import VisionLanguageModel
from inference_service.processor import usable_cores


logger = logging.getLogger(__name__)

LoadModel = Callable[..., VisionLanguageModel]
"""The signature of `load_model`; benchmarks fill a model with random weights instead."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of an engine.

    Attributes:
        spec: What the model is.
        device: Its device, or the first of several.
        blocks: The pages of its cache.
        encoder_cache: The embeddings of images.
        pace: What a step may do beside answers.
        scheduler: Plans with both.
        runner: Runs the model on what is planned.
        ready: What the front is told of them.
    """

    spec: ModelSpec
    device: torch.device
    blocks: BlockManager
    encoder_cache: EncoderCache[Tensor]
    pace: Pace
    scheduler: Scheduler
    runner: ModelRunner
    ready: EngineReady


def assemble(config: EngineConfig, load: LoadModel = load_model) -> Parts:
    """Loads the model and allocates its caches.

    Raises:
        ValueError: The model cannot be loaded as configured; the message tells what to change.
    """
    started = time.monotonic()
    spec = load_spec(Path(config.model_dir))
    devices = resolve_devices(config.device)
    model = _load(config, spec, devices, load)
    num_pages = count_kv_pages(config, model)
    max_model_len = min(resolve_max_model_len(config, spec), num_pages * config.page_size)
    blocks = BlockManager(
        num_pages, config.page_size, enable_prefix_caching=config.enable_prefix_caching
    )
    encoder_cache: EncoderCache[Tensor] = EncoderCache(config.encoder_cache_tokens)
    pace = Pace(config.max_num_batched_tokens, config.max_decode_slowdown)
    scheduler = Scheduler(
        blocks,
        encoder_cache,
        max_model_len=max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        pace=pace,
    )
    capture = _capture_for(config, model)
    with_padding = int(capture is not None)
    runner = ModelRunner(
        model,
        model.new_kv_cache(num_pages + with_padding, config.page_size),
        encoder_cache,
        page_size=config.page_size,
        max_num_seqs=config.max_num_seqs,
        max_model_len=max_model_len,
        padding_page=num_pages if with_padding else None,
    )
    if capture is not None:
        _capture(config, runner, num_pages, capture)
    ready = _ready(model, devices, max_model_len, blocks, time.monotonic() - started)
    return Parts(spec, devices[0], blocks, encoder_cache, pace, scheduler, runner, ready)


def _load(
    config: EngineConfig, spec: ModelSpec, devices: Sequence[torch.device], load: LoadModel
) -> VisionLanguageModel:
    """Loads the model in the dtype, on the devices and in the form that fit."""
    dtype = resolve_dtype(config.dtype, spec.checkpoint_dtype, devices[0])
    on_cpu, layout = devices[0].type == "cpu", Layout.PLAIN
    if on_cpu or config.cpu_threads is not None:
        torch.set_num_threads(config.cpu_threads or usable_cores())
    quantised = config.quantization != "none"
    if quantised:
        refuse_quantization(config.quantization, devices)
    if on_cpu:
        whose = "weights that are not quantised" if quantised else "weights"
        form = settle_form(config.dtype, dtype, spec, whose=whose)
        dtype, layout = form.dtype, form.layout
    refuse_impossible_sizes(config, spec, devices, dtype)
    model = load(
        Path(config.model_dir),
        dtype=dtype,
        device=devices[0],
        placement=plan_placement(config, spec, devices, dtype),
        gpu_kernels=config.gpu_kernels,
    )
    if quantised:
        quantise_large(model.decoder)
    if layout is not Layout.PLAIN:
        pack_large(model, layout)
    if not on_cpu:
        measure = launched_s if obstacle(config, model) else captured_s
        multiply_skinny(model.decoder, model.ops, measure)
    if on_cpu:  # on a GPU a step takes less than a second
        note_progress(model)
    return model


def _capture_for(config: EngineConfig, model: VisionLanguageModel) -> Capture | None:
    """What records graphs; None if there are to be none."""
    cause = obstacle(config, model)
    if cause and model.device.type == "cuda":
        logger.info("no CUDA graphs: %s", cause)
    return None if cause else CudaCapture(model.device)


def _capture(config: EngineConfig, runner: ModelRunner, num_pages: int, capture: Capture) -> None:
    """Gives the runner its graphs."""
    sizes = graph_sizes(most_rows(config, num_pages))
    if not sizes:
        return
    around = runner.surroundings(sizes[-1])
    check = partial(
        GraphCheck, sizes, around, num_pages=num_pages, max_tokens=config.max_num_batched_tokens
    )
    runner.graphs = capture_graphs(sizes, around, check, capture)


def _ready(
    model: VisionLanguageModel,
    devices: Sequence[torch.device],
    max_model_len: int,
    blocks: BlockManager,
    load_seconds: float,
) -> EngineReady:
    """What the front is told about the loaded model and its cache."""
    return EngineReady(
        device=",".join(map(str, devices)),
        slow_path="" if model.placement is None else f"{model.placement}, one after the other",
        dtype=str(model.dtype).removeprefix("torch."),
        max_model_len=max_model_len,
        kv_pages_total=blocks.num_pages,
        kv_page_tokens=blocks.page_size,
        kv_bytes_per_token=kv_bytes_per_token(model.spec, model.dtype.itemsize),
        weight_bytes=model.weight_bytes,
        parts=module_parts(model.spec),
        load_seconds=load_seconds,
    )
