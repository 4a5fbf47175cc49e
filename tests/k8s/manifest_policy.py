"""What a schema cannot see in manifests: names that must meet, times that must fit, limits that must hold.

Owns the rules, each a function of the rendered objects that yields what is wrong.
The settings of the code are the measure: names, ports and times are never written here a second time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
import ipaddress
from pathlib import PurePosixPath
import re

from inference_service.settings import ServiceSettings
from rest_adapter.settings import AdapterSettings
from tests.k8s.manifest_network import Endpoint, matches, outside, reaches
from tests.k8s.manifest_set import Manifests, Object, Workload
from tests.k8s.pod_security import PROBES


CLUSTER_SCOPED = {
    "Namespace": (None,),
    "PriorityClass": (None,),
    # Kustomize 5.8 takes these for namespaced; the API server clears the namespace of what has none.
    "ValidatingAdmissionPolicy": (None, "qwen-vl-serving"),
    "ValidatingAdmissionPolicyBinding": (None, "qwen-vl-serving"),
}
PREFIX = "QWENVL_"
SETTINGS: dict[str, type[AdapterSettings | ServiceSettings]] = {
    "inference": ServiceSettings,
    "rest-adapter": AdapterSettings,
}
"""Whose settings the variables of a container are, by the container's name."""

PICKER = {"app.kubernetes.io/name": "inference-epp"}
"""The pods of the endpoint picker, which the operator installs in this namespace."""
PICKER_PORT = 9002
"""Of the endpoint picker, as its chart installs it."""

LAST_WORDS_S = 5
"""What a program gets after its drain, for the errors of requests that took too long and for its own end."""

SELECTING = ("Service", "NetworkPolicy", "PodDisruptionBudget", "PodMonitor", "InferencePool")
"""Kinds that select pods."""

EXTERNAL = frozenset({("Secret", "api-keys")})
"""What the operator makes by hand, as k8s/README.md says."""


def port_of(address: str) -> int:
    """The port of `host:port`."""
    return int(address.rpartition(":")[2])


def metrics_address_of(values: AdapterSettings | ServiceSettings) -> str | None:
    """Where a program serves its metrics without a key."""
    if isinstance(values, ServiceSettings):
        return values.metrics_address
    return values.http_metrics_address


def settings_of(manifests: Manifests, container: Object) -> AdapterSettings | ServiceSettings:
    """The settings that the program in this container would run with."""
    return SETTINGS[container["name"]].load({}, manifests.environment(container))


def programs(manifests: Manifests) -> Iterator[tuple[Workload, Object]]:
    """The containers that run a program of this project."""
    for workload in manifests.workloads():
        for container in workload.containers:
            if container["name"] in SETTINGS:
                yield workload, container


def selectors(manifests: Manifests) -> Iterator[str]:
    """A Deployment selects its own pods; all else that selects pods selects those of exactly one workload."""
    workloads = list(manifests.workloads())
    for workload in workloads:
        if not matches(workload.spec.get("selector", {}), workload.labels):
            yield f"{workload.name}: selector and pod labels differ"
        for spread in workload.pod.get("topologySpreadConstraints", []):
            if not matches(spread["labelSelector"], workload.labels):
                yield f"{workload.name}: counts other pods when it spreads its own"
    for item in [found for kind in SELECTING for found in manifests.of_kind(kind)]:
        spec = item["spec"]
        selector = spec.get("podSelector", spec.get("selector"))
        if item["kind"] == "Service":
            selector = {"matchLabels": selector}
        if selector == {"matchLabels": PICKER} and item["kind"] == "NetworkPolicy":
            continue
        hits = sum(matches(selector, workload.labels) for workload in workloads)
        if selector and hits != 1:
            yield f"{item['kind']} {item['metadata']['name']} selects {hits} workloads"


def probe_ports(manifests: Manifests) -> Iterator[str]:
    """Every port has a number and a name of its own, and probes ask one of them."""
    for workload in manifests.workloads():
        numbers = [
            port["containerPort"]
            for container in workload.containers
            for port in container.get("ports", [])
        ]
        if len(set(numbers)) < len(numbers):
            yield f"{workload.name}: two containers of a pod listen on one port: {sorted(numbers)}"
        for container in workload.containers:
            names = _port_names(container)
            if len(names) != 2 * len(container.get("ports", [])):
                yield f"{container['name']}: a port is named twice or not at all"
            for probe in PROBES:
                for action in ("grpc", "httpGet", "tcpSocket"):
                    port = container.get(probe, {}).get(action, {}).get("port")
                    if port is not None and port not in names:
                        yield f"{container['name']}: {probe} asks port {port}"


