"""Who has to reach whom: what a schema cannot see.

Owns the rules about the connections without which nothing works, and the fields of Services and policies behind them.
"""

from __future__ import annotations

from collections.abc import Iterator

from inference_service.settings import ServiceSettings
from tests.k8s.manifest_network import Endpoint, matches, outside, reaches
from tests.k8s.manifest_policy import port_of, programs, settings_of
from tests.k8s.manifest_set import Manifests
from tests.k8s.pod_security import PROBES


INFERENCE = Endpoint({"app.kubernetes.io/name": "inference"})
ADAPTER = Endpoint({"app.kubernetes.io/name": "rest-adapter"})
CALLER = Endpoint(
    {"app": "x"}, namespace="team", namespace_labels={"qwen-vl-serving/grpc-client": "true"}
)
NEIGHBOUR = Endpoint({"app": "x"})
"""Another pod of the namespace."""
PRIVATE = (
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "10.255.255.254",
    "100.127.255.254",
    "127.0.0.1",
    "168.63.129.16",
    "169.254.0.1",
    "169.254.169.254",
    "169.254.170.2",
    "169.254.255.254",
    "172.16.0.1",
    "172.31.255.254",
    "192.0.0.192",
    "192.168.0.1",
    "192.168.255.254",
    "198.18.0.1",
    "198.19.255.254",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::",
    "fd00:ec2::254",
    "fe80::1",
    "ff02::1",
    "fd00::1",
)
"""Addresses that no pod may fetch from: of the cluster, the node, the cloud, and those that mean another one."""

PUBLIC = ("93.184.215.14", "2606:2800:21f::1")
OTHER_PORTS = frozenset({22, 25, 53, 123, 3128, 6379, 6443, 8080, 8443, 10250})
"""Where nobody here has to connect to, but who has got into a pod might."""

STRANGER = Endpoint({"app": "x"}, namespace="any")


def _dns(label: str, value: str, namespace: str) -> Endpoint:
    return Endpoint(
        {label: value},
        namespace=namespace,
        namespace_labels={"kubernetes.io/metadata.name": namespace},
    )


DNS = (
    (_dns("k8s-app", "kube-dns", "kube-system"), 53),
    (_dns("k8s-app", "node-local-dns", "kube-system"), 53),
    (outside("169.254.20.10"), 53),
    (_dns("dns.operator.openshift.io/daemonset-dns", "default", "openshift-dns"), 5353),
)


def edges(manifests: Manifests) -> Iterator[str]:
    """What must be open is: callers to the adapter, adapter and labelled namespaces to the service, all to DNS."""
    needed = [
        ("callers to the adapter", outside("93.184.215.14"), ADAPTER, 8000),
        ("the adapter to the service", ADAPTER, INFERENCE, 50051),
        ("labelled namespaces to the service", CALLER, INFERENCE, 50051),
    ]
    for name, source, target, port in needed:
        if not reaches(manifests, source, target, port):
            yield f"{name}: port {port} is closed"
    for pod in (INFERENCE, ADAPTER):
        for server, port in DNS:
            for protocol in ("UDP", "TCP"):
                if not reaches(manifests, pod, server, port, protocol):
                    yield f"{pod.labels} cannot ask {server} by {protocol}"


def closed(manifests: Manifests) -> Iterator[str]:
    """What need not be open is not: neighbours, the API of the cloud, other pods of the cluster."""
    for workload in manifests.workloads():
        for address in PRIVATE:
            pod = Endpoint(workload.labels)
            if any(reaches(manifests, pod, outside(address), port) for port in (80, 443)):
                yield f"{workload.name} reaches {address}"
    for who in (NEIGHBOUR, STRANGER):
        if any(reaches(manifests, who, INFERENCE, port) for port in (8000, 9090, 50051, 50052)):
            yield f"{who} reaches the service"
    for who in (ADAPTER, CALLER):
        if any(reaches(manifests, who, INFERENCE, port) for port in (8000, 9090, 50052)):
            yield f"{who} reaches more than the gRPC API"


