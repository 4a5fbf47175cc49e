"""The admission policy refuses what it says, and accepts the workloads of the overlay with pinned images."""

from __future__ import annotations

from collections.abc import Callable
import copy

import pytest

from tests.k8s.admission_policy import pinned, refusals
from tests.k8s.manifest_set import Object, load


MANIFESTS = load("guarded")
POLICY = MANIFESTS.get("ValidatingAdmissionPolicy", "qwen-vl-serving")
WORKLOADS = [workload.body for workload in MANIFESTS.workloads()]


def pod_of(item: Object) -> Object:
    pod: Object = item["spec"]["template"]["spec"]
    return pod


BROKEN: dict[str, Callable[[Object], object]] = {
    "digest": lambda pod: pod["containers"][0].update(image="qwen-vl-serving/inference:0.3.0"),
    "memory limit": lambda pod: pod["containers"][0]["resources"]["limits"].pop("memory"),
    "GPUs": lambda pod: pod["containers"][0]["resources"]["requests"].pop("nvidia.com/gpu"),
    "hostPath": lambda pod: pod["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
    "sizeLimit": lambda pod: pod["volumes"].append({"name": "x", "emptyDir": {}}),
    "token": lambda pod: pod.update(automountServiceAccountToken=True),
    "root": lambda pod: pod["securityContext"].pop("runAsNonRoot"),
}


@pytest.mark.parametrize("item", WORKLOADS, ids=lambda item: item["metadata"]["name"])
def test_workloads_are_accepted_with_digests_and_only_with_them(item: Object) -> None:
    assert list(refusals(POLICY, pinned(item))) == []
    (message,) = refusals(POLICY, item)
    assert "digest" in message


@pytest.mark.parametrize("word", BROKEN)
def test_each_validation_refuses(word: str) -> None:
    item = pinned(MANIFESTS.get("Deployment", "inference"))
    BROKEN[word](pod_of(item))
    (message,) = refusals(POLICY, item)
    assert word in message


def test_every_validation_is_tried() -> None:
    messages = [validation["message"] for validation in POLICY["spec"]["validations"]]
    assert len(messages) == len(BROKEN)
    assert all(sum(word in message for message in messages) == 1 for word in BROKEN)


def test_a_pod_by_itself_is_judged_too() -> None:
    pod = copy.deepcopy(pod_of(pinned(MANIFESTS.get("Deployment", "rest-adapter"))))
    assert list(refusals(POLICY, {"kind": "Pod", "spec": pod})) == []
    pod["containers"].append({"name": "shell", "image": "busybox"})
    assert len(list(refusals(POLICY, {"kind": "Pod", "spec": pod}))) == 2
