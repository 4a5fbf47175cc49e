"""How many pods there are, and what may take them away: what a schema cannot see.

Owns the rules about autoscalers, disruption budgets, priorities and spreading.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import re
from typing import Any

from qwenvl.errors import BY_REASON
from rest_adapter import metrics as adapter_metrics
from tests.k8s.manifest_network import matches
from tests.k8s.manifest_policy import programs, settings_of
from tests.k8s.manifest_set import Manifests, Object
from tests.support.metric_names import exposed_names, used_names


TOPOLOGIES = ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
IN_FLIGHT = "qwenvl_requests_in_flight"
"""What a replica works on, whoever has asked for it."""
HIGHEST = 1_000_000_000
"""Priorities above are the system's."""


def scalers(manifests: Manifests) -> Iterator[str]:
    """An autoscaler has a workload to itself, between a minimum and a maximum, and its Deployment sets no number."""
    seen: set[str] = set()
    for item, low, high in _scalers(manifests):
        name = item["spec"]["scaleTargetRef"]["name"]
        if not manifests.has("Deployment", name):
            yield f"{item['kind']} {item['metadata']['name']}: there is no Deployment {name}"
            continue
        if name in seen:
            yield f"Deployment {name} has two autoscalers"
        seen.add(name)
        if not low < high:
            yield f"{item['kind']} {item['metadata']['name']}: {low} to {high} replicas"
        if "replicas" in manifests.get("Deployment", name)["spec"]:
            yield f"Deployment {name}: every apply would set its replicas back"


def scaling_metrics(manifests: Manifests) -> Iterator[str]:
    """Autoscalers read metrics that exist, of pods that are there when they are needed, below what a replica can do."""
    known = exposed_names()
    of_adapter = {f"{family.name}" for family in adapter_metrics.REGISTRY.collect()}
    for item, low, _ in _scalers(manifests):
        name = f"{item['kind']} {item['metadata']['name']}"
        target = item["spec"]["scaleTargetRef"]["name"]
        queries = list(_queries(item))
        kinds = {metric["type"] for metric in item["spec"].get("metrics", [])}
        if low == 0 and kinds & {"Resource", "Pods", "ContainerResource"}:
            yield f"{name}: no pod is left to measure: {sorted(kinds)}"
        for names in queries:
            if not names or not names <= known:
                yield f"{name}: {names} are not all metrics of this project"
        lasting = [names for names in queries if names != {IN_FLIGHT}]
        if low == 0 and (
            target == "rest-adapter" or not lasting or not _all_of(lasting, of_adapter)
        ):
            yield f"{name}: not all of {queries} are there when it has scaled to zero"
        for metric in item["spec"].get("metrics", []):
            for label, value in _selected_labels(metric):
                if label != "reason" or value not in BY_REASON:
                    yield f"{name}: nothing has {label}={value}"
            yield from (f"{name}: {text}" for text in _of_others(metric, target, of_adapter))
        if queries and manifests.of_kind("PodMonitor") == []:
            yield f"{name}: nothing reads its metrics"


def scaling_to_zero(manifests: Manifests) -> Iterator[str]:
    """No replica that works is taken away: callers by gRPC, and those of a pool, do not come by the adapter."""
    for item, low, _ in _scalers(manifests):
        if low > 0:
            continue
        name = f"{item['kind']} {item['metadata']['name']}"
        if not any(IN_FLIGHT in names for names in _queries(item)):
            yield f"{name}: takes replicas away from callers by gRPC, without {IN_FLIGHT}"
        if manifests.of_kind("InferencePool"):
            yield f"{name}: without replicas the pool has no adapter whose callers could wake one"
        for trigger in item["spec"].get("triggers", []):
            query = trigger["metadata"]["query"]
            if IN_FLIGHT in query and not query.endswith("or vector(0)"):
                yield f"{name}: at zero replicas nothing exports {query}, which counts as a fault"


def _all_of(queries: list[set[str]], families: set[str]) -> bool:
    """Whether all queries read metrics of these families only."""
    return all(one.startswith(tuple(families)) for names in queries for one in names)


def _of_others(metric: Mapping[str, Any], target: str, of_adapter: set[str]) -> Iterator[str]:
    """What a metric of pods or of their CPU does not tell about the target."""
    if metric["type"] == "Pods":
        one = metric["pods"]["metric"]["name"]
        if one.startswith(tuple(of_adapter)) != (target == "rest-adapter"):
            yield f"the pods of {target} have no {one}"
    if metric["type"] == "Resource" and target == "inference":
        yield "the CPU does not tell what a GPU has to do"


