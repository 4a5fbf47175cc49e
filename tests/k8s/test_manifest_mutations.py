"""The rules notice what they are for: every broken manifest is refused by the rule that is named beside it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.k8s import manifest_policy
from tests.k8s.manifest_set import Manifests, load
from tests.k8s.rules import RULES


def _set(kind: str, name: str, path: str, value: Any) -> Callable[[Manifests], None]:
    """Sets one field of one object; None deletes it. Numbers in the path are list indices."""

    def mutate(manifests: Manifests) -> None:
        place: Any = manifests.get(kind, name)
        steps = [step.replace("~1", "/") for step in path.split("/")]
        *way, last = [int(step) if step.isdigit() else step for step in steps]
        for step in way:
            place = place[step]
        if value is None:
            del place[last]
        else:
            place[last] = value

    return mutate


def _setting(name: str, value: str | None) -> Callable[[Manifests], None]:
    def mutate(manifests: Manifests) -> None:
        data = next(
            item["data"]
            for item in manifests.of_kind("ConfigMap")
            if item["metadata"]["name"].startswith("inference-settings")
        )
        if value is None:
            del data[name]
        else:
            data[name] = value

    return mutate


def _without(kind: str, name: str) -> Callable[[Manifests], None]:
    return lambda manifests: manifests.objects.remove(manifests.get(kind, name))


POD = "spec/template/spec"
BOX = f"{POD}/containers/0"
inference = partial(_set, "Deployment", "inference")
adapter = partial(_set, "Deployment", "rest-adapter")

BROKEN = [
    ("selectors", inference("spec/template/metadata/labels/app.kubernetes.io~1name", "x")),
    ("selectors", _set("Service", "rest-adapter", "spec/selector/app", "x")),
    ("probe_ports", inference(f"{BOX}/readinessProbe/grpc/port", 50053)),
    ("service_ports", _set("Service", "rest-adapter", "spec/ports/0/targetPort", "web")),
    ("service_ports", _set("Service", "inference", "spec/ports/0/port", 80)),
    ("policy_ports", _set("NetworkPolicy", "inference", "spec/ingress/0/ports/0/port", 50052)),
    ("mounts", inference(f"{BOX}/volumeMounts/0/name", "models")),
    ("references", adapter(f"{POD}/serviceAccountName", "adapter")),
    ("references", _without("PersistentVolumeClaim", "model-cache")),
    ("gpu", inference(f"{BOX}/resources/requests/nvidia.com~1gpu", "2")),
    ("gpu", inference("spec/strategy", {"type": "RollingUpdate"})),
    ("memory", inference(f"{BOX}/resources/limits/memory", "1Gi")),
    ("drain", inference(f"{POD}/terminationGracePeriodSeconds", 100)),
    ("drain", _setting("QWENVL_DRAIN_TIMEOUT_S", "300")),
    ("drain", adapter(f"{BOX}/lifecycle", None)),
    ("startup", inference(f"{BOX}/startupProbe/failureThreshold", 15)),
    ("startup", inference(f"{BOX}/livenessProbe/grpc/service", "readiness")),
    ("startup", inference("spec/progressDeadlineSeconds", 600)),
    ("startup", adapter(f"{BOX}/readinessProbe/httpGet/path", "/ready")),
    ("security", inference(f"{BOX}/securityContext/capabilities/drop", [])),
    ("security", adapter(f"{POD}/securityContext/runAsNonRoot", None)),
    ("security", adapter(f"{BOX}/securityContext/readOnlyRootFilesystem", False)),
    ("security", inference(f"{POD}/automountServiceAccountToken", True)),
    ("security", inference(f"{POD}/hostNetwork", True)),
    ("settings", _setting("QWENVL_MAX_SEQS", "64")),
    ("settings", _setting("QWENVL_DEVICE", "gpu")),
    ("addresses", _setting("QWENVL_GRPC_ADDRESS", "[::]:50061")),
    ("addresses", _setting("QWENVL_GRPC_ADDRESS", None)),
    ("addresses", _setting("QWENVL_GRPC_ADDRESS", "0.0.0.0:50051")),
    ("addresses", _setting("QWENVL_METRICS_ADDRESS", "0.0.0.0:9090")),
    ("rebalancing", _setting("QWENVL_MAX_CONNECTION_AGE_S", None)),
    ("addresses", _setting("QWENVL_ADMIN_ADDRESS", "0.0.0.0:50052")),
    ("addresses", _set("Service", "inference", "metadata/name", "qwen")),
    ("addresses", _set("Service", "inference", "spec/clusterIP", None)),
    ("files", _setting("QWENVL_API_KEY_FILE", None)),
    ("model_volume", _setting("QWENVL_MODEL", "/model/Qwen3-VL-4B-Instruct")),
    ("model_volume", _setting("HF_HOME", "/tmp/huggingface")),
    ("model_volume", inference(f"{BOX}/volumeMounts/0/readOnly", False)),
    ("model_volume", inference(f"{POD}/initContainers", [])),
    ("model_revision", _setting("QWENVL_REVISION", "main")),
    ("model_revision", _setting("QWENVL_REVISION", None)),
    ("model_download", inference(f"{POD}/initContainers/0/command", ["hf", "download"])),
    ("model_download", inference(f"{POD}/initContainers/0/envFrom", [])),
    ("model_download", inference(f"{POD}/initContainers/0/volumeMounts/0/readOnly", True)),
    ("shared_volume", inference("spec/replicas", 2)),
    ("network", _setting("QWENVL_ENABLE_MEDIA_FETCH", "false")),
    ("network", _without("NetworkPolicy", "media-egress")),
    ("model_volume", inference(f"{POD}/initContainers/0/name", "other")),
    ("network", _without("NetworkPolicy", "default")),
    ("monitors", _setting("QWENVL_METRICS_ADDRESS", "[::]:9091")),
    ("monitors", _setting("QWENVL_METRICS_ADDRESS", None)),
    ("monitors", _set("PodMonitor", "inference", "spec/podMetricsEndpoints/0/port", "grpc")),
    ("monitors", _set("PodMonitor", "inference", "spec/podMetricsEndpoints/0/path", "/")),
    ("monitors", _set("PodMonitor", "rest-adapter", "spec/selector/matchLabels", {"a": "b"})),
    ("monitors", _set("NetworkPolicy", "inference-metrics", "spec/ingress/0/from", None)),
    ("monitors", _without("NetworkPolicy", "rest-adapter-metrics")),
    ("token_accounts", _set("ServiceAccount", "inference", "automountServiceAccountToken", None)),
    ("unique", _set("Service", "rest-adapter", "metadata/namespace", "default")),
]


@pytest.mark.parametrize(("rule", "mutate"), BROKEN)
def test_a_broken_manifest_is_refused(rule, mutate):
    manifests = load("monitored")
    mutate(manifests)
    assert list(RULES[rule](manifests))


@pytest.mark.parametrize("tag", ["latest", "0.0.9"])
def test_a_wrong_image_tag_is_refused(tag):
    manifests = load("base")
    inference(f"{BOX}/image", f"qwen-vl-serving/inference:{tag}")(manifests)
    assert list(manifest_policy.images(manifests, "0.2.0"))


def test_every_rule_has_a_broken_manifest():
    assert {rule for rule, _ in BROKEN} == set(RULES)
