"""The metric families that are read from the backend when they are scraped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
import time

from prometheus_client import Metric
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.registry import Collector

from inference_service.backend.base import Backend, BackendInfo, BackendState, Load
from inference_service.measures import (
    BATCH_BOUNDS,
    DURATION_BOUNDS_S,
    ENCODER_MISS_REASONS,
    PREFIX_MISS_REASONS,
    RESTART_CAUSES,
    DeviceMemory,
    Histogram,
)
from inference_service.metrics.exposition import exposed
from inference_service.settings import ServiceSettings
from qwenvl.addresses import why_not
from qwenvl.observability.metrics_server import MetricsServer


def open_metrics(settings: ServiceSettings, backend: Backend) -> MetricsServer:
    """Serves the metrics of the service at `--metrics-address`.

    Raises:
        OSError: It cannot be listened on.
    """
    address = settings.metrics_address
    assert address is not None
    name = backend.names[0]
    registry = exposed(BackendMetrics(backend), name, vllm_names=settings.vllm_metric_names)
    try:
        return MetricsServer(registry, address)
    except OSError as error:
        problem = settings.problem("metrics_address", address, why_not(error))
        raise OSError(problem) from None


class BackendMetrics(Collector):
    """Reads the load and the state of a backend. A scrape may read them in any thread: it changes nothing."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._build = {
            "version": _version("qwen-vl-serving"),
            "torch": _version("torch"),
            "model_revision": backend.describe().revision,
        }

    def collect(self) -> Iterator[Metric]:
        """All families."""
        backend = self._backend
        yield InfoMetricFamily("qwenvl_build", "Versions.", value=self._build)
        yield from of_backend(backend.state, backend.info, backend.load(), backend.in_flight)


def of_backend(
    state: BackendState, info: BackendInfo, load: Load, in_flight: int
) -> Iterator[Metric]:
    """The families of a backend; unknown values have none."""
    yield _gauge("qwenvl_ready", "1 if requests are answered.", state is BackendState.READY)
    yield _gauge(
        "qwenvl_draining", "1 if no new requests are accepted.", state is BackendState.DRAINING
    )
    yield _gauge("qwenvl_model_load_seconds", "Time to load the model.", info.load_seconds)
    yield _counter_by(
        "qwenvl_engine_restarts",
        "Restarts of the engine process.",
        ("cause", RESTART_CAUSES),
        info.restarts,
    )
    yield _gauge(
        "qwenvl_requests_in_flight",
        "Requests that are fetched, decoded, waiting or computed.",
        in_flight,
    )
    yield from _of_load(load)
    yield from _of_engine(load)


def _of_load(load: Load) -> Iterable[Metric]:
    """Queue, batch and caches."""
    used = load.kv_pages_used / load.kv_pages_total if load.kv_pages_total else 0.0
    config = {"block_size": str(load.kv_page_tokens), "num_gpu_blocks": str(load.kv_pages_total)}
    return (
        _gauge("qwenvl_requests_running", "Answers that are computed.", load.running),
        _gauge("qwenvl_requests_waiting", "Answers that wait for the batch.", load.waiting),
        _gauge("qwenvl_kv_cache_usage_ratio", "Used part of the KV cache, 0 to 1.", used),
        InfoMetricFamily("qwenvl_cache_config", "Shape of the KV cache.", value=config),
        _counter(
            "qwenvl_prefix_cache_queries",
            "Prompt tokens that were looked up in the prefix cache.",
            load.prefix_queries,
        ),
        _counter(
            "qwenvl_prefix_cache_hits",
            "Prompt tokens that were found in the prefix cache.",
            load.prefix_hits,
        ),
        _counter_by(
            "qwenvl_prefix_cache_misses",
            "Prompt tokens that were not found in the prefix cache, by why.",
            ("reason", PREFIX_MISS_REASONS),
            load.prefix_misses,
        ),
        _counter(
            "qwenvl_encoder_cache_queries",
            "Images that were looked up in the encoder cache.",
            load.encoder_queries,
        ),
        _counter(
            "qwenvl_encoder_cache_hits",
            "Images that were found in the encoder cache.",
            load.encoder_hits,
        ),
        _counter_by(
            "qwenvl_encoder_cache_misses",
            "Images that were not found in the encoder cache, by why.",
            ("reason", ENCODER_MISS_REASONS),
            load.encoder_misses,
        ),
        _counter("qwenvl_preemptions", "Answers that were computed again.", load.preemptions),
        _gauge(
            "qwenvl_pixel_bytes_in_flight",
            "Pixels on the way to the engine or held by it, in bytes.",
            load.pixel_bytes_in_flight,
        ),
    )


def _of_engine(load: Load) -> Iterator[Metric]:
    """Steps and memory of the engine; nothing that is not known."""
    if load.last_step_s is not None:
        yield _gauge(
            "qwenvl_engine_last_step_age_seconds",
            "Time since the engine last ended a step, or had none to compute.",
            time.monotonic() - load.last_step_s,
        )
    yield _histogram("qwenvl_engine_step_seconds", "Time of a step.", load.step_durations)
    yield _histogram(
        "qwenvl_engine_batch_size",
        "Sequences that are computed together in a step.",
        load.batch_sizes,
        BATCH_BOUNDS,
    )
    yield _histogram(
        "qwenvl_vision_encode_seconds",
        "Time that a step encodes images; a large image takes several steps.",
        load.encode_durations,
    )
    if load.device_memory is not None:
        yield _memory(load.device_memory)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, value=value)


def _counter_by(
    name: str, text: str, by: tuple[str, Sequence[str]], counts: Mapping[str, int]
) -> CounterMetricFamily:
    """A counter with all values of its label from the start, so that rates are right."""
    label, values = by
    family = CounterMetricFamily(name, text, labels=[label])
    for value in values:
        family.add_metric([value], counts.get(value, 0))
    return family


def _histogram(
    name: str, text: str, measured: Histogram, bounds: Sequence[float] = DURATION_BOUNDS_S
) -> HistogramMetricFamily:
    counts = measured.counts or (0,) * (len(bounds) + 1)
    buckets = list(zip((*map(str, bounds), "+Inf"), accumulate(counts), strict=True))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=measured.total)


def _memory(memory: DeviceMemory) -> Metric:
    family = GaugeMetricFamily("qwenvl_gpu_memory_bytes", "Memory of the GPU.", labels=["kind"])
    for kind in ("allocated", "reserved", "total"):
        family.add_metric([kind], getattr(memory, kind))
    return family


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