def scaler_queries(manifests: Manifests) -> Iterator[str]:
    """KEDA asks a Prometheus in the cluster about this namespace, and one caller wakes the service."""
    for item in manifests.of_kind("ScaledObject"):
        name = f"ScaledObject {item['metadata']['name']}"
        for trigger in item["spec"]["triggers"]:
            asked = trigger["metadata"]
            if not re.fullmatch(
                r"https?://[a-z0-9-]+\.[a-z0-9-]+\.svc(\.cluster\.local)?:\d+(/.*)?",
                asked["serverAddress"],
            ):
                yield f"{name}: {asked['serverAddress']} is no Service of another namespace"
            namespaces = set(re.findall(r'namespace="([^"]*)"', asked["query"]))
            if namespaces != {item["metadata"]["namespace"]}:
                yield f"{name}: asks about the namespaces {sorted(namespaces)}"
            if not 0 <= float(asked.get("activationThreshold", "0")) < 1:
                yield f"{name}: {asked['activationThreshold']} callers wait for the next one"


def _selected_labels(metric: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The labels and values by which an external metric is selected."""
    selector = metric.get("external", {}).get("metric", {}).get("selector", {})
    yield from selector.get("matchLabels", {}).items()
    for one in selector.get("matchExpressions", []):
        # Any other operator selects what is not meant.
        values = one.get("values", [""]) if one["operator"] == "In" else [one["operator"]]
        yield from ((one["key"], value) for value in values)


def scaling_thresholds(manifests: Manifests) -> Iterator[str]:
    """An autoscaler adds a replica before the others are full, and can compute a share of what is requested."""
    for item, _, _ in _scalers(manifests):
        name = f"{item['kind']} {item['metadata']['name']}"
        target = item["spec"]["scaleTargetRef"]["name"]
        for workload, container in programs(manifests):
            if workload.name != target:
                continue
            values = settings_of(manifests, container)
            places = getattr(values, "max_num_seqs", None)
            if places and not all(0 < number < places for number in _thresholds(item)):
                yield f"{name}: not between 0 and the {places} answers at a time of a replica"
            kinds = {metric["type"] for metric in item["spec"].get("metrics", [])}
            if "Resource" in kinds and "cpu" not in container["resources"].get("requests", {}):
                yield f"{name}: there is no CPU request to compare with"


def scaler_fields(manifests: Manifests) -> Iterator[str]:
    """An autoscaler's words have a meaning: its target, kinds of values, policies; and its limits are sane."""
    values = {"AverageValue": "averageValue", "Utilization": "averageUtilization", "Value": "value"}
    for item, _, high in _scalers(manifests):
        name = f"{item['kind']} {item['metadata']['name']}"
        target = item["spec"]["scaleTargetRef"]
        if (target.get("apiVersion"), target.get("kind")) != ("apps/v1", "Deployment"):
            yield f"{name}: scales {target}"
        if high > 100:
            yield f"{name}: up to {high} replicas"
        for metric in item["spec"].get("metrics", []):
            source = metric[metric["type"].lower()]
            goal = source["target"]
            if values.get(goal["type"]) not in goal or source.get("name", "cpu") != "cpu":
                yield f"{name}: {source}"
            if not 50 <= goal.get("averageUtilization", 50) <= 200:
                yield f"{name}: {goal}"
        yield from _behavior(name, item)


def _behavior(name: str, item: Object) -> Iterator[str]:
    up = item["spec"].get("behavior", {}).get("scaleUp", {})
    if up.get("stabilizationWindowSeconds", 0) > 300:
        yield f"{name}: callers wait for minutes until it scales up"
    for direction in item["spec"].get("behavior", {}).values():
        if direction.get("selectPolicy") == "Disabled":
            yield f"{name}: scales in one direction only"
        if direction.get("stabilizationWindowSeconds", 0) > 3600:
            yield f"{name}: waits longer than an hour"
        for policy in direction.get("policies", []):
            if policy["type"] not in ("Pods", "Percent") or not 0 < policy["value"] <= 400:
                yield f"{name}: {policy}"


def slow_scale_down(manifests: Manifests) -> Iterator[str]:
    """A replica that takes minutes to start is not taken away for a short lull; its drain fits in between."""
    for item in manifests.of_kind("HorizontalPodAutoscaler"):
        behavior = item["spec"].get("behavior", {}).get("scaleDown", {})
        wait_s = behavior.get("stabilizationWindowSeconds", 300)
        floor_s = 600 if item["spec"]["scaleTargetRef"]["name"] == "inference" else 300
        if wait_s < floor_s:
            yield f"HorizontalPodAutoscaler {item['metadata']['name']}: scales down after {wait_s} s"
    for item in manifests.of_kind("ScaledObject"):
        if not 5 <= item["spec"].get("pollingInterval", 30) <= 60:
            yield f"ScaledObject {item['metadata']['name']}: asks too rarely, or too often"
        fallback = item["spec"].get("fallback", {"failureThreshold": 3, "replicas": 1})
        if not 1 <= fallback["replicas"] <= item["spec"]["maxReplicaCount"] or not (
            1 <= fallback["failureThreshold"] <= 10
        ):
            yield f"ScaledObject {item['metadata']['name']}: falls back to {fallback}"
        if not 600 <= item["spec"].get("cooldownPeriod", 300) <= 7200:
            yield f"ScaledObject {item['metadata']['name']}: scales to zero too soon, or too late"
        for trigger in item["spec"]["triggers"]:
            if trigger["metadata"].get("ignoreNullValues") != "false":
                yield f"ScaledObject {item['metadata']['name']}: no metrics count as no callers"
        if "fallback" not in item["spec"]:
            yield f"ScaledObject {item['metadata']['name']}: depends on Prometheus"


def disruption(manifests: Manifests) -> Iterator[str]:
    """A node can always be drained, one pod at a time; if one program has a budget, every program has one."""
    budgets = manifests.of_kind("PodDisruptionBudget")
    for item in budgets:
        if item["spec"].get("maxUnavailable") != 1 or "minAvailable" in item["spec"]:
            yield f"PodDisruptionBudget {item['metadata']['name']}: does not allow exactly one"
        if item["spec"].get("unhealthyPodEvictionPolicy") != "AlwaysAllow":
            yield f"PodDisruptionBudget {item['metadata']['name']}: keeps pods that serve nobody"
    for workload, _ in programs(manifests):
        hits = [item for item in budgets if matches(item["spec"]["selector"], workload.labels)]
        if budgets and len(hits) != 1:
            yield f"{workload.name}: has {len(hits)} budgets"


def spreading(manifests: Manifests) -> Iterator[str]:
    """Where a second replica is protected, it is on another node; spreading never keeps a pod from starting."""
    for workload, _ in programs(manifests):
        spreads = workload.pod.get("topologySpreadConstraints", [])
        keys = {item["topologyKey"] for item in spreads}
        if manifests.of_kind("PodDisruptionBudget") and "kubernetes.io/hostname" not in keys:
            yield f"{workload.name}: all replicas may be on one node"
        for item in spreads:
            if item["maxSkew"] != 1 or item["topologyKey"] not in TOPOLOGIES:
                yield f"{workload.name}: spreads by {item['topologyKey']}, {item['maxSkew']}"
            if item["whenUnsatisfiable"] != "ScheduleAnyway":
                yield f"{workload.name}: waits when {item['topologyKey']} cannot be kept"


def priorities(manifests: Manifests) -> Iterator[str]:
    """Priorities are below the system's, nobody gets one by default, and every program has one if any has."""
    classes = manifests.of_kind("PriorityClass")
    for item in classes:
        if not 0 < item["value"] <= HIGHEST or item.get("globalDefault"):
            yield f"PriorityClass {item['metadata']['name']}: {item['value']}, or the default of all"
    for workload, _ in programs(manifests):
        if bool(classes) != ("priorityClassName" in workload.pod):
            yield f"{workload.name}: priority {workload.pod.get('priorityClassName')}"
    yield from _preempting(manifests)


def _preempting(manifests: Manifests) -> Iterator[str]:
    """Whose pods may take the place of one of the service, whose model takes minutes to load."""
    classes = {item["metadata"]["name"]: item for item in manifests.of_kind("PriorityClass")}
    given = {
        workload.name: classes[workload.pod["priorityClassName"]]
        for workload, _ in programs(manifests)
        if workload.pod.get("priorityClassName") in classes
    }
    floor = given.get("inference", {"value": HIGHEST})["value"]
    for name, item in given.items():
        if item["value"] > floor and item.get("preemptionPolicy") != "Never":
            yield f"{name}: may end pods of the service to get their place"


def _scalers(manifests: Manifests) -> Iterator[tuple[Object, int, int]]:
    """Every autoscaler with its limits."""
    for item in manifests.of_kind("HorizontalPodAutoscaler"):
        yield item, item["spec"].get("minReplicas", 1), item["spec"]["maxReplicas"]
    for item in manifests.of_kind("ScaledObject"):
        yield item, item["spec"].get("minReplicaCount", 0), item["spec"]["maxReplicaCount"]


def _queries(item: Object) -> Iterator[set[str]]:
    """The names of metrics that each condition of an autoscaler reads."""
    for metric in item["spec"].get("metrics", []):
        if metric["type"] != "Resource":
            yield {metric[metric["type"].lower()]["metric"]["name"]}
    for trigger in item["spec"].get("triggers", []):
        yield set(used_names(trigger["metadata"]["query"]))


def _thresholds(item: Object) -> Iterator[float]:
    for metric in item["spec"].get("metrics", []):
        if metric["type"] != "Resource":
            yield float(metric[metric["type"].lower()]["target"]["averageValue"])
    for trigger in item["spec"].get("triggers", []):
        yield float(trigger["metadata"]["threshold"])


RULES = (
    scalers,
    scaling_metrics,
    scaling_to_zero,
    scaler_queries,
    scaling_thresholds,
    scaler_fields,
    slow_scale_down,
    disruption,
    spreading,
    priorities,
)
