"""Pod Security Standards, level `restricted`, as a pure function of a pod spec.

Source: kubernetes.io, "Pod Security Standards" (Linux pods; fields that the API server itself refuses are left out).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def restricted(pod: dict[str, Any]) -> Iterator[str]:
    """Yields what the admission controller would refuse."""
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(name):
            yield f"{name} is set"
    for volume in pod.get("volumes", []):
        if kinds := set(volume) - {"name"} - VOLUMES:
            yield f"volume {volume['name']} is of a forbidden type {sorted(kinds)}"
    for setting in pod.get("securityContext", {}).get("sysctls", []):
        yield f"sysctl {setting['name']}"
    for part in ("initContainers", "containers", "ephemeralContainers"):
        for container in pod.get(part, []):
            for text in _container(container, pod.get("securityContext", {})):
                yield f"container {container['name']}: {text}"


def _container(container: dict[str, Any], pod_context: dict[str, Any]) -> Iterator[str]:
    own = container.get("securityContext", {})
    both = {**pod_context, **own}
    capabilities = own.get("capabilities", {})
    seccomp = both.get("seccompProfile", {}).get("type")
    faults = {
        "privileged": bool(own.get("privileged")),
        "allowPrivilegeEscalation is not false": own.get("allowPrivilegeEscalation") is not False,
        "does not drop ALL capabilities": "ALL" not in capabilities.get("drop", []),
        "adds capabilities": bool(set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}),
        "runAsNonRoot is not true": both.get("runAsNonRoot") is not True,
        "runs as user 0": both.get("runAsUser") == 0,
        "no seccomp profile": seccomp not in ("RuntimeDefault", "Localhost"),
        "procMount": own.get("procMount", "Default") != "Default",
        "hostPort": any("hostPort" in port for port in container.get("ports", [])),
        "a probe names a host": any(
            container.get(probe, {}).get(action, {}).get("host")
            for probe in PROBES
            for action in ("httpGet", "tcpSocket")
        ),
    }
    yield from (text for text, found in faults.items() if found)
