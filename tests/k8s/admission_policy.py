"""The admission policy, evaluated here as the API server would: what a schema cannot see.

Owns the meaning of a ValidatingAdmissionPolicy for workloads; `string`, `matches`, `all` and `has` are CEL's own.
"""

from __future__ import annotations

from collections.abc import Iterator
import copy
from typing import Any

import cel

from tests.k8s.manifest_set import Manifests, Object


GUARDED = {"qwen-vl-serving/guarded": "true"}
"""The label of namespaces in which a policy holds; names of namespaces are the operator's."""
SEEN = {
    ("", "v1", "pods"),
    ("apps", "v1", "deployments"),
    ("apps", "v1", "statefulsets"),
    ("apps", "v1", "daemonsets"),
    ("batch", "v1", "jobs"),
}
"""Whatever brings pods into the namespace."""
DIGEST = "@sha256:" + 64 * "0"


def refusals(policy: Object, item: Object) -> Iterator[str]:
    """The messages with which a policy refuses an object; an expression with a fault refuses as well."""
    known: dict[str, Any] = {"object": item, "variables": {}}
    for variable in policy["spec"].get("variables", []):
        known["variables"][variable["name"]] = _value(variable["expression"], known)
    for validation in policy["spec"]["validations"]:
        if _value(validation["expression"], known) is not True:
            yield validation["message"]


def _value(expression: str, known: dict[str, Any]) -> Any:
    try:
        return cel.evaluate(expression, known)
    except (RuntimeError, TypeError, ValueError):
        return None


def pinned(item: Object) -> Object:
    """An object with digests, as in an operator's overlay."""
    found = copy.deepcopy(item)
    pod = found["spec"]["template"]["spec"]
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        container["image"] = container["image"].partition("@")[0] + DIGEST
    return found


def admission(manifests: Manifests) -> Iterator[str]:
    """A policy is bound to this namespace, denies, sees the workloads, and accepts those that are here."""
    policies = {
        item["metadata"]["name"]: item for item in manifests.of_kind("ValidatingAdmissionPolicy")
    }
    bound = {
        item["spec"]["policyName"] for item in manifests.of_kind("ValidatingAdmissionPolicyBinding")
    }
    yield from _bindings(manifests, set(policies))
    for name, policy in policies.items():
        if name not in bound:
            yield f"policy {name}: is bound to nothing"
        if policy["spec"].get("failurePolicy", "Fail") != "Fail":
            yield f"policy {name}: lets everything pass when it fails"
        yield from _sees(name, policy)
        for workload in manifests.workloads():
            for message in refusals(policy, pinned(workload.body)):
                yield f"policy {name} refuses {workload.name}: {message}"


def _bindings(manifests: Manifests, policies: set[str]) -> Iterator[str]:
    for item in manifests.of_kind("ValidatingAdmissionPolicyBinding"):
        spec, name = item["spec"], item["metadata"]["name"]
        if spec["policyName"] not in policies:
            yield f"binding {name}: there is no policy {spec['policyName']}"
        actions = set(spec["validationActions"])
        if "Deny" not in actions or not actions <= {"Deny", "Audit"}:  # the two that go together
            yield f"binding {name}: does {sorted(actions)}"
        selector = spec.get("matchResources", {}).get("namespaceSelector", {})
        if selector != {"matchLabels": GUARDED}:
            yield f"binding {name}: is for other namespaces than those with {GUARDED}"
        for namespace in manifests.of_kind("Namespace"):
            if not GUARDED.items() <= namespace["metadata"].get("labels", {}).items():
                yield f"binding {name}: is not for the namespace {namespace['metadata']['name']}"


def _sees(name: str, policy: Object) -> Iterator[str]:
    rules = policy["spec"]["matchConstraints"]["resourceRules"]
    seen = {
        (group, version, resource)
        for rule in rules
        for group in rule["apiGroups"]
        for version in rule["apiVersions"]
        for resource in rule["resources"]
    }
    if seen != SEEN:
        yield f"policy {name}: sees other things than pods and workloads: {sorted(seen ^ SEEN)}"
    for rule in rules:
        if set(rule["operations"]) != {"CREATE", "UPDATE"}:
            yield f"policy {name}: sees {rule['operations']} of {rule['resources']}"


RULES = (admission,)
