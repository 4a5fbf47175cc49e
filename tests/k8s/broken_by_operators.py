"""Manifests that are broken as operators break them: each with what is applied, and the rule that refuses it."""

from __future__ import annotations

from tests.k8s.manifest_set import Manifests
from tests.k8s.mutations import (
    BOX,
    POD,
    TRIGGER,
    adapter,
    alert,
    append_to,
    certificate,
    claim,
    gateway,
    grpc,
    hpa,
    http,
    inference,
    job,
    pool,
    scaled,
    service,
    set_adapter_setting,
    set_field,
    set_setting,
    without,
)


SLEEP = {"exec": {"command": ["sh", "-c", "sleep 60"]}}
BY_CPU = {
    "type": "Resource",
    "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}},
}
APART = {
    "podAntiAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [
            {
                "topologyKey": "kubernetes.io/hostname",
                "labelSelector": {"matchLabels": {"app.kubernetes.io/name": "inference"}},
            }
        ]
    }
}
ANYWHERE = [{"ipBlock": {"cidr": "0.0.0.0/0"}}]
ENDPOINT = "spec/podMetricsEndpoints/0"
CLAIM = "spec/spec/devices/requests/0/exactly"
template = "ResourceClaimTemplate", "inference-gpu"
rest = "Service", "rest-adapter"


def two_gpus(manifests: Manifests) -> None:
    pod = manifests.get("Deployment", "inference")["spec"]["template"]["spec"]
    for part in ("requests", "limits"):
        pod["containers"][0]["resources"][part]["nvidia.com/gpu"] = "2"


def without_hash(manifests: Manifests) -> None:
    """As with `disableNameSuffixHash`."""
    for item in manifests.of_kind("ConfigMap"):
        if item["metadata"]["name"].startswith("inference-settings"):
            item["metadata"]["name"] = "inference-settings"
    for workload in manifests.workloads():
        for container in workload.containers:
            for source in container.get("envFrom", []):
                if source["configMapRef"]["name"].startswith("inference-settings"):
                    source["configMapRef"]["name"] = "inference-settings"


def unlabelled_dashboard(manifests: Manifests) -> None:
    for item in manifests.of_kind("ConfigMap"):
        item["metadata"].get("labels", {}).pop("grafana_dashboard", None)


