"""The names of all series that the code exposes, and the names that files use."""

from __future__ import annotations

from collections.abc import Iterator
import re

from inference_service.backend.base import BackendInfo, BackendState, Load
from inference_service.grpc_api.backend_metrics import of_backend
from inference_service.measures import DeviceMemory
from inference_service.metrics import families
from inference_service.metrics.exposition import VLLM_NAMES
from rest_adapter import metrics as adapter_metrics


_SUFFIXES = {
    "counter": ("_total",),
    "info": ("_info",),
    "histogram": ("_bucket", "_count", "_sum"),
    "gauge": ("",),
}
_NAME = re.compile(
    r"\b(?:vllm:|qwenvl_|gen_ai_(?:server|client)_|rest_|http_server_|grpc_(?:server|client)_)[a-z0-9_]+"
)
_NO_METRICS = re.compile(r"gen_ai_(operation|token|request|provider)|qwenvl_client|rest_adapter")


def exposed_names() -> set[str]:
    """Every series of both programs; a histogram also counts without its suffixes."""
    load = Load(last_step_s=0.0, device_memory=DeviceMemory(allocated=0, reserved=0, total=0))
    found = [
        *families.REGISTRY.collect(),
        *adapter_metrics.REGISTRY.collect(),
        *of_backend(BackendState.READY, BackendInfo(), load, 0),
    ]
    kinds = {family.name: family.type for family in found}
    kinds |= {vllm: kinds[own] for own, vllm in VLLM_NAMES.items()}
    kinds["qwenvl_build"] = "info"
    names = {name + suffix for name, kind in kinds.items() for suffix in _SUFFIXES[kind]}
    return names | {name for name, kind in kinds.items() if kind == "histogram"}


def used_names(text: str) -> Iterator[str]:
    """The names of metrics of this project in a text: a rule, a dashboard, a manifest, a document."""
    return (name for name in _NAME.findall(text) if not _NO_METRICS.match(name))
