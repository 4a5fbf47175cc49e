"""What watches the service: PodMonitors that the operator accepts, and names of metrics that the code has."""

from __future__ import annotations

import jsonschema
import pytest

from tests.k8s.manifest_set import ROOT, load
from tests.support.metric_names import exposed_names, used_names


# The fields of monitoring.coreos.com/v1 that are used here; all others are refused.
POD_MONITOR = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "kind": {"const": "PodMonitor"},
        "metadata": {"type": "object"},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["selector", "podMetricsEndpoints"],
            "properties": {
                "selector": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {"matchLabels": {"additionalProperties": {"type": "string"}}},
                },
                "podMetricsEndpoints": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "properties": {
                            "port": {"type": "string"},
                            "path": {"type": "string"},
                            "interval": {"type": "string", "pattern": r"^\d+s$"},
                            "scrapeTimeout": {"type": "string", "pattern": r"^\d+s$"},
                        },
                    },
                },
            },
        },
    },
}
TEXTS = sorted(
    path
    for folder in ("k8s", "docs")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".yaml", ".yml", ".json", ".md", ".env")
)


def test_pod_monitors_fit_their_schema():
    monitors = load("monitored").of_kind("PodMonitor")
    assert [item["metadata"]["name"] for item in monitors] == ["inference", "rest-adapter"]
    for item in monitors:
        jsonschema.validate(item, POD_MONITOR)
        (endpoint,) = item["spec"]["podMetricsEndpoints"]
        assert int(endpoint["scrapeTimeout"][:-1]) < int(endpoint["interval"][:-1])


def test_overlays_do_without_the_operator():
    assert load("single-gpu").of_kind("PodMonitor") == []


def test_every_metric_that_manifests_and_documents_use_is_exposed():
    used = {name for path in TEXTS for name in used_names(path.read_text(encoding="utf-8"))}
    assert len(used) > 40  # docs/metrics.md alone
    # A document may name a group: `grpc_client_attempt_...`.
    known = exposed_names()
    unknown = {name for name in used if name not in known and not name.endswith("_")}
    assert unknown == set()


@pytest.mark.parametrize("name", ["qwenvl_requests_waitng", "vllm:num_requests", "rest_pending"])
def test_a_misspelt_name_is_noticed(name):
    assert list(used_names(f"sum(rate({name}[5m])) > 0")) == [name]
    assert name not in exposed_names()
