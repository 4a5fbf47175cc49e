"""What pods may do and use: what a schema cannot see.

Owns the rules about resources, GPUs and security contexts.
"""

from __future__ import annotations

from collections.abc import Iterator
import re

from tests.k8s.manifest_policy import programs, settings_of
from tests.k8s.manifest_set import Manifests, Object, Workload
from tests.k8s.pod_security import restricted


GPU = "nvidia.com/gpu"
DEVICE_CLASSES = ("gpu.nvidia.com", "mig.nvidia.com")
"""Those of NVIDIA's driver for Dynamic Resource Allocation."""
UNITS = {"": 1.0, "m": 0.001}
UNITS |= {f"{letter}i": 1024.0**power for power, letter in enumerate("KMGTPE", 1)}
UNITS |= {letter: 1000.0**power for power, letter in enumerate("kMGTPE", 1)}


def quantity(text: object) -> float:
    """The number of a quantity of Kubernetes: `512Mi`, `2G`, `1.5Gi`, `500m`, `4`."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)(\D*)", str(text))
    assert match is not None, text
    number, unit = match.groups()
    return float(number) * UNITS[unit]


def gpus_of(container: Object) -> dict[str, str]:
    """What a container gets of GPUs: limits of the device plugin, claims of Dynamic Resource Allocation."""
    resources = container["resources"]
    limits = resources.get("limits", {}).items()
    return {name: str(count) for name, count in limits if name.startswith("nvidia.com/")} | {
        f"claim {claim['name']}": "1" for claim in resources.get("claims", [])
    }


def gpu(manifests: Manifests) -> Iterator[str]:
    """A GPU is requested as it is limited, whole, in one way, and a rollout needs no further one."""
    for workload, container in programs(manifests):
        asked = {
            name: str(count)
            for name, count in container["resources"].get("requests", {}).items()
            if name.startswith("nvidia.com/")
        }
        given = gpus_of(container)
        if asked != {name: n for name, n in given.items() if not name.startswith("claim ")}:
            yield f"{container['name']}: requests {asked} and gets {given}"
        device = getattr(settings_of(manifests, container), "device", "cpu")
        if len(given) != (device.startswith("cuda")):
            yield f"{container['name']}: gets {given} for the device {device}"
        if given and _cards(manifests, workload, container) != len(device.split(",")):
            yield f"{container['name']}: gets {given}, and uses {device}"
        if not all(count.isdigit() and int(count) > 0 for count in given.values()):
            yield f"{container['name']}: {given} are no whole GPUs"
        strategy = workload.spec.get("strategy", {})
        surge = strategy.get("rollingUpdate", {}).get("maxSurge")
        if given and strategy.get("type") != "Recreate" and surge != 0:
            yield f"{workload.name}: a rollout would wait for a further GPU"


def _cards(manifests: Manifests, workload: Workload, container: Object) -> int:
    """The number of GPUs that a container gets; 0 = a claim names something else."""
    limits = container["resources"].get("limits", {}).items()
    number = sum(int(count) for name, count in limits if name.startswith("nvidia.com/"))
    templates = {
        item["name"]: item["resourceClaimTemplateName"]
        for item in workload.pod.get("resourceClaims", [])
    }
    for claim in container["resources"].get("claims", []):
        template = manifests.get("ResourceClaimTemplate", templates[claim["name"]])
        requests = {item["name"]: item for item in template["spec"]["spec"]["devices"]["requests"]}
        wanted = [claim["request"]] if "request" in claim else list(requests)
        for name in wanted:
            exactly = requests.get(name, {}).get("exactly", {})
            if exactly.get("deviceClassName") not in DEVICE_CLASSES:
                return 0
            number += exactly.get("count", 1)
    return number


def memory(manifests: Manifests) -> Iterator[str]:
    """Memory is requested and limited, and volumes in memory have a size that leaves room for the program."""
    for workload in manifests.workloads():
        volumes = [volume["emptyDir"] for volume in workload.pod["volumes"] if "emptyDir" in volume]
        in_memory = [volume for volume in volumes if volume.get("medium") == "Memory"]
        if any("sizeLimit" not in volume for volume in in_memory):
            yield f"{workload.name}: a volume in memory has no limit"
        shared = sum(quantity(volume.get("sizeLimit", "0")) for volume in in_memory)
        for container in workload.containers:
            asked = quantity(container["resources"]["requests"].get("memory", "0"))
            limit = quantity(container["resources"]["limits"].get("memory", "0"))
            if not 0 < asked <= limit or limit < 2 * shared:
                yield f"{container['name']}: memory {asked} to {limit} with {shared} in volumes"


def security(manifests: Manifests) -> Iterator[str]:
    """Pod Security `restricted`, enforced by the namespace; no API token; no variables of other Services."""
    if not manifests.of_kind("Namespace"):
        yield "no namespace enforces `restricted`"
    for item in manifests.of_kind("Namespace"):
        labels = item["metadata"].get("labels", {})
        if labels.get("pod-security.kubernetes.io/enforce") != "restricted":
            yield "the namespace does not enforce `restricted`"
    for workload in manifests.workloads():
        yield from (f"{workload.name}: {text}" for text in restricted(workload.pod))
        if workload.pod.get("automountServiceAccountToken") is not False:
            yield f"{workload.name}: mounts an API token"
        if workload.pod.get("enableServiceLinks") is not False:
            yield f"{workload.name}: Services would add variables"
        for container in workload.containers:
            writable = container["securityContext"].get("readOnlyRootFilesystem") is not True
            if writable and not gpus_of(container):
                yield f"{container['name']}: writable root without a GPU"


def token_accounts(manifests: Manifests) -> Iterator[str]:
    """Service accounts give no token either."""
    for item in manifests.of_kind("ServiceAccount"):
        if item.get("automountServiceAccountToken") is not False:
            yield f"ServiceAccount {item['metadata']['name']} mounts its token"


RULES = (gpu, memory, security, token_accounts)
