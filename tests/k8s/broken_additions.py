"""Manifests that are broken by what operators add or change beyond what is here, each with the rule that refuses it."""

from __future__ import annotations

from tests.k8s.manifest_set import Manifests
from tests.k8s.mutations import (
    BOX,
    POD,
    adapter,
    add_object,
    alert,
    append_to,
    binding,
    claim,
    hpa,
    inference,
    job,
    policy,
    service,
    set_adapter_setting,
    set_field,
    set_setting,
    without,
)


NAMED = {"metadata": {"name": "inference", "namespace": "qwen-vl-serving"}}
API_KEYS = f"{POD}/volumes/1/secret"
SECRET = {"apiVersion": "v1", "kind": "Secret"} | NAMED
METRIC = "spec/metrics/0"

GUARDED = "metadata/labels/qwen-vl-serving~1guarded"
ALERT = "spec/groups/0/rules/0"


def broken_dashboard(manifests: Manifests) -> None:
    data = manifests.get("ConfigMap", "qwen-vl-serving-dashboard")["data"]
    for name, text in data.items():
        data[name] = text.replace("qwenvl_requests_waiting", "qwenvl_requests_queued")


# What operators add or change, beyond what is here.
BROKEN_OTHERWISE = [
    ("watched_metrics", alert(f"{ALERT}/expr", "qwenvl_requests_wating > 10")),
    ("watched_metrics", broken_dashboard),
    ("alerts", alert(f"{ALERT}/labels/severity", "page")),
    ("alerts", alert(f"{ALERT}/for", None)),
    ("alerts", alert(f"{ALERT}/alert", "QwenvlSomethingElse")),
    ("alerts", alert(f"{ALERT}/annotations/runbook_url", "https://example.com")),
    (
        "probe_ports",
        append_to(
            "Deployment",
            "inference",
            f"{BOX}/ports",
            {"name": "more", "containerPort": 50051},
        ),
    ),
    ("mounts", inference(f"{BOX}/volumeMounts/2/mountPath", "/models")),
    ("memory", inference(f"{BOX}/resources/limits/memory", "2.5G")),
    ("variables", set_setting("OTEL_TRACES_SAMPLR", "always_on")),
    ("variables", set_setting("HF_HOM", "/models")),
    (
        "variables",
        append_to("Deployment", "inference", f"{BOX}/env", {"name": "HOME", "value": "/"}),
    ),
    ("variables", inference(f"{BOX}/envFrom/0/configMapRef/optional", True)),
    ("variables", inference(f"{BOX}/envFrom/0/prefix", "QWEN_")),
    (
        "value_sources",
        append_to(
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
        append_to(
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
    ("logs", set_setting("QWENVL_LOG_FORMAT", "text")),
    ("logs", set_adapter_setting("QWENVL_LOG_LEVEL", "error")),
    ("local_media", set_setting("QWENVL_ALLOW_LOCAL_MEDIA_PATH", "/")),
    ("local_media", set_setting("QWENVL_ALLOW_LOCAL_MEDIA_PATH", "/etc/qwenvl/keys")),
    ("budgets", set_adapter_setting("QWENVL_BODY_BUDGET_MIB", "4096")),
    ("budgets", set_setting("QWENVL_MEDIA_WORKERS", "32")),
    ("response_store", set_adapter_setting("QWENVL_RESPONSE_STORE", "memory")),
    ("traces", set_setting("QWENVL_OTLP_TRACES_ENDPOINT", "http://collector.other.svc:4317")),
    ("api_versions", inference("apiVersion", "apps/v1beta1")),
    (
        "api_versions",
        set_field("PodMonitor", "inference", "apiVersion", "monitoring.coreos.com/v1alpha1"),
    ),
    (
        "permissions",
        add_object(
            {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding"} | NAMED
        ),
    ),
    ("service_types", service("spec/type", "LoadBalancer")),
    ("service_types", service("spec/sessionAffinity", "ClientIP")),
    ("service_types", service("spec/publishNotReadyAddresses", True)),
    (
        "secrets",
        add_object(SECRET | {"type": "Opaque", "data": {"tls.key": "eA==", "tls.crt": "eA=="}}),
    ),
    ("secrets", add_object(SECRET | {"type": "kubernetes.io/tls", "data": {"tls.key": "eA=="}})),
    ("secrets", add_object(SECRET | {"data": {"api-keys": "not base64"}})),
    ("secrets", add_object(SECRET | {"data": {"api-keys": "eA=="}, "immutable": True})),
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
    (
        "policy_fields",
        set_field("NetworkPolicy", "inference", "spec/ingress/0/ports/0/endPort", 65535),
    ),
    (
        "policy_fields",
        set_field("NetworkPolicy", "inference", "spec/ingress/0/ports/0/port", "grpc"),
    ),
    (
        "closed",
        set_field("NetworkPolicy", "inference", "spec/ingress/0/ports/0", {"protocol": "TCP"}),
    ),
    (
        "selectors",
        set_field(
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
    ("traces", without("NetworkPolicy", "inference-traces")),
    (
        "traces",
        set_field(
            "NetworkPolicy", "rest-adapter-traces", "spec/egress/0/to", [{"namespaceSelector": {}}]
        ),
    ),
    (
        "traces",
        set_adapter_setting("QWENVL_OTLP_TRACES_ENDPOINT", "http://other.observability.svc:4317"),
    ),
    ("traces", set_setting("QWENVL_OTLP_TRACES_ENDPOINT", "http://traces.example.com:4318")),
    ("traces", set_setting("OTEL_TRACES_SAMPLER", "ratio")),
    ("traces", set_setting("OTEL_TRACES_SAMPLER_ARG", "10%")),
    ("settings", set_setting("QWENVL_OTLP_TRACES_ENDPOINT", "otel-collector:4317")),
]
BROKEN_ADMISSION = [
    ("admission", binding("spec/policyName", "other")),
    ("admission", binding("spec/validationActions", ["Audit"])),
    ("admission", binding("spec/matchResources", {})),
    ("admission", set_field("Namespace", "qwen-vl-serving", GUARDED, None)),
    (
        "admission",
        binding(
            "spec/matchResources/namespaceSelector/matchLabels",
            {"kubernetes.io/metadata.name": "qwen-vl-serving"},
        ),
    ),
    ("admission", policy("spec/failurePolicy", "Ignore")),
    ("admission", policy("spec/matchConstraints/resourceRules/1/operations", ["CREATE"])),
    ("admission", policy("spec/matchConstraints/resourceRules/1/resources", ["daemonsets"])),
    ("admission", policy("spec/validations/1/expression", "false")),
    ("deployments", job("spec/suspend", True)),
]
BROKEN_NATIVE_ZERO = [
    ("scaling_to_zero", hpa("spec/metrics/2", None)),
    ("scaling_to_zero", hpa("spec/metrics/2/external/metric/name", "rest_pending_requests")),
    ("scaling_metrics", hpa(f"{METRIC}/external/metric/name", "qwenvl_requests_waiting")),
    (
        "scaling_metrics",
        append_to(
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
        hpa("spec/metrics/1/external/metric/selector/matchExpressions/0/values/1", "ENGINE_AWAY"),
    ),
]
