"""Every field of the manifests matters: changed to nonsense, a schema or a rule refuses it, or it is free to choose."""

from __future__ import annotations

from collections.abc import Iterator
import copy
import re
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from tests.k8s.manifest_set import Manifests, load
from tests.k8s.rules import broken_rules
from tests.k8s.test_manifests import RELEASES, check_schema


pytestmark = pytest.mark.full

REFUSED = (jsonschema.ValidationError, kubernetes_validate.ValidationError)
# What an operator may choose, or what is somebody else's name. Alerts and dashboard: see test_alerts.py.
FREE = re.compile(
    r"metadata\..*|apiVersion|kind|PrometheusRule .*|\S+ qwen-vl-serving-dashboard .*"
    r"|ConfigMap .*\.(MODELSCOPE_CACHE|HF_HOME|QWENVL_SERVED_MODEL_NAME|QWENVL_REVISION)"
    r"|PersistentVolumeClaim .*\.storage|PriorityClass \S+ (description|value)"
    r"|.*app\.kubernetes\.io/component|.*\.fsGroupChangePolicy|.*\.matchLabelKeys\.\d"
    r"|.*\.readOnlyRootFilesystem|.*\.image\.pullPolicy|.*volumeMounts\.0\.readOnly"
    r"|HorizontalPodAutoscaler .*\.policies\.0\.periodSeconds"
    r"|HorizontalPodAutoscaler .*\.minReplicas|ValidatingAdmissionPolicy .*\.message"
    r"|ScaledObject .*\.(triggers\.\d\.name|minReplicaCount)"
    r"|Gateway .*(gatewayClassName|certificateRefs\.0\.name)|InferencePool .*endpointPickerRef\.name"
    r"|ResourceClaimTemplate .*|Certificate .*(commonName|dnsNames\.\d)|Deployment \S+ .*\.ports\.\d\.name"
    r"|NetworkPolicy m\S+-egress spec\.egress\.0\.ports\.\d\.port"
)


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The paths to all values that are neither objects nor lists."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from leaves(part, (*path, key))
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from leaves(part, (*path, index))
    else:
        yield path


def spoil(place: Any, path: tuple[str | int, ...]) -> None:
    for step in path[:-1]:
        place = place[step]
    old = place[path[-1]]
    if isinstance(old, bool):
        place[path[-1]] = not old
    else:
        place[path[-1]] = old * 1000 + 1 if isinstance(old, int) else "wrong"


def is_refused(manifests: Manifests, changed: Any) -> bool:
    try:
        check_schema(changed, RELEASES[-1])
        return bool(broken_rules(manifests))
    except REFUSED:
        return True
    except (ValueError, LookupError, TypeError, AssertionError):
        return True  # a rule cannot read it


@pytest.mark.parametrize(
    "kustomization", ["pool", "to-zero", "mutual-tls", "guarded", "native-zero"]
)
def test_nonsense_in_any_field_is_refused(kustomization: str) -> None:
    manifests = load(kustomization)
    assert broken_rules(manifests) == {}
    survivors = []
    for index, item in enumerate(manifests.objects):
        for path in leaves(item):
            name = f"{item['kind']} {item['metadata']['name']} {'.'.join(map(str, path))}"
            if FREE.fullmatch(name) or path[0] in ("metadata", "apiVersion", "kind"):
                continue
            changed = Manifests(copy.deepcopy(manifests.objects))
            spoil(changed.objects[index], path)
            if not is_refused(changed, changed.objects[index]):
                survivors.append(name)
    assert survivors == []
