"""What every container needs to run, and to be run well: what a schema cannot see.

Owns the rules about images, users, scratch space, keys, probes' times, rollouts and GPU nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
import re
import tomllib

from tests.k8s.manifest_policy import images, programs
from tests.k8s.manifest_set import ROOT, Manifests, Object, Workload
from tests.k8s.pod_policy import GPU, gpus_of, quantity
from tests.k8s.pod_security import PROBES


VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


DOWNLOAD_S = 3600
"""10 GB at 5 MB/s, and the start of the service after it."""
GPU_TAINT: Object = {"key": GPU, "operator": "Exists", "effect": "NoSchedule"}
"""The toleration for nodes that keep pods without a GPU away."""
SMALLEST_VOLUME = 64 * 2**20


def complete(manifests: Manifests) -> Iterator[str]:
    """Both programs are there, each in the Deployment of its name."""
    found = {(workload.name, container["name"]) for workload, container in programs(manifests)}
    for name in ("inference", "rest-adapter"):
        if (name, name) not in found:
            yield f"there is no {name}"


def image_versions(manifests: Manifests) -> Iterator[str]:
    """Images are of this version, pulled when a node lacks them; a container that ends says why."""
    yield from images(manifests, VERSION)
    for workload in manifests.workloads():
        for container in workload.containers:
            name = f"{workload.name}/{container['name']}"
            if container.get("imagePullPolicy") not in ("IfNotPresent", "Always"):
                yield f"{name}: imagePullPolicy {container.get('imagePullPolicy')}"
            if container.get("terminationMessagePolicy") != "FallbackToLogsOnError":
                yield f"{name}: its last words are lost"


def users(manifests: Manifests) -> Iterator[str]:
    """All pods run as one user, whose group may read the volumes."""
    seen = {
        workload.name: [
            workload.pod.get("securityContext", {}).get(name)
            for name in ("runAsUser", "runAsGroup", "fsGroup")
        ]
        for workload in manifests.workloads()
    }
    numbers = {str(number) for part in seen.values() for number in part}
    dockerfile = (ROOT / "docker" / "inference.Dockerfile").read_text(encoding="utf-8")
    if numbers != set(re.findall(r"^USER (\d+):\d+$", dockerfile, re.MULTILINE)):
        yield f"not the user of the images: {seen}"


def scratch(manifests: Manifests) -> Iterator[str]:
    """HOME is a volume that may be written and has a limit, within the limit of the container; CPU is requested."""
    for workload in manifests.workloads():
        volumes = {volume["name"]: volume for volume in workload.pod["volumes"]}
        for container in workload.containers:
            name = f"{workload.name}/{container['name']}"
            home = manifests.environment(container).get("HOME", "/")
            mounted = [mount for mount in container["volumeMounts"] if mount["mountPath"] == home]
            size = [
                volumes[mount["name"]].get("emptyDir", {}).get("sizeLimit") for mount in mounted
            ]
            limit = container["resources"]["limits"].get("ephemeral-storage")
            asked = container["resources"]["requests"].get("ephemeral-storage")
            try:
                # The volume is shared by all containers of the pod.
                largest = max(
                    quantity(box["resources"]["limits"]["ephemeral-storage"])
                    for box in workload.containers
                )
                fits = SMALLEST_VOLUME <= quantity(size[0]) <= largest
                if mounted[0].get("readOnly") or not fits or quantity(asked) > quantity(limit):
                    yield f"{name}: HOME may have {size}, the container {asked} to {limit}"
            except (AssertionError, IndexError, KeyError, TypeError):
                yield f"{name}: HOME is {home}, with {size} of {limit}"
            cpu = container["resources"]["requests"].get("cpu", 0)
            if not 0 < quantity(cpu) <= 16:
                yield f"{name}: requests {cpu} of CPU"


def key_files(manifests: Manifests) -> Iterator[str]:
    """Secrets are read only, by the group alone; the service has shared memory for pixels."""
    for workload, container in programs(manifests):
        volumes = {volume["name"]: volume for volume in workload.pod["volumes"]}
        for mount in container["volumeMounts"]:
            secret = volumes[mount["name"]].get("secret")
            if secret and (mount.get("readOnly") is not True or secret.get("defaultMode") != 0o440):
                yield f"{workload.name}: {mount['mountPath']} can be written, or read by all"
        shared = [mount for mount in container["volumeMounts"] if mount["mountPath"] == "/dev/shm"]
        memory = [volumes[mount["name"]].get("emptyDir", {}).get("medium") for mount in shared]
        sizes = [volumes[mount["name"]].get("emptyDir", {}).get("sizeLimit", 0) for mount in shared]
        if container["name"] == "inference" and (
            memory != ["Memory"] or quantity(sizes[0]) < SMALLEST_VOLUME
        ):
            yield f"{workload.name}: /dev/shm is {memory} of {sizes}"


def probe_times(manifests: Manifests) -> Iterator[str]:
    """Callers leave a pod that is not ready within seconds; a restart takes a minute of silence; an end is bounded."""
    for workload, container in programs(manifests):
        name = f"{workload.name}/{container['name']}"
        budget = {
            probe: container.get(probe, {}).get("periodSeconds", 10)
            * container.get(probe, {}).get("failureThreshold", 3)
            for probe in PROBES
        }
        if budget["readinessProbe"] > 10:
            yield f"{name}: gets calls for {budget['readinessProbe']} s after it fails"
        if not 30 <= budget["livenessProbe"] <= 120:
            yield f"{name}: is restarted after {budget['livenessProbe']} s"
        for probe in PROBES:
            if not 2 <= container.get(probe, {}).get("timeoutSeconds", 1) <= 5:
                yield f"{name}: the {probe} waits {container.get(probe, {}).get('timeoutSeconds')} s"
        if workload.pod.get("terminationGracePeriodSeconds", 30) > 900:
            yield f"{workload.name}: holds its node for too long when it ends"


def rollout(manifests: Manifests) -> Iterator[str]:
    """The adapter is replaced without a gap, the service one by one; neither waits for ever; Jobs neither."""
    for workload in manifests.workloads():
        strategy = workload.spec.get("strategy", {})
        rolling = strategy.get("rollingUpdate", {})
        numbers = (rolling.get("maxSurge"), rolling.get("maxUnavailable"))
        if workload.kind == "Job":
            yield from _job(workload)
            continue
        if workload.spec.get("replicas", 1) > 100:
            yield f"{workload.name}: {workload.spec['replicas']} replicas"
        wanted = (0, 1) if workload.name == "inference" else (1, 0)
        kind = strategy.get("type")
        recreated = kind == "Recreate" and workload.name == "inference" and not rolling
        if not recreated and (kind != "RollingUpdate" or numbers != wanted):
            yield f"{workload.name}: {strategy}"
        deadline_s = workload.spec.get("progressDeadlineSeconds", 600)
        if workload.name == "inference" and _waits_for_download(manifests, deadline_s):
            yield f"{workload.name}: given up after {deadline_s} s, while the model is downloaded"
        if deadline_s > 7200:
            yield f"{workload.name}: nobody is told for hours that a rollout hangs"


def _waits_for_download(manifests: Manifests, time_s: int) -> bool:
    return time_s < DOWNLOAD_S and any(
        container["name"] == "model-download"
        for workload in manifests.workloads()
        for container in workload.containers
    )


def _job(workload: Workload) -> Iterator[str]:
    if workload.pod.get("restartPolicy") not in ("OnFailure", "Never"):
        yield f"{workload.name}: restartPolicy {workload.pod.get('restartPolicy')}"
    if (workload.spec.get("parallelism", 1), workload.spec.get("completions", 1)) != (1, 1):
        yield f"{workload.name}: several pods write to one volume"
    deadlines = (workload.spec, workload.pod)
    if any(part.get("activeDeadlineSeconds", DOWNLOAD_S) < DOWNLOAD_S for part in deadlines):
        yield f"{workload.name}: is given up before a model is downloaded"
    if GPU_TAINT not in workload.pod.get("tolerations", []):
        yield f"{workload.name}: finds no node where all have a GPU and keep other pods away"
    if workload.spec.get("backoffLimit", 6) > 10:
        yield f"{workload.name}: tries {workload.spec['backoffLimit']} times"
    if workload.spec.get("ttlSecondsAfterFinished", 10**9) > 86_400:
        yield f"{workload.name}: stands in the way of the next one"


def gpu_nodes(manifests: Manifests) -> Iterator[str]:
    """A pod with a GPU may go to nodes that keep others away, with any device plugin; no other pod may."""
    for workload in {workload.name: workload for workload, _ in programs(manifests)}.values():
        tolerations = workload.pod.get("tolerations", [])
        selector = workload.pod.get("nodeSelector", {})
        if not any(gpus_of(container) for container in workload.containers):
            keys = {item.get("key", GPU) for item in tolerations} | set(selector)
            if any(key.startswith("nvidia.com/") for key in keys):
                yield f"{workload.name}: takes the room of pods that need a GPU"
            continue
        if tolerations != [GPU_TAINT]:
            yield f"{workload.name}: tolerates {tolerations}"
        if "nvidia.com/gpu.present" in selector:  # the request for a GPU says as much
            yield f"{workload.name}: waits for ever where no GPU feature discovery runs: {selector}"


RULES = (
    complete,
    image_versions,
    users,
    scratch,
    key_files,
    probe_times,
    rollout,
    gpu_nodes,
)
