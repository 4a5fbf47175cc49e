"""The gRPC front as a program: settings, logs, the model's files, the servers and the engine process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from importlib.metadata import version
import logging
import os
from pathlib import Path

from inference_service.any_model.choice import BackendKind, choose_backend
from inference_service.backend.local import LocalBackend
from inference_service.backend.served_model import Model, ServedModel
from inference_service.backend.transformers import TransformersModel
from inference_service.engine_client.child import DEFAULT_COMMAND, TRANSFORMERS_COMMAND
from inference_service.engine_client.client import EngineClient
from inference_service.engine_protocol.messages import EngineConfig
from inference_service.grpc_api.server import serve
from inference_service.hub.resolve import ModelNotFound, resolve_model
from inference_service.media.policy import FetchPolicy
from inference_service.settings import ServiceSettings
from qwenvl.command_line import CommandParser, add_version
from qwenvl.environment import check_variables
from qwenvl.observability import (
    configure_logging,
    default_log_format,
    start_tracing,
    stop_tracing,
)


logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the service until it is stopped; returns the exit status."""
    parser = CommandParser(prog="inference-service", description="Serve a Qwen-VL model over gRPC.")
    add_version(parser)
    ServiceSettings.add_flags(parser)
    flags = vars(parser.parse_args(argv))
    warnings = check_variables(os.environ)
    settings = ServiceSettings.load(flags, os.environ)
    settings.check_files()
    configure_logging(
        process="inference-service", level=settings.log_level, log_format=settings.log_format
    )
    for warning in warnings:
        logger.warning(warning)
    try:
        FetchPolicy.from_settings(settings)
    except ValueError as error:
        raise SystemExit(f"invalid settings: {error}") from None
    try:
        resolved = resolve_model(
            settings.model,
            settings.served_model_name,
            hub=settings.hub,
            revision=settings.revision,
        )
        kind = choose_backend(settings.backend, resolved.directory)
        model = _load(kind, resolved.directory, resolved.served_names, settings)
    except (ModelNotFound, ValueError, OSError) as error:
        raise SystemExit(f"cannot serve this model: {error}") from None
    start_tracing(
        settings.otlp_traces_endpoint,
        process="inference-service",
        version=version("qwen-vl-serving"),
    )
    try:
        return asyncio.run(_run(settings, model, kind))
    except OSError as error:
        raise SystemExit(str(error)) from None
    finally:
        stop_tracing()


def _load(
    kind: BackendKind, directory: Path, names: tuple[str, ...], settings: ServiceSettings
) -> Model:
    """The model's files, as the backend needs them; raises ValueError and OSError."""
    if kind is BackendKind.TRANSFORMERS:
        return TransformersModel.load(directory, names, settings)
    return ServedModel.load(directory, names, history_window=settings.history_window)


async def _run(settings: ServiceSettings, model: Model, kind: BackendKind) -> int:
    engine = EngineClient(
        engine_config(settings, model),
        start_timeout_s=settings.engine_start_timeout_s,
        stall_timeout_s=settings.engine_stall_timeout_s,
        pixel_budget_bytes=settings.pixel_budget_mib * 2**20,
        command=engine_command(settings, kind),
    )
    return await serve(settings, LocalBackend(settings, model, engine))


def engine_command(
    settings: ServiceSettings, kind: BackendKind = BackendKind.NATIVE
) -> tuple[str, ...]:
    """The engine's command line, with the log level and format of this process."""
    log_format = settings.log_format or default_log_format()
    return (
        *(TRANSFORMERS_COMMAND if kind is BackendKind.TRANSFORMERS else DEFAULT_COMMAND),
        f"--log-level={settings.log_level}",
        f"--log-format={log_format}",
    )


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
    )
