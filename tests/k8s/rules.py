"""All rules about rendered manifests, by name."""

from __future__ import annotations

from tests.k8s import (
    admission_policy,
    container_policy,
    edge_policy,
    manifest_policy,
    model_policy,
    object_policy,
    pod_policy,
    routing_policy,
    scaling_policy,
    settings_policy,
    tls_policy,
    watching_policy,
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
        *settings_policy.RULES,
        *object_policy.RULES,
        *admission_policy.RULES,
        *watching_policy.RULES,
    )
}


def broken_rules(manifests: Manifests) -> dict[str, list[str]]:
    """The rules that do not hold, and why; with invalid settings, which most others read, that one alone."""
    if faults := _faults(RULES["settings"], manifests):
        return {"settings": faults}
    found = {name: _faults(rule, manifests) for name, rule in RULES.items()}
    return {name: faults for name, faults in found.items() if faults}


def _faults(rule: manifest_policy.Rule, manifests: Manifests) -> list[str]:
    """What a rule finds; what it cannot read, for another fault of the manifests, it does not accept either."""
    try:
        return list(rule(manifests))
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError) as error:
        return [f"cannot be checked: {type(error).__name__} {error}"]
    except ValueError as error:
        return [f"cannot be checked: {error}"]
