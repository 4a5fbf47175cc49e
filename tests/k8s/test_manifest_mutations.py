"""The rules notice what they are for: every broken manifest is refused by the rule that is named beside it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
import tomllib
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from tests.k8s import manifest_policy
from tests.k8s.manifest_set import ROOT, Manifests, load
from tests.k8s.rules import RULES, broken_rules
from tests.k8s.test_manifests import RELEASES, check_schema


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


def _adapter_setting(name: str, value: str) -> Callable[[Manifests], None]:
    def mutate(manifests: Manifests) -> None:
        for item in manifests.of_kind("ConfigMap"):
            if item["metadata"]["name"].startswith("adapter-settings"):
                item["data"][name] = value

    return mutate


def _append(kind: str, name: str, path: str, value: Any) -> Callable[[Manifests], None]:
    """Appends to a list of one object, which is made if it is not there."""

    def mutate(manifests: Manifests) -> None:
        place: Any = manifests.get(kind, name)
        *way, last = [int(step) if step.isdigit() else step for step in path.split("/")]
        for step in way:
            place = place[step]
        place.setdefault(last, []).append(value)

    return mutate


def _add(item: Any) -> Callable[[Manifests], None]:
    return lambda manifests: manifests.objects.append(item)


def _without(kind: str, name: str) -> Callable[[Manifests], None]:
    return lambda manifests: manifests.objects.remove(manifests.get(kind, name))


def _without_kind(kind: str) -> Callable[[Manifests], None]:
    def mutate(manifests: Manifests) -> None:
        manifests.objects[:] = [item for item in manifests.objects if item["kind"] != kind]

    return mutate


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


hpa = partial(_set, "HorizontalPodAutoscaler", "inference")
scaled = partial(_set, "ScaledObject", "inference")
pdb = partial(_set, "PodDisruptionBudget", "inference")
http = partial(_set, "HTTPRoute", "rest-adapter")
grpc = partial(_set, "GRPCRoute", "inference")
gateway = partial(_set, "Gateway", "qwen-vl")
pool = partial(_set, "InferencePool", "inference")
SIDECAR = f"{POD}/initContainers/0"
TRIGGER = "spec/triggers/0/metadata"
ENGINE_TYPE = "spec/template/metadata/labels/llm-d.ai~1engine-type"

BROKEN += [
    ("complete", adapter(f"{BOX}/name", "adapter")),
    ("complete", _without("Deployment", "rest-adapter")),
    ("image_versions", inference(f"{BOX}/image", "qwen-vl-serving/inference:latest")),
    ("image_versions", inference(f"{BOX}/imagePullPolicy", "Sometimes")),
    ("image_versions", adapter(f"{BOX}/terminationMessagePolicy", None)),
    ("users", inference(f"{POD}/securityContext/fsGroup", 0)),
    ("users", adapter(f"{POD}/securityContext/runAsUser", 1000)),
    ("scratch", inference(f"{BOX}/env/0/value", "/root")),
    ("scratch", adapter(f"{BOX}/volumeMounts/1/mountPath", "/var/tmp")),
    ("scratch", adapter(f"{BOX}/resources/limits/ephemeral-storage", "64Mi")),
    ("scratch", inference(f"{BOX}/resources/requests/cpu", "4000")),
    ("key_files", inference(f"{BOX}/volumeMounts/1/readOnly", None)),
    ("key_files", adapter(f"{POD}/volumes/0/secret/defaultMode", 0o444)),
    ("key_files", inference(f"{POD}/volumes/3/emptyDir/medium", None)),
    ("probe_times", inference(f"{BOX}/readinessProbe/failureThreshold", 30)),
    ("probe_times", inference(f"{BOX}/livenessProbe/periodSeconds", 1)),
    ("probe_times", adapter(f"{BOX}/livenessProbe/timeoutSeconds", None)),
    ("probe_times", inference(f"{POD}/terminationGracePeriodSeconds", 86400)),
    ("rollout", adapter("spec/strategy/rollingUpdate/maxUnavailable", 1)),
    ("rollout", adapter("spec/strategy", {"type": "Recreate"})),
    ("rollout", inference("spec/progressDeadlineSeconds", 86400)),
    ("gpu_nodes", inference(f"{POD}/tolerations", [])),
    ("gpu_nodes", inference(f"{POD}/tolerations/0/effect", "NoExecute")),
    ("gpu_nodes", inference(f"{POD}/nodeSelector/nvidia.com~1gpu.present", "false")),
    ("edges", _without("NetworkPolicy", "dns")),
    ("edges", _set("NetworkPolicy", "dns", "spec/egress/0/ports/0/protocol", "TCP")),
    ("edges", _set("NetworkPolicy", "rest-adapter", "spec/egress", [])),
    ("edges", _set("NetworkPolicy", "rest-adapter", "spec/ingress/0/ports/0/port", 80)),
    (
        "edges",
        _set(
            "NetworkPolicy",
            "inference",
            "spec/ingress/0/from/0/podSelector",
            {"matchLabels": {"a": "b"}},
        ),
    ),
    ("closed", _set("NetworkPolicy", "media-egress", "spec/egress/0/to/0/ipBlock/except", [])),
    ("closed", _set("NetworkPolicy", "inference", "spec/ingress/0/from", None)),
    ("closed", _set("NetworkPolicy", "inference", "spec/ingress/0/ports", None)),
    ("policy_fields", _set("NetworkPolicy", "inference", "spec/policyTypes/0", "ingress")),
    ("policy_fields", _set("NetworkPolicy", "rest-adapter", "spec/policyTypes", ["Ingress"])),
    ("policy_fields", _set("NetworkPolicy", "inference", "spec/ingress/0/ports/0/protocol", "tcp")),
    ("service_protocols", _set("Service", "inference", "spec/ports/0/appProtocol", "http")),
    ("service_protocols", _set("Service", "rest-adapter", "spec/ports/0/port", 80)),
]

# The same for everything at once: the overlay `prod` with an inference pool.
BROKEN_POOL = [
    ("scalers", hpa("spec/scaleTargetRef/name", "qwen")),
    ("scalers", hpa("spec/minReplicas", 8)),
    ("scalers", inference("spec/replicas", 2)),
    ("scaling_metrics", hpa("spec/metrics/0/pods/metric/name", "qwenvl_requests_inflight")),
    ("scaling_metrics", hpa("spec/metrics/0/pods/metric/name", "queue_length")),
    ("scaling_metrics", hpa("spec/minReplicas", 0)),
    ("scaling_metrics", _without_kind("PodMonitor")),
    ("scaling_thresholds", hpa("spec/metrics/0/pods/target/averageValue", "100")),
    ("scaling_thresholds", adapter(f"{BOX}/resources/requests/cpu", None)),
    ("slow_scale_down", hpa("spec/behavior/scaleDown/stabilizationWindowSeconds", 60)),
    ("disruption", pdb("spec/maxUnavailable", 0)),
    ("disruption", pdb("spec/minAvailable", 1)),
    ("disruption", pdb("spec/unhealthyPodEvictionPolicy", None)),
    ("disruption", _without("PodDisruptionBudget", "rest-adapter")),
    ("selectors", pdb("spec/selector/matchLabels", {"app": "inference"})),
    ("spreading", inference(f"{POD}/topologySpreadConstraints", [])),
    (
        "spreading",
        inference(f"{POD}/topologySpreadConstraints/0/whenUnsatisfiable", "DoNotSchedule"),
    ),
    (
        "selectors",
        adapter(f"{POD}/topologySpreadConstraints/0/labelSelector/matchLabels", {"a": "b"}),
    ),
    ("priorities", _set("PriorityClass", "qwen-vl-serving-inference", "globalDefault", True)),
    ("priorities", _set("PriorityClass", "qwen-vl-serving-inference", "value", 2_000_000_000)),
    ("priorities", adapter(f"{POD}/priorityClassName", None)),
    ("references", inference(f"{POD}/priorityClassName", "high")),
    ("unique", _set("PriorityClass", "qwen-vl-serving-inference", "metadata/namespace", "default")),
    (
        "shared_volume",
        _set("PersistentVolumeClaim", "model-cache", "spec/accessModes", ["ReadWriteOnce"]),
    ),
    ("model_volume", _without("Job", "model-download")),
    (
        "model_download",
        _set("Job", "model-download", f"{BOX}/envFrom/0/configMapRef/name", "other"),
    ),
    ("network", _without("NetworkPolicy", "model-download")),
    (
        "security",
        _set("Job", "model-download", f"{BOX}/securityContext/readOnlyRootFilesystem", False),
    ),
    ("routes", http("spec/parentRefs/0/sectionName", "http")),
    ("routes", http("spec/hostnames", ["other.example.com"])),
    ("routes", grpc("spec/rules/0/backendRefs/0/port", 50052)),
    ("routes", http("spec/rules/0/backendRefs/0/name", "qwen")),
    ("routes", _without("Gateway", "qwen-vl")),
    ("routes", http("spec/rules/0/backendRefs/0/group", "")),
    ("pools", inference(f"{SIDECAR}/env/1/name", "QWENVL_TARGET")),
    ("scaler_fields", hpa("spec/maxReplicas", 8001)),
    ("scaler_fields", hpa("spec/scaleTargetRef/kind", "StatefulSet")),
    ("scaler_fields", hpa("spec/metrics/0/pods/target/type", "Utilization")),
    ("scaler_fields", hpa("spec/behavior/scaleUp/policies/0/type", "Pod")),
    ("scaler_fields", hpa("spec/behavior/scaleUp/stabilizationWindowSeconds", 30001)),
    ("spreading", inference(f"{POD}/topologySpreadConstraints/1/topologyKey", "zone")),
    ("rollout", _set("Job", "model-download", f"{POD}/restartPolicy", "Always")),
    ("rollout", _set("Job", "model-download", "spec/ttlSecondsAfterFinished", None)),
    (
        "routed_services",
        grpc("spec/rules/0/matches/0/method/service", "qwenvl.inference.v1.AdminService"),
    ),
    ("routed_services", grpc("spec/rules/0/matches", None)),
    ("routed_services", grpc("spec/rules/0/matches/2", None)),
    ("routed_services", grpc("spec/rules/0/matches/0/method/service", "qwenvl.inference.v1.Chat")),
    ("routed_paths", http("spec/rules/0/matches/0/path/value", "/")),
    ("routed_paths", http("spec/rules/0/matches/1/path/value", "/metrics")),
    ("routed_paths", http("spec/rules/0/timeouts/request", "60s")),
    ("routed_paths", http("spec/rules/0/timeouts", None)),
    ("gateway_tls", gateway("spec/listeners/0/protocol", "HTTP")),
    ("gateway_tls", gateway("spec/listeners/1/tls", None)),
    ("gateway_access", _without("NetworkPolicy", "inference-gateway")),
    ("gateway_access", _without("NetworkPolicy", "inference-pool")),
    ("gateway_access", _set("NetworkPolicy", "inference-gateway", "spec/ingress/0/from", None)),
    ("pools", inference(ENGINE_TYPE, None)),
    ("pools", _setting("QWENVL_VLLM_METRIC_NAMES", "false")),
    ("pools", pool("spec/targetPorts/0/number", 8001)),
    ("pools", inference(f"{SIDECAR}/restartPolicy", None)),
    ("selectors", pool("spec/selector/matchLabels", {"app": "inference"})),
    ("addresses", inference(f"{SIDECAR}/env/1/value", "127.0.0.1:50061")),
    ("addresses", inference(f"{SIDECAR}/env/2/value", "[::]:9090")),
    ("drain", inference(f"{SIDECAR}/lifecycle", None)),
    ("startup", inference(f"{SIDECAR}/livenessProbe/httpGet/path", "/ready")),
]
BROKEN_TO_ZERO = [
    ("scaling_metrics", scaled(f"{TRIGGER}/query", "sum(qwenvl_requests_waiting)")),
    ("scaling_metrics", scaled(f"{TRIGGER}/query", "sum(rest_pending)")),
    ("scaling_thresholds", scaled(f"{TRIGGER}/threshold", "64")),
    ("scalers", scaled("spec/maxReplicaCount", 0)),
    ("slow_scale_down", scaled("spec/cooldownPeriod", 60)),
    ("slow_scale_down", scaled(f"{TRIGGER}/ignoreNullValues", "true")),
    ("slow_scale_down", scaled("spec/fallback", None)),
    ("slow_scale_down", scaled("spec/fallback/replicas", 0)),
    ("slow_scale_down", scaled("spec/pollingInterval", 600)),
    ("references", inference(f"{POD}/resourceClaims/0/resourceClaimTemplateName", "gpu")),
    ("references", inference(f"{POD}/resourceClaims", [])),
    ("gpu", inference(f"{BOX}/resources/claims", None)),
    ("gpu", inference(f"{BOX}/resources/limits/nvidia.com~1gpu", "1")),
    ("model_volume", inference(f"{POD}/volumes/0", {"name": "model-cache", "emptyDir": {}})),
]
certificate = partial(_set, "Certificate", "inference-tls")


def _without_adapter_tls(manifests: Manifests) -> None:
    for item in manifests.of_kind("ConfigMap"):
        for name in ("CA", "CLIENT_CERT", "CLIENT_KEY"):
            item.get("data", {}).pop(f"QWENVL_GRPC_{name}_FILE", None)


BROKEN_TLS = [
    ("tls_ends", _setting("QWENVL_GRPC_TLS_CLIENT_CA_FILE", None)),
    ("tls_ends", _without_adapter_tls),
    ("tls_ends", _setting("QWENVL_GRPC_TLS_KEY_FILE", None)),
    ("tls_probes", inference(f"{BOX}/livenessProbe/grpc/port", 50051)),
    ("tls_probes", _setting("QWENVL_HEALTH_ADDRESS", None)),
    ("addresses", _setting("QWENVL_HEALTH_ADDRESS", "0.0.0.0:50053")),
    ("tls_files", _setting("QWENVL_GRPC_TLS_KEY_FILE", "/etc/qwenvl/tls/key.pem")),
    ("tls_files", inference(f"{POD}/volumes/0/secret/secretName", "other")),
    ("tls_files", certificate("spec/usages", ["client auth"])),
    ("tls_files", certificate("spec/dnsNames", ["qwen"])),
    ("certificate_times", certificate("spec/renewBefore", "24h")),
    ("certificate_times", certificate("spec/issuerRef/name", "letsencrypt")),
    ("references", certificate("spec/secretName", "other")),
    ("certificate_authority", _set("Certificate", "grpc-authority", "spec/isCA", False)),
    ("certificate_authority", certificate("spec/isCA", True)),
    ("certificate_authority", _set("Issuer", "grpc-authority", "spec/ca/secretName", "other")),
    (
        "closed",
        _set("NetworkPolicy", "model-egress", "spec/egress/0/to/0/ipBlock/except/6", "1.1.1.1/32"),
    ),
    ("closed", _set("NetworkPolicy", "model-egress", "spec/egress/0/to/1/ipBlock/except", [])),
]
NAMED = {"metadata": {"name": "inference", "namespace": "qwen-vl-serving"}}
API_KEYS = f"{POD}/volumes/1/secret"
SECRET = {"apiVersion": "v1", "kind": "Secret"} | NAMED
METRIC = "spec/metrics/0"
service = partial(_set, "Service", "inference")
claim = partial(_set, "PersistentVolumeClaim", "model-cache")
job = partial(_set, "Job", "model-download")

ALERT = "spec/groups/0/rules/0"
alert = partial(_set, "PrometheusRule", "qwen-vl-serving")


def _broken_dashboard(manifests: Manifests) -> None:
    data = manifests.get("ConfigMap", "qwen-vl-serving-dashboard")["data"]
    for name, text in data.items():
        data[name] = text.replace("qwenvl_requests_waiting", "qwenvl_requests_queued")


# What operators add or change, beyond what is here.
BROKEN_OTHERWISE = [
    ("watched_metrics", alert(f"{ALERT}/expr", "qwenvl_requests_wating > 10")),
    ("watched_metrics", _broken_dashboard),
    ("alerts", alert(f"{ALERT}/labels/severity", "page")),
    ("alerts", alert(f"{ALERT}/for", None)),
    ("alerts", alert(f"{ALERT}/alert", "QwenvlSomethingElse")),
    ("alerts", alert(f"{ALERT}/annotations/runbook_url", "https://example.com")),
    (
        "probe_ports",
        _append(
            "Deployment",
            "inference",
            f"{BOX}/ports",
            {"name": "more", "containerPort": 50051},
        ),
    ),
    ("mounts", inference(f"{BOX}/volumeMounts/2/mountPath", "/models")),
    ("memory", inference(f"{BOX}/resources/limits/memory", "2.5G")),
    ("variables", _setting("OTEL_TRACES_SAMPLR", "always_on")),
    ("variables", _setting("HF_HOM", "/models")),
    ("variables", _append("Deployment", "inference", f"{BOX}/env", {"name": "HOME", "value": "/"})),
    ("variables", inference(f"{BOX}/envFrom/0/configMapRef/optional", True)),
    ("variables", inference(f"{BOX}/envFrom/0/prefix", "QWEN_")),
    (
        "value_sources",
        _append(
            "Deployment",
            "rest-adapter",
            f"{BOX}/env",
            {
                "name": "QWENVL_LOG_LEVEL",
                "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "level"}},
            },
        ),
    ),
    (
        "value_sources",
        _append(
            "Deployment",
            "inference",
            f"{BOX}/env",
            {
                "name": "QWENVL_API_KEY",
                "valueFrom": {"secretKeyRef": {"name": "api-keys", "key": "api-keys"}},
            },
        ),
    ),
    ("commands", inference(f"{BOX}/args", ["--api-key-file", "none"])),
    ("commands", adapter(f"{BOX}/command", ["sleep", "infinity"])),
    ("logs", _setting("QWENVL_LOG_FORMAT", "text")),
    ("logs", _adapter_setting("QWENVL_LOG_LEVEL", "error")),
    ("local_media", _setting("QWENVL_ALLOW_LOCAL_MEDIA_PATH", "/")),
    ("local_media", _setting("QWENVL_ALLOW_LOCAL_MEDIA_PATH", "/etc/qwenvl/keys")),
    ("budgets", _adapter_setting("QWENVL_BODY_BUDGET_MIB", "4096")),
    ("budgets", _setting("QWENVL_MEDIA_WORKERS", "32")),
    ("response_store", _adapter_setting("QWENVL_RESPONSE_STORE", "memory")),
    ("traces", _setting("QWENVL_OTLP_TRACES_ENDPOINT", "http://collector.other.svc:4317")),
    ("api_versions", inference("apiVersion", "apps/v1beta1")),
    (
        "api_versions",
        _set("PodMonitor", "inference", "apiVersion", "monitoring.coreos.com/v1alpha1"),
    ),
    (
        "permissions",
        _add({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding"} | NAMED),
    ),
    ("service_types", service("spec/type", "LoadBalancer")),
    ("service_types", service("spec/sessionAffinity", "ClientIP")),
    ("service_types", service("spec/publishNotReadyAddresses", True)),
    ("secrets", _add(SECRET | {"type": "Opaque", "data": {"tls.key": "eA==", "tls.crt": "eA=="}})),
    ("secrets", _add(SECRET | {"type": "kubernetes.io/tls", "data": {"tls.key": "eA=="}})),
    ("secrets", _add(SECRET | {"data": {"api-keys": "not base64"}})),
    ("secrets", _add(SECRET | {"data": {"api-keys": "eA=="}, "immutable": True})),
    ("secrets", inference(f"{BOX}/volumeMounts/1/subPath", "api-keys")),
    ("secrets", inference(f"{API_KEYS}/items", [{"key": "keys", "path": "api-keys"}])),
    ("volumes", inference(f"{POD}/volumes/2/emptyDir", {})),
    ("volumes", inference(f"{POD}/volumes/2", {"name": "scratch", "hostPath": {"path": "/tmp"}})),
    ("volumes", claim("spec/volumeMode", "Block")),
    ("pods", inference(f"{POD}/dnsPolicy", "Default")),
    ("pods", inference(f"{POD}/hostAliases", [{"ip": "10.0.0.1", "hostnames": ["inference"]}])),
    ("pods", adapter(f"{POD}/shareProcessNamespace", True)),
    ("pods", inference(f"{POD}/restartPolicy", "Never")),
    ("pods", inference(f"{POD}/nodeName", "gpu-1")),
    ("one_user", inference(f"{BOX}/securityContext/runAsUser", 1000)),
    ("one_user", adapter(f"{BOX}/tty", True)),
    ("deployments", inference("spec/paused", True)),
    ("deployments", inference("spec/replicas", 0)),
    ("deployments", adapter("spec/revisionHistoryLimit", 0)),
    ("throttling", inference(f"{BOX}/resources/limits/cpu", "4")),
    ("probe_actions", adapter(f"{BOX}/readinessProbe/httpGet/scheme", "HTTPS")),
    ("probe_actions", inference(f"{BOX}/startupProbe/initialDelaySeconds", 600)),
    ("probe_actions", inference(f"{BOX}/livenessProbe/tcpSocket", {"port": 50051})),
    ("probe_actions", inference(f"{BOX}/livenessProbe/terminationGracePeriodSeconds", 10)),
    ("policy_fields", _set("NetworkPolicy", "inference", "spec/ingress/0/ports/0/endPort", 65535)),
    ("policy_fields", _set("NetworkPolicy", "inference", "spec/ingress/0/ports/0/port", "grpc")),
    ("closed", _set("NetworkPolicy", "inference", "spec/ingress/0/ports/0", {"protocol": "TCP"})),
    (
        "selectors",
        _set(
            "Deployment",
            "inference",
            "spec/selector",
            {"matchExpressions": [{"key": "app.kubernetes.io/name", "operator": "DoesNotExist"}]},
        ),
    ),
    ("image_versions", inference(f"{BOX}/image", "qwen-vl-serving/inference@sha256:abc")),
    ("image_versions", inference(f"{BOX}/image", "registry:5000/inference")),
]
BROKEN_TRACES = [
    ("traces", _without("NetworkPolicy", "inference-traces")),
    (
        "traces",
        _set(
            "NetworkPolicy", "rest-adapter-traces", "spec/egress/0/to", [{"namespaceSelector": {}}]
        ),
    ),
    (
        "traces",
        _adapter_setting("QWENVL_OTLP_TRACES_ENDPOINT", "http://other.observability.svc:4317"),
    ),
    ("traces", _setting("QWENVL_OTLP_TRACES_ENDPOINT", "http://traces.example.com:4318")),
    ("traces", _setting("OTEL_TRACES_SAMPLER", "ratio")),
    ("traces", _setting("OTEL_TRACES_SAMPLER_ARG", "10%")),
    ("settings", _setting("QWENVL_OTLP_TRACES_ENDPOINT", "otel-collector:4317")),
]
policy = partial(_set, "ValidatingAdmissionPolicy", "qwen-vl-serving")
binding = partial(_set, "ValidatingAdmissionPolicyBinding", "qwen-vl-serving")
BROKEN_ADMISSION = [
    ("admission", binding("spec/policyName", "other")),
    ("admission", binding("spec/validationActions", ["Audit"])),
    ("admission", binding("spec/matchResources", {})),
    ("admission", policy("spec/failurePolicy", "Ignore")),
    ("admission", policy("spec/matchConstraints/resourceRules/1/operations", ["CREATE"])),
    ("admission", policy("spec/matchConstraints/resourceRules/1/resources", ["daemonsets"])),
    ("admission", policy("spec/validations/1/expression", "false")),
    ("deployments", job("spec/suspend", True)),
]
BROKEN_NATIVE_ZERO = [
    ("scaling_metrics", hpa(f"{METRIC}/external/metric/name", "qwenvl_requests_waiting")),
    (
        "scaling_metrics",
        _append(
            "HorizontalPodAutoscaler",
            "inference",
            "spec/metrics",
            {
                "type": "Pods",
                "pods": {
                    "metric": {"name": "qwenvl_requests_waiting"},
                    "target": {"type": "AverageValue", "averageValue": "4"},
                },
            },
        ),
    ),
    ("scaling_thresholds", hpa(f"{METRIC}/external/target/averageValue", "640")),
    ("scaler_fields", hpa("spec/behavior/scaleDown/selectPolicy", "Disabled")),
    (
        "scaling_metrics",
        hpa("spec/metrics/1/external/metric/selector/matchLabels/reason", "ENGINE_AWAY"),
    ),
]
ALL_BROKEN = [
    *(("monitored", *broken) for broken in BROKEN_OTHERWISE),
    *(("traced", *broken) for broken in BROKEN_TRACES),
    *(("guarded", *broken) for broken in BROKEN_ADMISSION),
    *(("native-zero", *broken) for broken in BROKEN_NATIVE_ZERO),
    *(("mutual-tls", *broken) for broken in BROKEN_TLS),
    *(("monitored", *broken) for broken in BROKEN),
    *(("pool", *broken) for broken in BROKEN_POOL),
    *(("to-zero", *broken) for broken in BROKEN_TO_ZERO),
]


@pytest.mark.parametrize(("kustomization", "rule", "mutate"), ALL_BROKEN)
def test_a_broken_manifest_is_refused(kustomization, rule, mutate):
    manifests = load(kustomization)
    assert list(RULES[rule](manifests)) == []
    mutate(manifests)
    assert list(RULES[rule](manifests))


@pytest.mark.full
@pytest.mark.parametrize(("kustomization", "rule", "mutate"), ALL_BROKEN)
def test_the_rule_is_among_those_that_all_together_name(kustomization, rule, mutate):
    manifests = load(kustomization)
    mutate(manifests)
    assert broken_rules(manifests).keys() & {rule, "settings"}


@pytest.mark.parametrize(
    ("kustomization", "mutate"),
    [
        ("monitored", inference(f"{BOX}/imagePullPolici", "Always")),
        ("monitored", inference("spec/replicas", "two")),
        ("monitored", inference(f"{BOX}/ports/0/containerPort", "grpc")),
        ("monitored", _set("PodMonitor", "inference", "spec/podMetricsEndpoints/0/prot", "x")),
        ("monitored", _set("PrometheusRule", "qwen-vl-serving", "spec/groups/0/rules/0/for", "5")),
        ("pool", hpa("spec/metrics/0/pods/target/averageValu", "48")),
        ("pool", pdb("spec/unhealthyPodEvictionPolicy", 1)),
        ("pool", pool("spec/targetPorts", [])),
        ("pool", pool("spec/endpointPickerRef", None)),
        ("pool", pool("spec/targetPortNumber", 8000)),
        ("pool", http("spec/rules/0/timeout", "1s")),
        ("pool", grpc("spec/rules/0/backendRefs", [])),
        ("pool", gateway("spec/listeners/0/protocol", "https")),
        ("to-zero", scaled("spec/triggers/0/type", "promehteus")),
        ("to-zero", scaled(f"{TRIGGER}/threshold", 48)),
        ("to-zero", scaled("spec/minReplicas", 0)),
    ],
)
def test_a_misspelt_manifest_does_not_fit_its_schema(kustomization, mutate):
    manifests = load(kustomization)
    mutate(manifests)
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check_schemas(manifests)


def check_schemas(manifests):
    for item in manifests.objects:
        check_schema(item, RELEASES[-1])


@pytest.mark.parametrize("tag", ["latest", "0.0.9"])
def test_a_wrong_image_tag_is_refused(tag):
    manifests = load("base")
    inference(f"{BOX}/image", f"qwen-vl-serving/inference:{tag}")(manifests)
    assert list(manifest_policy.images(manifests, "0.2.0"))


def test_an_image_volume_without_a_digest_is_refused():
    manifests = load("image")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert list(manifest_policy.images(manifests, version)) == []
    inference(f"{POD}/volumes/0/image/reference", "registry.invalid/qwen:1")(manifests)
    assert list(manifest_policy.images(manifests, version))


def test_every_rule_has_a_broken_manifest():
    assert {rule for _, rule, _ in ALL_BROKEN} == set(RULES)
