"""The rendered manifests keep the schemas of Kubernetes and the rules of this project."""

from __future__ import annotations

import json
import tomllib

import kubernetes_validate
import pytest

from inference_service.settings import ServiceSettings
from tests.k8s import crd_schemas, manifest_policy, pod_policy
from tests.k8s.edge_policy import PRIVATE
from tests.k8s.manifest_network import Endpoint, outside, reaches
from tests.k8s.manifest_set import APPLIED, OVERLAYS, ROOT, Object, load
from tests.k8s.rules import broken_rules


VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


RELEASES = ("1.34", "1.36", "1.37")


@pytest.mark.parametrize("release", RELEASES)
def test_every_object_fits_the_strict_schema(release):
    objects = {json.dumps(item, sort_keys=True) for name in APPLIED for item in load(name).objects}
    assert len(objects) > 15
    for text in objects:
        check_schema(json.loads(text), release)


def check_schema(item: Object, release: str) -> None:
    """An unknown kind raises as well: nothing passes for lack of a schema."""
    if item["kind"] in crd_schemas.KINDS:
        crd_schemas.validate(item)
    else:
        assert kubernetes_validate.validate(item, release, strict=True) == release


def test_a_misspelt_field_does_not_fit():
    deployment = load("base").get("Deployment", "inference")
    deployment["spec"]["replicaz"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, "1.37", strict=True)


@pytest.mark.parametrize("kustomization", sorted(APPLIED.keys() - {"base"}))
def test_every_rule_holds(kustomization):
    assert broken_rules(load(kustomization)) == {}


@pytest.mark.parametrize("kustomization", APPLIED)
def test_image_tags_are_the_version_of_the_project(kustomization):
    assert list(manifest_policy.images(load(kustomization), VERSION)) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_has_both_apis(overlay):
    manifests = load(overlay)
    deployments = [item["metadata"]["name"] for item in manifests.of_kind("Deployment")]
    assert deployments == ["inference", "rest-adapter"]
    assert manifests.get("Service", "inference")["spec"]["clusterIP"] == "None"
    assert manifests.get("Service", "rest-adapter")["spec"]["ports"][0]["port"] == 8000


def test_only_the_developers_overlay_brings_a_key():
    assert load("base").of_kind("Secret") == []
    assert load("single-gpu").of_kind("Secret") == []
    assert len(load("dev-cpu").of_kind("Secret")) == 1


def test_dev_cpu_serves_the_embedded_model_without_gpu_or_volume():
    manifests = load("dev-cpu")
    (container,) = manifests.get("Deployment", "inference")["spec"]["template"]["spec"][
        "containers"
    ]
    values = manifest_policy.settings_of(manifests, container)
    assert isinstance(values, ServiceSettings)
    assert (values.model, values.served_model_name, values.device) == (None, (), "cpu")
    assert pod_policy.GPU not in str(container["resources"])
    assert manifests.of_kind("PersistentVolumeClaim") == []


def test_single_gpu_hands_the_gpu_over_and_keeps_to_gpu_nodes():
    deployment = load("single-gpu").get("Deployment", "inference")
    pod = deployment["spec"]["template"]["spec"]
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    assert "nodeSelector" not in pod
    assert pod["tolerations"][0]["key"] == pod_policy.GPU
    assert pod["containers"][0]["resources"]["limits"][pod_policy.GPU] == "1"


