"""What is exposed: all families with the model's name, and copies under the names of vLLM."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector

from inference_service.metrics.families import REGISTRY


PROVIDER: Final = "qwen-vl-serving"
VLLM_NAMES: Final = {
    "qwenvl_requests_running": "vllm:num_requests_running",
    "qwenvl_requests_waiting": "vllm:num_requests_waiting",
    "qwenvl_kv_cache_usage_ratio": "vllm:kv_cache_usage_perc",
    "qwenvl_cache_config": "vllm:cache_config",
    "qwenvl_prefix_cache_queries": "vllm:prefix_cache_queries",
    "qwenvl_prefix_cache_hits": "vllm:prefix_cache_hits",
    "qwenvl_preemptions": "vllm:num_preemptions",
    "qwenvl_prompt_tokens": "vllm:prompt_tokens",
    "qwenvl_generation_tokens": "vllm:generation_tokens",
    "qwenvl_requests_finished": "vllm:request_success",
    "qwenvl_inter_token_seconds": "vllm:inter_token_latency_seconds",
    "qwenvl_request_queue_seconds": "vllm:request_queue_time_seconds",
    "qwenvl_prefill_seconds": "vllm:request_prefill_time_seconds",
    "qwenvl_decode_seconds": "vllm:request_decode_time_seconds",
}
"""Families (without `_total` and `_info`) and their names in vLLM, for gateways and autoscalers that read these."""


class _OfModel(Collector):
    """Reads collectors, and adds the labels that are the same for all series of this process."""

    def __init__(self, parts: Iterable[Collector], model_name: str, *, vllm_names: bool) -> None:
        self._parts = tuple(parts)
        self._vllm_names = vllm_names
        self._labels = {
            "qwenvl_": {"model_name": model_name},
            "gen_ai_": {"gen_ai_provider_name": PROVIDER, "gen_ai_request_model": model_name},
        }

    def collect(self) -> Iterator[Metric]:
        """All families."""
        for part in self._parts:
            for family in part.collect():
                for prefix, labels in self._labels.items():
                    if family.name.startswith(prefix):
                        family = _changed(family, family.name, labels)  # noqa: PLW2901
                yield family
                if self._vllm_names and family.name in VLLM_NAMES:
                    yield _changed(family, VLLM_NAMES[family.name], {})


def _changed(family: Metric, name: str, labels: dict[str, str]) -> Metric:
    """A copy of a family with another name and more labels."""
    copy = Metric(name, family.documentation, family.type)
    copy.samples = [
        sample._replace(
            name=name + sample.name.removeprefix(family.name), labels=labels | sample.labels
        )
        for sample in family.samples
    ]
    return copy


def exposed(backend: Collector, model_name: str, *, vllm_names: bool) -> CollectorRegistry:
    """The registry that a scrape reads.

    Args:
        backend: The families that are read from the backend.
        model_name: The canonical name of the served model.
        vllm_names: Also expose `VLLM_NAMES`.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_OfModel((REGISTRY, backend), model_name, vllm_names=vllm_names))
    return registry
