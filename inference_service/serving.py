"""Serves a model that was found: its files, the servers, and the client of the engine process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from inference_service.any_model.choice import BackendKind
from inference_service.backend.local import LocalBackend
from inference_service.backend.served_model import Model, ServedModel
from inference_service.backend.transformers import TransformersModel
from inference_service.engine_client.child import EngineProcess
from inference_service.engine_client.client import EngineClient
from inference_service.engine_protocol.messages import EngineConfig
from inference_service.grpc_api.server import serve
from inference_service.hub.resolve import ResolvedModel
from inference_service.settings import ServiceSettings
from qwenvl.observability import start_tracing, stop_tracing


def run(
    settings: ServiceSettings,
    resolved: ResolvedModel,
    kind: BackendKind,
    command: Sequence[str],
    engine: EngineProcess | None,
) -> int:
    """Serves until the service is stopped; returns the exit status.

    Args:
        settings: The settings.
        resolved: The model's directory and names.
        kind: What computes it.
        command: Program and arguments of the engine process.
        engine: The first engine process, if it runs already; the caller ends it.

    Raises:
        SystemExit: The model's files are wrong, or an address cannot be bound.
    """
    try:
        model = _load(kind, resolved.directory, resolved.served_names, settings)
    except (ValueError, OSError) as error:
        raise SystemExit(f"cannot serve this model: {error}") from None
    start_tracing(
        settings.otlp_traces_endpoint,
        process="inference-service",
        version=version("qwen-vl-serving"),
    )
    client = EngineClient(
        engine_config(settings, model),
        start_timeout_s=settings.engine_start_timeout_s,
        stall_timeout_s=settings.engine_stall_timeout_s,
        pixel_budget_bytes=settings.pixel_budget_mib * 2**20,
        command=command,
        first=engine,
    )
    try:
        return asyncio.run(_serve(settings, model, client))
    except OSError as error:
        raise SystemExit(str(error)) from None
    finally:
        stop_tracing()


async def _serve(settings: ServiceSettings, model: Model, engine: EngineClient) -> int:
    return await serve(settings, LocalBackend(settings, model, engine))


def _load(
    kind: BackendKind, directory: Path, names: tuple[str, ...], settings: ServiceSettings
) -> Model:
    """The model's files, as the backend needs them; raises ValueError and OSError."""
    if kind is BackendKind.TRANSFORMERS:
        return TransformersModel.load(directory, names, settings)
    return ServedModel.load(directory, names, history_window=settings.history_window)


def engine_config(settings: ServiceSettings, model: Model) -> EngineConfig:
    """The configuration that the engine process is started with."""
    return EngineConfig(
        model_dir=str(model.directory),
        dtype=settings.dtype,
        device=settings.device,
        quantization=settings.quantization,
        gpu_kernels=settings.gpu_kernels,
        cuda_graphs=settings.cuda_graphs,
        pipeline_depth=settings.pipeline_depth,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        max_decode_slowdown=settings.max_decode_slowdown,
        page_size=settings.kv_page_size,
        num_kv_pages=settings.num_kv_pages,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        cpu_kv_cache_bytes=settings.cpu_kv_cache_mib * 2**20,
        encoder_cache_tokens=settings.encoder_cache_tokens,
        enable_prefix_caching=settings.enable_prefix_caching,
        cpu_threads=settings.cpu_threads,
        log_level=settings.log_level,
        log_format=settings.log_format,
    )
