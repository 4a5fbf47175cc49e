"""How calls come in from outside the cluster: what a schema cannot see.

Owns the rules about Gateway API and inference pools. The contract is the measure of what gRPC routes may name.
"""

from __future__ import annotations

from collections.abc import Iterator
import importlib
import re

from grpc_health.v1 import health_pb2

from inference_service.settings import ServiceSettings
from tests.k8s.manifest_network import Endpoint, matches, outside, reaches
from tests.k8s.manifest_policy import PICKER, PICKER_PORT, port_of, programs, settings_of
from tests.k8s.manifest_set import ROOT, Manifests, Object, Workload


CONTRACT = [
    importlib.import_module(f"qwenvl.inference.v1.{path.stem}_pb2")
    for path in (ROOT / "protos" / "qwenvl" / "inference" / "v1").glob("*_service.proto")
]
SERVICES = {
    service.full_name
    for file in (*CONTRACT, health_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    if service.name != "AdminService"
}
"""What callers from outside may call."""

PICKERS = ("inference.networking.k8s.io", "llm-d.ai")
"""Whose label tells an endpoint picker which names of metrics to read."""

GROUPS = {"Service": "", "InferencePool": "inference.networking.k8s.io"}
"""The API group of what is behind a route."""

GATEWAY = Endpoint(
    {"any": "pod"}, namespace="gateways", namespace_labels={"qwen-vl-serving/gateway": "true"}
)
STRANGER = Endpoint({"any": "pod"}, namespace="any")
SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def routes(manifests: Manifests) -> Iterator[str]:
    """A route hangs on a listener that is there and has its name, and leads to a port of a Service or to a pool."""
    for item in _routes(manifests):
        name = f"{item['kind']} {item['metadata']['name']}"
        yield from _parents(manifests, item, name)
        yield from _backends(manifests, item, name)


def _parents(manifests: Manifests, item: Object, name: str) -> Iterator[str]:
    """What is wrong with the listeners of a route."""
    for parent in item["spec"]["parentRefs"]:
        if (
            parent.get("namespace", item["metadata"]["namespace"])
            != (item["metadata"]["namespace"])
        ):
            yield f"{name}: hangs on a Gateway of another namespace"
        listeners = {
            listener["name"]: listener
            for gateway in manifests.of_kind("Gateway")
            if gateway["metadata"]["name"] == parent["name"]
            for listener in gateway["spec"]["listeners"]
        }
        listener = listeners.get(parent.get("sectionName", ""))
        if listener is None:
            yield f"{name}: there is no listener {parent}"
        elif [listener["hostname"]] != item["spec"].get("hostnames"):
            yield f"{name}: its names are not those of the listener"


def _backends(manifests: Manifests, item: Object, name: str) -> Iterator[str]:
    """What is wrong with what is behind a route."""
    for rule in item["spec"]["rules"]:
        for backend in rule["backendRefs"]:
            if backend.get("weight", 1) < 1:
                yield f"{name}: {backend} gets no calls"
            kind = backend.get("kind", "Service")
            if backend.get("group", "") != GROUPS[kind]:
                yield f"{name}: {kind} is not of the group {backend.get('group')}"
            ports = {
                port["port"]
                for found in manifests.of_kind(kind)
                if found["metadata"]["name"] == backend["name"]
                for port in found["spec"].get("ports", [{"port": None}])
            }
            if backend.get("port") not in ports:
                yield f"{name}: nothing is behind {backend}"


def routed_services(manifests: Manifests) -> Iterator[str]:
    """gRPC routes name services of the contract, each of those for callers, and never the AdminService."""
    for item in manifests.of_kind("GRPCRoute"):
        named = {
            match["method"]["service"]
            for rule in item["spec"]["rules"]
            for match in rule.get("matches", [{"method": {"service": "any"}}])
        }
        if named != SERVICES:
            yield f"GRPCRoute {item['metadata']['name']}: {sorted(named ^ SERVICES)}"


def routed_paths(manifests: Manifests) -> Iterator[str]:
    """REST routes name the paths for callers: not the metrics; and wait longer than the service does."""
    limit_s = max(
        (
            values.request_timeout_s
            for _, container in programs(manifests)
            if isinstance(values := settings_of(manifests, container), ServiceSettings)
        ),
        default=0.0,
    )
    for item in manifests.of_kind("HTTPRoute"):
        for rule in item["spec"]["rules"]:
            paths = {match.get("path", {}).get("value", "/") for match in rule.get("matches", [{}])}
            if not paths or paths & {"/", "/metrics"}:
                yield f"HTTPRoute {item['metadata']['name']}: opens {sorted(paths)}"
            text = rule.get("timeouts", {}).get("request", "0s")
            found = re.fullmatch(r"(\d+)(ms|s|m|h)", text)
            if found is None or not int(found[1]) * SECONDS[found[2]] > limit_s:
                yield f"HTTPRoute {item['metadata']['name']}: cuts requests after {text}"


def gateway_tls(manifests: Manifests) -> Iterator[str]:
    """What leaves the cluster is encrypted."""
    for item in manifests.of_kind("Gateway"):
        for listener in item["spec"]["listeners"]:
            tls = listener.get("tls", {})
            if listener["protocol"] not in ("HTTPS", "TLS") or not tls.get("certificateRefs"):
                yield f"Gateway {item['metadata']['name']}: {listener['name']} is not encrypted"
            # Routes of HTTP need it in plaintext; callers expect plain HTTP at 80.
            if tls.get("mode", "Terminate") != "Terminate" or listener["port"] == 80:
                yield f"Gateway {item['metadata']['name']}: {listener['name']} cannot be called"


def gateway_access(manifests: Manifests) -> Iterator[str]:
    """The gateway's pods reach what its routes lead to, and nobody else gets further by it."""
    for workload, port in _behind_routes(manifests):
        pod = Endpoint(workload.labels)
        if not reaches(manifests, GATEWAY, pod, port):
            yield f"{workload.name}: the gateway cannot connect to port {port}"
    for workload, container in programs(manifests):
        pod = Endpoint(workload.labels)
        if container["name"] == "inference" and any(
            reaches(manifests, STRANGER, pod, port) for port in (8000, 9090, 50051, 50052)
        ):
            yield f"{workload.name}: is open to everyone"


def pools(manifests: Manifests) -> Iterator[str]:
    """An inference pool leads to the adapter beside a service whose metrics its picker can read."""
    for item in manifests.of_kind("InferencePool"):
        name = f"InferencePool {item['metadata']['name']}"
        ports = {target["number"] for target in item["spec"]["targetPorts"]}
        yield from _pickers(manifests, item, name)
        for workload, container in programs(manifests):
            if not matches(item["spec"]["selector"], workload.labels):
                continue
            types = [workload.labels.get(f"{group}/engine-type") for group in PICKERS]
            if types != ["vllm"] * len(PICKERS):
                yield f"{name}: the picker cannot tell the names of the metrics"
            values = settings_of(manifests, container)
            if isinstance(values, ServiceSettings):
                yield from _picker_metrics(manifests, workload, values, name)
                beside = [box for box in workload.containers if box["name"] == "rest-adapter"]
                offered = {port["containerPort"] for box in beside for port in box["ports"]}
                if not ports <= offered:
                    yield f"{name}: no adapter listens on {sorted(ports)}"
                called = {
                    manifests.environment(box).get("QWENVL_GRPC_TARGET", "").rpartition(":")[0]
                    for box in beside
                }
                if called != {"127.0.0.1"}:
                    yield f"{name}: the adapter calls {called}, not the service that was picked"
                if any(box.get("restartPolicy") != "Always" for box in beside):
                    yield f"{name}: the adapter is no sidecar: the pod would not start"


def _picker_metrics(
    manifests: Manifests, workload: Workload, values: ServiceSettings, name: str
) -> Iterator[str]:
    """What keeps the picker from the queue and the KV cache of a replica."""
    if not values.vllm_metric_names or not values.metrics_address:
        yield f"{name}: the picker finds no metrics"
        return
    port = port_of(values.metrics_address)
    if not reaches(manifests, Endpoint(PICKER), Endpoint(workload.labels), port):
        yield f"{name}: the picker cannot read the metrics"


def _pickers(manifests: Manifests, item: Object, name: str) -> Iterator[str]:
    """What is wrong with who picks, and with what gateway, picker and adapter speak with each other."""
    if manifests.has("Service", item["spec"]["endpointPickerRef"]["name"]):
        yield f"{name}: asks a Service of these manifests, which is no picker"
    if item["spec"].get("appProtocol", "http") != "http":
        yield f"{name}: the adapter speaks HTTP/1.1"
    if item["spec"]["endpointPickerRef"].get("port", {}).get("number") != PICKER_PORT:
        yield f"{name}: the picker listens on {PICKER_PORT}"
    picker = Endpoint(PICKER)
    if not reaches(manifests, GATEWAY, picker, PICKER_PORT):
        yield f"{name}: the gateway cannot ask the picker"
    if reaches(manifests, STRANGER, picker, PICKER_PORT):
        yield f"{name}: everybody can ask the picker"
    for port in (443, 6443):
        if not reaches(manifests, picker, outside("10.0.0.1"), port):
            yield f"{name}: the picker cannot call the API server on {port}"
    for address in ("169.254.169.254", "fe80::a9fe:a9fe", "fd00:ec2::254"):
        if reaches(manifests, picker, outside(address), 443):
            yield f"{name}: the picker can call the metadata of the node at {address}"


def _routes(manifests: Manifests) -> Iterator[Object]:
    yield from manifests.of_kind("HTTPRoute")
    yield from manifests.of_kind("GRPCRoute")


def _behind_routes(manifests: Manifests) -> Iterator[tuple[Workload, int]]:
    """Workloads and ports to which routes lead."""
    for item in _routes(manifests):
        for rule in item["spec"]["rules"]:
            for backend in rule["backendRefs"]:
                yield from _behind(manifests, backend)


def _behind(manifests: Manifests, backend: Object) -> Iterator[tuple[Workload, int]]:
    for found in manifests.of_kind(backend.get("kind", "Service")):
        if found["metadata"]["name"] != backend["name"]:
            continue
        spec = found["spec"]
        selector = spec["selector"]
        ports = [target["number"] for target in spec.get("targetPorts", [])] or [backend["port"]]
        for workload in manifests.workloads():
            if matches(
                selector if "matchLabels" in selector else {"matchLabels": selector},
                workload.labels,
            ):
                yield from ((workload, port) for port in ports)


RULES = (
    routes,
    routed_services,
    routed_paths,
    gateway_tls,
    gateway_access,
    pools,
)