def service_ports(manifests: Manifests) -> Iterator[str]:
    """A Service leads to a port of the pods it selects; a headless one cannot change the number on the way."""
    for item in manifests.of_kind("Service"):
        name, spec = item["metadata"]["name"], item["spec"]
        reachable = _ports_selected(manifests, {"matchLabels": spec["selector"]})
        for port in spec["ports"]:
            if port.get("targetPort", port["port"]) not in reachable:
                yield f"Service {name}: no container port for {port}"
            if spec.get("clusterIP") == "None" and port["port"] not in reachable:
                yield f"headless Service {name}: no container port {port['port']}"


def policy_ports(manifests: Manifests) -> Iterator[str]:
    """A NetworkPolicy opens only ports that the selected pods have."""
    for item in manifests.of_kind("NetworkPolicy"):
        reachable = _ports_selected(manifests, item["spec"]["podSelector"])
        if item["spec"]["podSelector"] == {"matchLabels": PICKER}:
            reachable = {PICKER_PORT}
        for rule in item["spec"].get("ingress", []):
            for port in rule.get("ports", []):
                if port.get("port") not in reachable:
                    yield f"NetworkPolicy {item['metadata']['name']} opens port {port.get('port')}"


def _port_names(container: Object) -> set[str | int]:
    listed = container.get("ports", [])
    return {port["containerPort"] for port in listed} | {port["name"] for port in listed}


def _ports_selected(manifests: Manifests, selector: Object) -> set[str | int]:
    return {
        name
        for workload in manifests.workloads()
        if matches(selector, workload.labels)
        for container in workload.containers
        for name in _port_names(container)
    }


def mounts(manifests: Manifests) -> Iterator[str]:
    """Every mount has its volume and every volume its mount."""
    for workload in manifests.workloads():
        volumes = {volume["name"] for volume in workload.pod.get("volumes", [])}
        mounted = {
            mount["name"]
            for container in workload.containers
            for mount in container.get("volumeMounts", [])
        }
        for name in sorted(volumes ^ mounted):
            yield f"{workload.name}: {name} is a volume or a mount, not both"
        boxes = [container["name"] for container in workload.containers]
        if len(set(boxes)) < len(boxes):
            yield f"{workload.name}: two containers have one name: {boxes}"
        for container in workload.containers:
            paths = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
            if len(set(paths)) < len(paths):
                yield f"{workload.name}/{container['name']}: two volumes at one path: {paths}"


def references(manifests: Manifests) -> Iterator[str]:
    """Whatever a pod names exists, here or among what the operator makes by hand."""
    for workload in manifests.workloads():
        for kind, name in _named(workload):
            made = kind == "Secret" and any(
                item["spec"]["secretName"] == name for item in manifests.of_kind("Certificate")
            )
            if not made and not manifests.has(kind, name) and (kind, name) not in EXTERNAL:
                yield f"{workload.name}: there is no {kind} {name}"


def _named(workload: Workload) -> Iterator[tuple[str, str]]:
    if "serviceAccountName" in workload.pod:
        yield "ServiceAccount", workload.pod["serviceAccountName"]
    for volume in workload.pod.get("volumes", []):
        if "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
        if "secret" in volume:
            yield "Secret", volume["secret"]["secretName"]
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
    for container in workload.containers:
        for source in container.get("envFrom", []):
            if "configMapRef" in source:
                yield "ConfigMap", source["configMapRef"]["name"]
    yield from _claimed(workload)


def _claimed(workload: Workload) -> Iterator[tuple[str, str]]:
    if "priorityClassName" in workload.pod:
        yield "PriorityClass", workload.pod["priorityClassName"]
    claims = {item["name"]: item for item in workload.pod.get("resourceClaims", [])}
    for claim in claims.values():
        yield "ResourceClaimTemplate", claim["resourceClaimTemplateName"]
    for container in workload.containers:
        for claim in container["resources"].get("claims", []):
            if claim["name"] not in claims:
                yield "resource claim", claim["name"]


def drain(manifests: Manifests) -> Iterator[str]:
    """A pod gets more time to end than waiting (preStop) and draining take together."""
    for workload, container in programs(manifests):
        settings = settings_of(manifests, container)
        drain_s = settings.drain_timeout_s
        wait_s = (
            container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        )
        grace_s = workload.pod.get("terminationGracePeriodSeconds", 30)
        if wait_s < 5:
            yield f"{workload.name}: clients get {wait_s} s to see that the pod leaves"
        if grace_s < wait_s + drain_s + LAST_WORDS_S:
            yield f"{workload.name}: grace of {grace_s} s for {wait_s} s and {drain_s} s"


