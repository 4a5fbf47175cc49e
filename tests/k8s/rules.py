"""All rules about rendered manifests, by name."""

from __future__ import annotations

from tests.k8s import (
    container_policy,
    edge_policy,
    manifest_policy,
    model_policy,
    pod_policy,
    routing_policy,
    scaling_policy,
    tls_policy,
)
from tests.k8s.manifest_set import Manifests


RULES: dict[str, manifest_policy.Rule] = manifest_policy.RULES | {
    rule.__name__: rule
    for rule in (
        *pod_policy.RULES,
        *container_policy.RULES,
        *edge_policy.RULES,
        *model_policy.RULES,
        *scaling_policy.RULES,
        *routing_policy.RULES,
        *tls_policy.RULES,
    )
}


def broken_rules(manifests: Manifests) -> dict[str, list[str]]:
    """The rules that do not hold, and why; with invalid settings, which most others read, that one alone."""
    if faults := list(RULES["settings"](manifests)):
        return {"settings": faults}
    found = {name: list(rule(manifests)) for name, rule in RULES.items()}
    return {name: faults for name, faults in found.items() if faults}