BROKEN_BY_OPERATORS = [
    # Ports and Services.
    ("monitored", "program_ports", adapter(f"{BOX}/readinessProbe/httpGet/port", "metrics")),
    ("monitored", "program_ports", set_field(*rest, "spec/ports/0/targetPort", "metrics")),
    ("monitored", "service_types", set_field(*rest, "spec/internalTrafficPolicy", "Local")),
    ("monitored", "service_types", service("spec/ipFamilyPolicy", "RequireDualStack")),
    ("monitored", "security", inference(f"{BOX}/ports/0/hostPort", 50051)),
    # Volumes and settings.
    ("monitored", "volumes", claim("spec/resources/requests/storage", "50Mi")),
    ("monitored", "shared_volume", claim("spec/accessModes", ["ReadOnlyMany"])),
    ("monitored", "rolled_out", without_hash),
    ("monitored", "proxies", set_setting("QWENVL_MEDIA_PROXY", "http://proxy.infra.svc:3128")),
    ("monitored", "proxies", set_setting("QWENVL_MEDIA_PROXY", "http://me:word@proxy.infra:443")),
    ("monitored", "addresses", set_adapter_setting("QWENVL_GRPC_TARGET", "inference:50051")),
    # GPUs.
    ("monitored", "gpu", two_gpus),
    ("to-zero", "gpu", set_field(*template, f"{CLAIM}/deviceClassName", "gpu.nvdia.com")),
    ("to-zero", "gpu", set_field(*template, f"{CLAIM}/count", 2)),
    ("to-zero", "gpu", inference(f"{BOX}/resources/claims/0/request", "gpus")),
    (
        "monitored",
        "gpu_nodes",
        adapter(f"{POD}/nodeSelector", {"nvidia.com/gpu.present": "true"}),
    ),
    ("monitored", "gpu_nodes", adapter(f"{POD}/tolerations", [{"operator": "Exists"}])),
    # Pods.
    ("monitored", "scratch", inference(f"{BOX}/volumeMounts/2/readOnly", True)),
    ("monitored", "scratch", inference(f"{POD}/volumes/2/emptyDir/sizeLimit", "1Mi")),
    ("monitored", "key_files", inference(f"{POD}/volumes/3/emptyDir/sizeLimit", "64Ki")),
    ("monitored", "files", set_adapter_setting("QWENVL_API_KEY_FILE", "/etc/qwenvl/keys/keys")),
    ("monitored", "rebalancing", set_setting("QWENVL_MAX_CONNECTION_AGE_S", "1")),
    ("monitored", "scheduling", inference(f"{POD}/os", {"name": "windows"})),
    ("monitored", "startup", adapter(f"{BOX}/startupProbe/failureThreshold", 3)),
    ("monitored", "drain", inference(f"{BOX}/lifecycle/preStop", SLEEP)),
    ("monitored", "scheduling", inference(f"{BOX}/lifecycle/postStart", SLEEP)),
    ("monitored", "scheduling", inference(f"{POD}/schedulerName", "gpu-scheduler")),
    ("monitored", "scheduling", inference(f"{POD}/runtimeClassName", "nvdia")),
    ("pool", "scheduling", inference(f"{POD}/affinity", APART)),
    ("monitored", "security", without("Namespace", "qwen-vl-serving")),
    ("monitored", "security", inference(f"{POD}/securityContext/seccompProfile", None)),
    ("pool", "references", inference(f"{POD}/priorityClassName", "system-node-critical")),
    ("pool", "rollout", job("spec/activeDeadlineSeconds", 60)),
    ("pool", "rollout", job("spec/parallelism", 4)),
    ("pool", "rollout", job(f"{POD}/tolerations", None)),
    ("pool", "rollout", inference("spec/progressDeadlineSeconds", 1500)),
    ("monitored", "rollout", inference("spec/progressDeadlineSeconds", 1500)),
    ("pool", "rollout", job("spec/completions", 4)),
    (
        "pool",
        "queues",
        set_field(
            "Deployment", "inference", "metadata/labels", {"kueue.x-k8s.io/queuename": "inference"}
        ),
    ),
    ("pool", "queues", inference("metadata/labels/kueue.x-k8s.io~1queue-name", "")),
    # Network policies.
    (
        "monitored",
        "default_deny",
        set_field("NetworkPolicy", "default", "spec/policyTypes", ["Ingress"]),
    ),
    ("monitored", "egress_ports", set_field("NetworkPolicy", "dns", "spec/egress/0/to", None)),
    ("monitored", "egress_ports", set_field("NetworkPolicy", "dns", "spec/egress/0/ports", None)),
    (
        "monitored",
        "egress_ports",
        append_to(
            "NetworkPolicy",
            "rest-adapter",
            "spec/egress",
            {"to": ANYWHERE, "ports": [{"protocol": "TCP", "port": 8444}]},
        ),
    ),
    (
        "monitored",
        "egress_ports",
        append_to(
            "NetworkPolicy",
            "media-egress",
            "spec/egress/0/ports",
            {"protocol": "TCP", "port": 22},
        ),
    ),
    (
        "monitored",
        "closed",
        set_field(
            "NetworkPolicy",
            "media-egress",
            "spec/egress/0/to/0/ipBlock/except/5",
            "169.254.169.0/24",
        ),
    ),
    (
        "monitored",
        "edges",
        set_field("NetworkPolicy", "rest-adapter", "spec/ingress/0/from", [{"podSelector": {}}]),
    ),
    # Autoscalers and metrics.
    (
        "pool",
        "scaling_metrics",
        hpa("spec/metrics/0/pods/metric/name", "rest_pending_requests"),
    ),
    ("pool", "scaling_metrics", hpa("spec/metrics", [BY_CPU])),
    (
        "to-zero",
        "scaler_queries",
        scaled(f"{TRIGGER}/query", 'sum(rest_pending_requests{namespace="qwen"})'),
    ),
    ("to-zero", "scaler_queries", scaled(f"{TRIGGER}/serverAddress", "http://localhost:9090")),
    ("to-zero", "scaler_queries", scaled(f"{TRIGGER}/activationThreshold", "50")),
    (
        "monitored",
        "scrape_times",
        set_field("PodMonitor", "inference", f"{ENDPOINT}/interval", "10m"),
    ),
    (
        "monitored",
        "scrape_times",
        set_field("PodMonitor", "inference", f"{ENDPOINT}/interval", "5s"),
    ),
    ("pool", "scaler_fields", hpa("spec/behavior/scaleUp/stabilizationWindowSeconds", 3600)),
    (
        "native-zero",
        "scaling_metrics",
        hpa("spec/metrics/1/external/metric/selector/matchExpressions/0/operator", "NotIn"),
    ),
    ("monitored", "readable", unlabelled_dashboard),
    ("monitored", "readable", alert("spec/groups/0/rules/0/expr", "sum(qwenvl_ready == 0")),
    # Gateway and TLS.
    ("pool", "pools", pool("spec/endpointPickerRef/name", "inference")),
    ("pool", "gateway_tls", gateway("spec/listeners/0/port", 80)),
    ("pool", "gateway_tls", gateway("spec/listeners/0/tls/mode", "Passthrough")),
    ("pool", "routes", grpc("spec/rules/0/backendRefs/0/weight", 0)),
    ("pool", "routes", http("spec/parentRefs/0/namespace", "gateways")),
    ("pool", "routes", gateway("spec/listeners/1/hostname", "qwen-vl.example.com")),
    ("pool", "pools", pool("spec/endpointPickerRef/port/number", 9003)),
    ("pool", "pools", pool("spec/appProtocol", "kubernetes.io/h2c")),
    ("pool", "pools", pool("spec/selector/matchLabels/app.kubernetes.io~1name", "rest-adapter")),
    ("mutual-tls", "certificate_times", certificate("spec/privateKey/rotationPolicy", "Never")),
    (
        "mutual-tls",
        "tls_files",
        set_setting("QWENVL_GRPC_TLS_CLIENT_CA_FILE", "/etc/ssl/certs/ca-certificates.crt"),
    ),
]