def startup(manifests: Manifests) -> Iterator[str]:
    """Probes ask the right thing, and none ends a start that the service itself still allows."""
    for workload, container in programs(manifests):
        settings = settings_of(manifests, container)
        for probe in PROBES:
            if probe not in container:
                yield f"{workload.name}: no {probe}"
        probes = [container.get(probe, {}) for probe in PROBES]
        budget_s = probes[0].get("periodSeconds", 10) * probes[0].get("failureThreshold", 3)
        if isinstance(settings, ServiceSettings):
            asked = [probe.get("grpc", {}).get("service") for probe in probes]
            if asked != ["readiness", "readiness", "liveness"]:
                yield f"{workload.name}: the probes ask for {asked}"
            if budget_s <= settings.engine_start_timeout_s:
                yield f"{workload.name}: killed after {budget_s} s of loading"
        else:
            if budget_s < 30:
                yield f"{workload.name}: killed after {budget_s} s of starting"
            asked = [probe.get("httpGet", {}).get("path") for probe in probes]
            if asked != ["/health"] * 3:  # not /ready, the state of the service behind it
                yield f"{workload.name}: the probes ask for {asked}"
        if workload.spec.get("progressDeadlineSeconds", 600) <= budget_s:
            yield f"{workload.name}: the rollout is given up before the pod is"


def settings(manifests: Manifests) -> Iterator[str]:
    """Every variable is a setting of the program in the container, and its value is accepted."""
    for workload, container in programs(manifests):
        known = {PREFIX + name.upper() for name in SETTINGS[container["name"]].model_fields}
        names = {name for name in manifests.environment(container) if name.startswith(PREFIX)}
        yield from (
            f"{workload.name}: no setting is called {name}" for name in sorted(names - known)
        )
        try:
            settings_of(manifests, container)
        except SystemExit as error:
            yield f"{workload.name}: {error}"


def addresses(manifests: Manifests) -> Iterator[str]:
    """The programs listen where the container says and call where a Service is; the admin address stays inside."""
    for workload, container in programs(manifests):
        values = settings_of(manifests, container)
        served = values.grpc_address if isinstance(values, ServiceSettings) else values.http_address
        listed = {port["containerPort"] for port in container["ports"]}
        metrics = metrics_address_of(values)
        health = getattr(values, "health_address", None)
        opened = [address for address in (served, metrics, health) if address]
        # The probes and Prometheus may come by IPv4 or IPv6.
        if listed != {port_of(address) for address in opened} or not all(
            address.startswith("[::]:") for address in opened
        ):
            yield f"{workload.name}: listens on {opened}, the container names {sorted(listed)}"
        if isinstance(values, ServiceSettings):
            admin = (values.admin_address or "").rpartition(":")[0]
            if admin and not ipaddress.ip_address(admin).is_loopback:
                yield f"{workload.name}: the admin address {values.admin_address} is open"
            continue
        if values.grpc_target in {
            f"127.0.0.1:{port['containerPort']}"
            for box in workload.containers
            if box is not container
            for port in box.get("ports", [])
        }:
            continue  # a sidecar
        target = re.fullmatch(r"dns:///([a-z-]+):(\d+)", values.grpc_target)
        found = [
            item
            for item in manifests.of_kind("Service")
            if target and item["metadata"]["name"] == target[1]
        ]
        if (
            not target
            or not found
            or int(target[2]) not in {port["port"] for port in found[0]["spec"]["ports"]}
        ):
            yield f"{workload.name}: nothing answers at {values.grpc_target}"
        elif found[0]["spec"].get("clusterIP") != "None":
            yield "the Service for gRPC is not headless: one connection would mean one pod"


def rebalancing(manifests: Manifests) -> Iterator[str]:
    """Connections end soon enough that a new pod gets calls; see gRPC A9 (`MAX_CONNECTION_AGE`)."""
    for workload, container in programs(manifests):
        age_s = getattr(settings_of(manifests, container), "max_connection_age_s", 0.0)
        if age_s > 600:
            yield f"{workload.name}: a new pod may wait {age_s} s for connections"
        if 0 < age_s < 30:
            yield f"{workload.name}: all callers connect again every {age_s} s"