def policy_fields(manifests: Manifests) -> Iterator[str]:
    """A policy names the directions that it has rules for, and protocols that exist."""
    for item in manifests.of_kind("NetworkPolicy"):
        name, spec = item["metadata"]["name"], item["spec"]
        types = set(spec["policyTypes"])
        ruled = {kind for kind in ("Ingress", "Egress") if kind.lower() in spec}
        if not ruled <= types <= {"Ingress", "Egress"} or (ruled and ruled != types):
            yield f"NetworkPolicy {name}: {sorted(types)} with rules for {sorted(ruled)}"
        for kind in ruled:
            for rule in spec[kind.lower()]:
                for port in rule.get("ports", []):
                    if port.get("protocol") not in ("TCP", "UDP"):
                        yield f"NetworkPolicy {name}: protocol {port.get('protocol')}"
                    if not isinstance(port.get("port"), int) or "endPort" in port:
                        yield f"NetworkPolicy {name}: opens more or less than one number: {port}"


def service_protocols(manifests: Manifests) -> Iterator[str]:
    """Proxies learn from a Service what it speaks; callers know its port."""
    wanted = {
        "inference": ("grpc", 50051, "kubernetes.io/h2c"),
        "rest-adapter": ("http", 8000, "http"),
    }
    for item in manifests.of_kind("Service"):
        name = item["metadata"]["name"]
        found = [
            (port["name"], port["port"], port.get("appProtocol")) for port in item["spec"]["ports"]
        ]
        if found != [wanted.get(name)]:
            yield f"Service {name}: {found}"


def program_ports(manifests: Manifests) -> Iterator[str]:
    """Services and the adapter's probes lead to the API of the program, not to another port of its container."""
    for workload, container in programs(manifests):
        values = settings_of(manifests, container)
        served = values.grpc_address if isinstance(values, ServiceSettings) else values.http_address
        numbers = {port["name"]: port["containerPort"] for port in container["ports"]}
        for probe in PROBES:
            asked = container.get(probe, {}).get("httpGet", {}).get("port")
            if asked is not None and numbers.get(asked, asked) != port_of(served):
                yield f"{workload.name}: the {probe} asks port {asked}, the API is at {served}"
        if workload.name != container["name"]:
            continue  # a sidecar
        for item in manifests.of_kind("Service"):
            if not matches({"matchLabels": item["spec"]["selector"]}, workload.labels):
                continue
            for port in item["spec"]["ports"]:
                target = port.get("targetPort", port["port"])
                if numbers.get(target, target) != port_of(served):
                    yield f"Service {item['metadata']['name']}: leads to {target}, not {served}"


def default_deny(manifests: Manifests) -> Iterator[str]:
    """One policy denies all pods everything; whatever is open, another one says so."""
    denied = [
        item
        for item in manifests.of_kind("NetworkPolicy")
        if item["spec"]["podSelector"] == {}
        and set(item["spec"]["policyTypes"]) == {"Ingress", "Egress"}
        and not {"ingress", "egress"} & set(item["spec"])
    ]
    if not denied:
        yield "no policy denies all traffic of all pods"


def egress_ports(manifests: Manifests) -> Iterator[str]:
    """Out of the cluster go HTTP and HTTPS alone, to servers of DNS only questions."""
    named = {
        port.get("port")
        for item in manifests.of_kind("NetworkPolicy")
        for rule in item["spec"].get("egress", [])
        for port in rule.get("ports", [])
    }
    ports = {port for port in named if isinstance(port, int)} | OTHER_PORTS
    for workload in manifests.workloads():
        pod = Endpoint(workload.labels)
        for protocol in ("TCP", "UDP"):
            for address in PUBLIC:
                opened = {
                    port
                    for port in ports - ({80, 443} if protocol == "TCP" else set())
                    if reaches(manifests, pod, outside(address), port, protocol)
                }
                if opened:
                    yield f"{workload.name} reaches {address} at {sorted(opened)} by {protocol}"
            for server, number in DNS:
                if any(
                    reaches(manifests, pod, server, port, protocol)
                    for port in OTHER_PORTS - {number}
                ):
                    yield f"{workload.name} asks {server} for more than names"


RULES = (
    edges,
    closed,
    policy_fields,
    service_protocols,
    program_ports,
    default_deny,
    egress_ports,
)
