"""All rules about rendered manifests, by name."""

from __future__ import annotations

from tests.k8s import manifest_policy, model_policy


RULES: dict[str, manifest_policy.Rule] = manifest_policy.RULES | {
    rule.__name__: rule for rule in model_policy.RULES
}
