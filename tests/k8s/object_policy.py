"""What objects must not be or do: what a schema cannot see.

Owns the rules about API groups, permissions, kinds of Services, Secrets, volumes, and pods as a whole.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
import re

from tests.k8s import crd_schemas
from tests.k8s.manifest_policy import programs
from tests.k8s.manifest_set import Manifests, Object
from tests.k8s.pod_policy import quantity
from tests.k8s.pod_security import PROBES


VERSIONS = {
    "Namespace": "v1",
    "Service": "v1",
    "ServiceAccount": "v1",
    "ConfigMap": "v1",
    "Secret": "v1",
    "PersistentVolumeClaim": "v1",
    "Deployment": "apps/v1",
    "Job": "batch/v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "PodDisruptionBudget": "policy/v1",
    "PriorityClass": "scheduling.k8s.io/v1",
    "HorizontalPodAutoscaler": "autoscaling/v2",
    "ResourceClaimTemplate": "resource.k8s.io/v1",
    "ValidatingAdmissionPolicy": "admissionregistration.k8s.io/v1",
    "ValidatingAdmissionPolicyBinding": "admissionregistration.k8s.io/v1",
}
"""The API of each kind; those of custom resources are in the kept schemas."""
SMALLEST_CLAIM = 10 * 2**30
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PERMISSIONS = ("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding")


def api_versions(manifests: Manifests) -> Iterator[str]:
    """Every object is of the group and version that a cluster of today has."""
    for item in manifests.objects:
        wanted = VERSIONS.get(item["kind"]) or crd_schemas.api_version(item["kind"])
        if item["apiVersion"] != wanted and item["kind"] not in PERMISSIONS:
            yield f"{item['kind']} {item['metadata']['name']}: {item['apiVersion']}, not {wanted}"


def permissions(manifests: Manifests) -> Iterator[str]:
    """No program calls the API of the cluster, so that none has permissions."""
    for kind in PERMISSIONS:
        for item in manifests.of_kind(kind):
            yield f"{kind} {item['metadata']['name']}: nobody here needs it"


def service_types(manifests: Manifests) -> Iterator[str]:
    """A Service is for the cluster, leads to ready pods, and keeps no caller with one of them."""
    for item in manifests.of_kind("Service"):
        spec, name = item["spec"], item["metadata"]["name"]
        if spec.get("type", "ClusterIP") != "ClusterIP" or "externalIPs" in spec:
            yield f"Service {name}: is open to the outside, past the gateway"
        if spec.get("sessionAffinity", "None") != "None":
            yield f"Service {name}: keeps callers with one pod"
        local = [key for key in spec if key.endswith("TrafficPolicy") and spec[key] != "Cluster"]
        if local:
            yield f"Service {name}: {local} keep callers from pods of other nodes"
        if spec.get("ipFamilyPolicy", "SingleStack") == "RequireDualStack":
            yield f"Service {name}: a cluster with one family of addresses refuses it"
        if spec.get("publishNotReadyAddresses"):
            yield f"Service {name}: leads to pods that are not ready"


def secrets(manifests: Manifests) -> Iterator[str]:
    """A Secret is of the type of its contents, which are base64; keys can be rotated."""
    of_tls = {
        reference["name"]
        for gateway in manifests.of_kind("Gateway")
        for listener in gateway["spec"]["listeners"]
        for reference in listener.get("tls", {}).get("certificateRefs", [])
    } | {item["spec"]["secretName"] for item in manifests.of_kind("Certificate")}
    for item in manifests.of_kind("Secret"):
        name, data = item["metadata"]["name"], item.get("data", {})
        is_tls = name in of_tls or "tls.key" in data
        wanted = "kubernetes.io/tls" if is_tls else "Opaque"
        if item.get("type", "Opaque") != wanted:
            yield f"Secret {name}: is of the type {item.get('type')}, not {wanted}"
        if is_tls and not {"tls.crt", "tls.key"} <= set(data):
            yield f"Secret {name}: has {sorted(data)}, not tls.crt and tls.key"
        if item.get("immutable"):
            yield f"Secret {name}: cannot be rotated"
        for key, value in data.items():
            if not _decoded(value).strip():
                yield f"Secret {name}: {key} is empty, or not base64"
    yield from _mounted_secrets(manifests)


def _mounted_secrets(manifests: Manifests) -> Iterator[str]:
    for workload in manifests.workloads():
        volumes = {volume["name"]: volume for volume in workload.pod.get("volumes", [])}
        for container in workload.containers:
            for mount in container.get("volumeMounts", []):
                secret = volumes.get(mount["name"], {}).get("secret")
                if secret is None:
                    continue
                if "subPath" in mount or "subPathExpr" in mount:
                    yield f"{workload.name}: {mount['mountPath']} does not follow the Secret"
                if secret.get("items") and any(
                    item["path"] != item["key"] for item in secret["items"]
                ):
                    yield f"{workload.name}: renames the keys of {secret['secretName']}"
                if (
                    secret["secretName"] == "api-keys"
                    and secret.get("items", [{"key": "api-keys"}])[0].get("key") != "api-keys"
                ):
                    yield f"{workload.name}: takes {secret['items']} of api-keys"


def _decoded(value: object) -> bytes:
    try:
        return base64.b64decode(str(value), validate=True)
    except binascii.Error:
        return b""


def volumes(manifests: Manifests) -> Iterator[str]:
    """Every volume has a limit or a claim, which is a file system; nothing is of the node or of another program."""
    for workload in manifests.workloads():
        for volume in workload.pod.get("volumes", []):
            if "emptyDir" in volume and "sizeLimit" not in (volume["emptyDir"] or {}):
                yield f"{workload.name}: {volume['name']} may fill the node"
            if not {"emptyDir", "secret", "persistentVolumeClaim", "image"} & set(volume):
                yield f"{workload.name}: {volume['name']} is {sorted(set(volume) - {'name'})}"
    for item in manifests.of_kind("PersistentVolumeClaim"):
        if item["spec"].get("volumeMode", "Filesystem") != "Filesystem":
            yield f"PersistentVolumeClaim {item['metadata']['name']}: is no file system"
        if quantity(item["spec"]["resources"]["requests"]["storage"]) < SMALLEST_CLAIM:
            yield f"PersistentVolumeClaim {item['metadata']['name']}: a model has gigabytes"


def pods(manifests: Manifests) -> Iterator[str]:
    """Pods find Services by name, run until they are replaced, and share no processes."""
    for workload in manifests.workloads():
        pod, name = workload.pod, workload.name
        if pod.get("dnsPolicy", "ClusterFirst") != "ClusterFirst" or "dnsConfig" in pod:
            yield f"{name}: does not ask the DNS of the cluster"
        if "hostAliases" in pod:
            yield f"{name}: has names of its own"
        if pod.get("shareProcessNamespace"):
            yield f"{name}: its containers see each other's processes"
        if workload.kind == "Deployment":
            if pod.get("restartPolicy", "Always") != "Always" or "activeDeadlineSeconds" in pod:
                yield f"{name}: ends for good"
            if "nodeName" in pod:
                yield f"{name}: is bound to the node {pod['nodeName']}"


def scheduling(manifests: Manifests) -> Iterator[str]:
    """Pods start on a node as it is: with its scheduler and runtime, beside others, with what the image has."""
    for workload in manifests.workloads():
        pod, name = workload.pod, workload.name
        if pod.get("schedulerName", "default-scheduler") != "default-scheduler":
            yield f"{name}: waits for the scheduler {pod['schedulerName']}"
        if pod.get("os", {}).get("name", "linux") != "linux":
            yield f"{name}: there is no image for {pod['os']}"
        if not str(pod.get("runtimeClassName", "nvidia")).startswith("nvidia"):
            yield f"{name}: nobody has the RuntimeClass {pod['runtimeClassName']}"
        if pod.get("affinity", {}).get("podAntiAffinity", {}).get(REQUIRED):
            yield f"{name}: waits for a node of its own at each rollout; spread it instead"
        if any("postStart" in box.get("lifecycle", {}) for box in workload.containers):
            yield f"{name}: does something that no image has when it starts"


def one_user(manifests: Manifests) -> Iterator[str]:
    """All containers of a pod run as its user, and none waits for a terminal."""
    for workload in manifests.workloads():
        own = workload.pod.get("securityContext", {}).get("runAsUser")
        for container in workload.containers:
            name = f"{workload.name}/{container['name']}"
            user = container.get("securityContext", {}).get("runAsUser", own)
            if user != own or "runAsGroup" in container.get("securityContext", {}):
                yield f"{name}: runs as {user}, the others as {own}"
            if container.get("stdin") or container.get("tty"):
                yield f"{name}: waits for a terminal"


def deployments(manifests: Manifests) -> Iterator[str]:
    """A Deployment is rolled out when it is applied, has pods, and can be rolled back; a Job begins."""
    for workload in manifests.workloads():
        if workload.spec.get("paused") or workload.spec.get("suspend"):
            yield f"{workload.name}: nothing happens when it is applied"
        if workload.kind != "Deployment":
            continue
        if workload.spec.get("replicas", 1) < 1:
            yield f"{workload.name}: has no pods"
        if workload.spec.get("revisionHistoryLimit", 10) < 1:
            yield f"{workload.name}: cannot be rolled back"
        if workload.spec.get("minReadySeconds", 0) > 60:
            yield f"{workload.name}: waits for {workload.spec['minReadySeconds']} s after it is ready"


def queues(manifests: Manifests) -> Iterator[str]:
    """Kueue looks at one label, which names a queue; a misspelt one lets the pods start without quota."""
    for workload in manifests.workloads():
        labels = workload.body["metadata"].get("labels", {}) | dict(workload.labels)
        for key, value in labels.items():
            if "kueue" in key and (
                key != "kueue.x-k8s.io/queue-name"
                or not re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", value)
            ):
                yield f"{workload.name}: {key} is {value!r}"


def throttling(manifests: Manifests) -> Iterator[str]:
    """No program has a CPU limit: throttled, it would stall every stream, and its probes."""
    for workload, container in programs(manifests):
        if "cpu" in container["resources"].get("limits", {}):
            yield f"{workload.name}/{container['name']}: has a CPU limit"


def probe_actions(manifests: Manifests) -> Iterator[str]:
    """A probe asks in one way, in plaintext, at once and again after each failure."""
    for workload, container in programs(manifests):
        for probe in PROBES:
            found: Object = container.get(probe, {})
            name = f"{workload.name}/{container['name']}: the {probe}"
            if found.get("httpGet", {}).get("scheme", "HTTP") != "HTTP":
                yield f"{name} speaks TLS, the program does not"
            if "exec" in found or "tcpSocket" in found:
                yield f"{name} does not ask for the health"
            if found.get("initialDelaySeconds", 0) > 10:
                yield f"{name} waits, which is the startup probe's part"
            if found.get("successThreshold", 1) != 1:
                yield f"{name} must succeed {found['successThreshold']} times"
            if "terminationGracePeriodSeconds" in found:
                yield f"{name} shortens the drain"


RULES = (
    api_versions,
    permissions,
    service_types,
    secrets,
    volumes,
    pods,
    scheduling,
    one_user,
    deployments,
    queues,
    throttling,
    probe_actions,
)
