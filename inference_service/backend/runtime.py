"""What operators learn of a running engine: its state, its device and its load."""

from __future__ import annotations

from typing import Final

from inference_service.backend.base import BackendInfo, BackendState, Load
from inference_service.engine_client.interface import Engine, EngineState
from inference_service.settings import ServiceSettings


STATES: Final = {
    EngineState.STARTING: BackendState.LOADING,
    EngineState.READY: BackendState.READY,
    EngineState.SILENT: BackendState.RESTARTING,
    EngineState.RESTARTING: BackendState.RESTARTING,
    EngineState.FAILED: BackendState.FAILED,
    EngineState.CLOSED: BackendState.FAILED,
}
"""The state of the backend by that of its engine."""


def info_of(engine: Engine, settings: ServiceSettings) -> BackendInfo:
    """What is known of the engine; what it has not told yet is empty."""
    ready = engine.ready
    return BackendInfo(
        device=ready.device if ready else "",
        dtype=ready.dtype if ready else "",
        slow_path=ready.slow_path if ready else "",
        restarts=engine.restarts,
        pid=engine.pid or 0,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        max_context_tokens=ready.max_model_len if ready else 0,
        load_seconds=ready.load_seconds if ready else 0.0,
    )


def load_of(engine: Engine, waiting: int) -> Load:
    """The load of the engine, to which `waiting` answers have not been sent yet."""
    stats = engine.stats
    return Load(
        running=stats.running,
        waiting=stats.waiting + waiting,
        kv_pages_total=stats.kv_pages_total,
        kv_pages_used=stats.kv_pages_used,
        kv_pages_cached=stats.kv_pages_cached,
        kv_page_tokens=stats.kv_page_tokens,
        prefix_queries=stats.prefix_queries,
        prefix_hits=stats.prefix_hits,
        prefix_misses=stats.prefix_misses,
        encoder_queries=stats.encoder_queries,
        encoder_hits=stats.encoder_hits,
        encoder_misses=stats.encoder_misses,
        preemptions=stats.preemptions,
        pixel_bytes_in_flight=engine.pixel_bytes_in_flight,
        step_durations=stats.step_durations,
        encode_durations=stats.encode_durations,
        batch_sizes=stats.batch_sizes,
        device_memory=stats.device_memory,
        last_step_s=engine.last_step_s,
    )