def files(manifests: Manifests) -> Iterator[str]:
    """The keys come from the Secret and are required."""
    for workload, container in programs(manifests):
        values = settings_of(manifests, container)
        volumes = {volume["name"]: volume for volume in workload.pod["volumes"]}
        mounted = {
            PurePosixPath(mount["mountPath"]): volumes.get(mount["name"], {})
            for mount in container["volumeMounts"]
        }
        keys = PurePosixPath(values.api_key_file or "/")
        source = mounted.get(keys.parent, {}).get("secret")
        if source is None or source.get("optional"):
            yield f"{workload.name}: the API may be open to everyone, keys at {values.api_key_file}"
        elif ("Secret", source["secretName"]) in EXTERNAL and keys.name != "api-keys":
            yield f"{workload.name}: the operator makes no {keys.name}, as k8s/README.md has it"
        elif manifests.has("Secret", source["secretName"]):
            secret = manifests.get("Secret", source["secretName"])
            if keys.name not in secret.get("data", {}):
                yield f"{workload.name}: the Secret has no {keys.name}"


def images(manifests: Manifests, version: str) -> Iterator[str]:
    """Every image of this project carries its version as the tag, or a digest; every other one a digest."""
    for workload in manifests.workloads():
        for volume in workload.pod.get("volumes", []):
            reference = volume.get("image", {}).get("reference", "")
            if "image" in volume and not re.fullmatch(r"[\w./:-]+@sha256:[0-9a-f]{64}", reference):
                yield f"{workload.name}: the image volume {reference} has no digest"
        for container in workload.containers:
            pinned = re.fullmatch(r"\S+@sha256:[0-9a-f]{64}", container["image"])
            if not pinned and container["image"].rpartition(":")[2] != version:
                yield f"{workload.name}: image {container['image']} is not of version {version}"


def network(manifests: Manifests) -> Iterator[str]:
    """Nothing is open by default, and a pod may leave the cluster exactly if it fetches media or the model."""
    unnamed, public = Endpoint({"any": "pod"}), outside("93.184.215.14")
    if reaches(manifests, unnamed, public, 443) or reaches(manifests, public, unnamed, 443):
        yield "a pod that no policy names is open"
    for workload in manifests.workloads():
        fetches = any(
            getattr(settings_of(manifests, container), "enable_media_fetch", False)
            for owner, container in programs(manifests)
            if owner.name == workload.name
        )
        downloads = any(box["name"] == "model-download" for box in workload.containers)
        pod = Endpoint(workload.labels)
        for port, wanted in ((80, fetches), (443, fetches or downloads)):
            for address in ("93.184.215.14", "2606:2800:21f::1"):
                if reaches(manifests, pod, outside(address), port) != wanted:
                    yield f"{workload.name}: port {port} of {address} must be open: {wanted}"


def monitors(manifests: Manifests) -> Iterator[str]:
    """Metrics are read where they are served: by Prometheus alone, from every program that serves them."""
    prometheus = Endpoint(
        {"any": "pod"}, namespace="any", namespace_labels={"qwen-vl-serving/prometheus": "true"}
    )
    stranger = Endpoint({"any": "pod"}, namespace="any")
    for workload, container in programs(manifests):
        address = metrics_address_of(settings_of(manifests, container))
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        selecting = [
            item
            for item in manifests.of_kind("PodMonitor")
            if matches(item["spec"]["selector"], workload.labels)
        ]
        if selecting and not address:
            yield f"{workload.name}/{container['name']}: nobody sees what it does"
        endpoints = [
            endpoint
            for item in selecting
            for endpoint in item["spec"]["podMetricsEndpoints"]
            if endpoint["port"] in ports  # else it is of another container
        ]
        read = [(ports.get(one["port"]), one.get("path", "/metrics")) for one in endpoints]
        if read != ([(port_of(address), "/metrics")] if address else []):
            yield f"{workload.name}: metrics at {address} are read at {read}"
        if address:
            pod, port = Endpoint(workload.labels), port_of(address)
            if not reaches(manifests, prometheus, pod, port):
                yield f"{workload.name}: Prometheus cannot connect to port {port}"
            if reaches(manifests, stranger, pod, port):
                yield f"{workload.name}: port {port} is open to all"


def unique(manifests: Manifests) -> Iterator[str]:
    """Nothing is there twice, and everything lives in the one namespace."""
    seen = Counter((item["kind"], item["metadata"]["name"]) for item in manifests.objects)
    yield from (f"{kind} {name} is there {n} times" for (kind, name), n in seen.items() if n > 1)
    for item in manifests.objects:
        wanted = CLUSTER_SCOPED.get(item["kind"], ("qwen-vl-serving",))
        if item["metadata"].get("namespace") not in wanted:
            yield f"{item['kind']} {item['metadata']['name']} is not in the namespace {wanted}"


Rule = Callable[[Manifests], Iterator[str]]
RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (
        selectors,
        probe_ports,
        service_ports,
        policy_ports,
        mounts,
        references,
        drain,
        startup,
        settings,
        addresses,
        rebalancing,
        files,
        network,
        monitors,
        unique,
    )
}
"""Every rule that needs nothing but the objects."""
