"""Our reading of Pod Security `restricted` refuses what the standard names."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.k8s.pod_security import restricted


GOOD: dict[str, Any] = {
    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    "containers": [
        {
            "name": "program",
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            },
        }
    ],
    "volumes": [{"name": "scratch", "emptyDir": {}}],
}


def test_a_restricted_pod_passes() -> None:
    assert list(restricted(GOOD)) == []


def test_a_container_may_say_it_itself() -> None:
    pod = copy.deepcopy(GOOD)
    pod["containers"][0]["securityContext"] |= pod.pop("securityContext")
    assert list(restricted(pod)) == []


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"hostNetwork": True}, "hostNetwork"),
        ({"hostPID": True}, "hostPID"),
        ({"hostIPC": True}, "hostIPC"),
        ({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}, "hostPath"),
        ({"securityContext": {}}, "runAsNonRoot"),
        ({"securityContext": {"runAsNonRoot": True}}, "seccomp"),
        ({"securityContext": GOOD["securityContext"] | {"sysctls": [{"name": "a.b"}]}}, "sysctl"),
        ({"initContainers": [{"name": "first"}]}, "container first: does not drop ALL"),
    ],
)
def test_a_field_of_the_pod_is_refused(fields, fault) -> None:
    assert any(fault in text for text in restricted(GOOD | fields))


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"privileged": True}, "privileged"),
        ({"allowPrivilegeEscalation": None}, "allowPrivilegeEscalation"),
        ({"capabilities": {"drop": ["NET_RAW"]}}, "does not drop ALL"),
        ({"capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]}}, "adds capabilities"),
        ({"runAsUser": 0}, "user 0"),
        ({"runAsNonRoot": False}, "runAsNonRoot"),
        ({"seccompProfile": {"type": "Unconfined"}}, "seccomp"),
        ({"procMount": "Unmasked"}, "procMount"),
    ],
)
def test_a_security_context_is_refused(fields, fault) -> None:
    pod = copy.deepcopy(GOOD)
    pod["containers"][0]["securityContext"] |= fields
    assert any(fault in text for text in restricted(pod))


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"ports": [{"containerPort": 80, "hostPort": 80}]}, "hostPort"),
        ({"livenessProbe": {"httpGet": {"host": "x", "port": 80}}}, "probe names a host"),
    ],
)
def test_a_field_of_the_container_is_refused(fields, fault) -> None:
    pod = copy.deepcopy(GOOD)
    pod["containers"][0] |= fields
    assert any(fault in text for text in restricted(pod))
