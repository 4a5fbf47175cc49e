"""What watches the service: PodMonitors that the operator accepts, and names of metrics that the code has."""

from __future__ import annotations

import pytest

from tests.k8s import crd_schemas
from tests.k8s.manifest_set import ROOT, load
from tests.support.metric_names import exposed_names, used_names


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
        crd_schemas.validate(item)
        (endpoint,) = item["spec"]["podMetricsEndpoints"]
        assert int(endpoint["scrapeTimeout"][:-1]) < int(endpoint["interval"][:-1])


def test_overlays_do_without_the_operator():
    assert {item["kind"] for item in load("single-gpu").objects} & crd_schemas.KINDS == set()


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