INFERENCE = Endpoint({"app.kubernetes.io/name": "inference"})
ADAPTER = Endpoint({"app.kubernetes.io/name": "rest-adapter"})
STRANGER = Endpoint({"app": "x"}, namespace="other")
CALLER = Endpoint(
    {"app": "x"}, namespace="team", namespace_labels={"qwen-vl-serving/grpc-client": "true"}
)
DNS = Endpoint(
    {"k8s-app": "kube-dns"},
    namespace="kube-system",
    namespace_labels={"kubernetes.io/metadata.name": "kube-system"},
)
OPENSHIFT_DNS = Endpoint(
    {"dns.operator.openshift.io/daemonset-dns": "default"},
    namespace="openshift-dns",
    namespace_labels={"kubernetes.io/metadata.name": "openshift-dns"},
)
GATEWAY = Endpoint(
    {"app": "x"}, namespace="gateways", namespace_labels={"qwen-vl-serving/gateway": "true"}
)
PROMETHEUS = Endpoint(
    {"app": "x"}, namespace="monitoring", namespace_labels={"qwen-vl-serving/prometheus": "true"}
)
COLLECTOR = Endpoint(
    {"app": "x"},
    namespace="observability",
    namespace_labels={"qwen-vl-serving/otlp-collector": "true"},
)
OURS = ("inference", "adapter", "download", "picker")
NAMES = {
    "inference": INFERENCE,
    "adapter": ADAPTER,
    "download": Endpoint({"app.kubernetes.io/name": "model-download"}),
    "picker": Endpoint(manifest_policy.PICKER),
    "gateway": GATEWAY,
    "prometheus": PROMETHEUS,
    "collector": COLLECTOR,
    "stranger": STRANGER,
    "caller": CALLER,
    "dns": DNS,
    "node_dns": outside("169.254.20.10"),
    "openshift_dns": OPENSHIFT_DNS,
    "public": outside("93.184.215.14"),
    "public6": outside("2606:2800:21f::1"),
    "lan": outside("192.168.1.1"),
}
PORTS = (53, 80, 443, 4317, 5353, 6443, 8000, 9002, 9090, 9091, 50051, 50052)
ALWAYS = {
    ("adapter", "inference", 50051),
    ("caller", "inference", 50051),
    *((name, "adapter", 8000) for name in NAMES.keys() - set(OURS)),
    *(
        (name, server, port)
        for name in OURS
        for server, port in (("dns", 53), ("node_dns", 53), ("openshift_dns", 5353))
    ),
}
PUBLIC = ("public", "public6")
WITH_MEDIA = {("inference", name, port) for name in PUBLIC for port in (80, 443)}
WITH_DOWNLOAD = {("download", name, 443) for name in PUBLIC}
WITH_MONITORING = {("prometheus", name, 9090) for name in ("inference", "adapter")}
WITH_TRACES = {(name, "collector", 4317) for name in ("inference", "adapter")}
WITH_GATEWAY = {("gateway", "inference", 50051)}
WITH_POOL = {
    ("gateway", "inference", 8000),
    ("prometheus", "inference", 9091),
    ("gateway", "picker", 9002),
    ("picker", "inference", 9090),
    # The API server, wherever it is.
    *(("picker", name, port) for name in (*PUBLIC, "lan") for port in (443, 6443)),
}
PROD = ALWAYS | WITH_MEDIA | WITH_DOWNLOAD | WITH_MONITORING | WITH_GATEWAY


@pytest.mark.parametrize(
    ("kustomization", "wanted"),
    [
        ("base", ALWAYS),
        ("dev-cpu", ALWAYS | WITH_MEDIA),
        ("single-gpu", ALWAYS | WITH_MEDIA),
        ("monitored", ALWAYS | WITH_MEDIA | WITH_MONITORING),
        ("to-zero", ALWAYS | WITH_MONITORING),
        ("native-zero", ALWAYS | WITH_MONITORING),
        ("traced", ALWAYS | WITH_MEDIA | WITH_MONITORING | WITH_TRACES),
        ("guarded", PROD | WITH_TRACES),
        ("image", ALWAYS),
        ("prod", PROD),
        ("pool", PROD | WITH_POOL),
    ],
)
def test_who_reaches_whom(kustomization, wanted):
    manifests = load(kustomization)
    seen = {
        (source, target, port)
        for source in NAMES
        for target in NAMES
        for port in PORTS
        if source in OURS or target in OURS
        if reaches(manifests, NAMES[source], NAMES[target], port)
    }
    assert seen == wanted


@pytest.mark.parametrize("address", PRIVATE)
@pytest.mark.parametrize("kustomization", [*OVERLAYS, "shared"])
def test_no_pod_reaches_an_address_that_is_not_public(kustomization, address):
    manifests = load(kustomization)
    for workload in manifests.workloads():
        pod = Endpoint(workload.labels)
        assert not any(reaches(manifests, pod, outside(address), port) for port in PORTS)
