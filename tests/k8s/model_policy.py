"""Where the pods get their model from: what a schema cannot see.

Owns the rules about the volume of the model, its download, and its revision.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
import re

from inference_service.hub.resolve import is_hub_id
from inference_service.settings import ServiceSettings
from tests.k8s.manifest_policy import programs, settings_of
from tests.k8s.manifest_set import Manifests, Object, Workload


CACHES = {"huggingface": "HF_HOME", "modelscope": "MODELSCOPE_CACHE"}
"""The variable that moves the cache of a hub."""


def model_volume(manifests: Manifests) -> Iterator[str]:
    """The model of the service is on a volume that it only reads; a hub's cache or an image is filled by something."""
    for workload, container in _services(manifests):
        values = settings_of(manifests, container)
        assert isinstance(values, ServiceSettings)
        if values.model is None:
            continue
        place = values.model
        if is_hub_id(values.model):
            place = manifests.environment(container).get(CACHES[values.hub], "/")
            if list(_downloads(manifests)) == []:
                # The operator's own doing in the base alone: ../k8s/README.md names the components.
                yield f"{workload.name}: nothing fetches {values.model}"
        mount, volume = _volume_of(workload, container, PurePosixPath(place))
        if "persistentVolumeClaim" not in volume and "image" not in volume:
            yield f"{workload.name}: {place} is on no volume that outlives the pod"
        elif "persistentVolumeClaim" in volume and mount.get("readOnly") is not True:
            yield f"{workload.name}: can write to the model"


def model_revision(manifests: Manifests) -> Iterator[str]:
    """A model of a hub is one commit, so that all pods serve the same weights."""
    for workload, container in _services(manifests):
        values = settings_of(manifests, container)
        assert isinstance(values, ServiceSettings)
        if is_hub_id(values.model) and not re.fullmatch("[0-9a-f]{40}", values.revision or ""):
            yield f"{workload.name}: {values.model} at {values.revision} is not pinned to a commit"


def model_download(manifests: Manifests) -> Iterator[str]:
    """What downloads the model fetches the one that is served, to where the service looks, and only if it is absent."""
    for workload, container in _downloads(manifests):
        if container.get("command") != ["qwenvl", "download", "--if-absent"]:
            yield f"{workload.name}: {container.get('command')} does not verify, or asks the hub each time"
        values = ServiceSettings.load({}, manifests.environment(container))
        variables = manifests.environment(container)
        cache = PurePosixPath(variables.get(CACHES[values.hub], "/"))
        mount, volume = _volume_of(workload, container, cache)
        if "persistentVolumeClaim" not in volume or mount.get("readOnly"):
            yield f"{workload.name}: the download to {cache} is lost"
        for name, server in _services(manifests):
            wanted = manifests.environment(server)
            for variable in ("QWENVL_MODEL", "QWENVL_HUB", "QWENVL_REVISION", *CACHES.values()):
                if variables.get(variable) != wanted.get(variable):
                    yield f"{workload.name}: {variable} differs from that of {name.name}"


def shared_volume(manifests: Manifests) -> Iterator[str]:
    """A volume of one node is used by one pod; several pods, as that of a Job, share one that is ReadWriteMany."""
    claims = {
        item["metadata"]["name"]: set(item["spec"]["accessModes"])
        for item in manifests.of_kind("PersistentVolumeClaim")
    }
    for name, modes in claims.items():
        users = [
            workload
            for workload in manifests.workloads()
            for volume in workload.pod.get("volumes", [])
            if volume.get("persistentVolumeClaim", {}).get("claimName") == name
        ]
        pods = sum(max(1, workload.spec.get("replicas", 1)) for workload in users)
        scaled = {item["spec"]["scaleTargetRef"]["name"] for item in _scalers(manifests)}
        several = pods > 1 or any(workload.name in scaled for workload in users)
        if modes != {"ReadWriteMany" if several else "ReadWriteOnce"}:
            yield f"{name}: {modes} for more than one pod"


def _services(manifests: Manifests) -> Iterator[tuple[Workload, Object]]:
    for workload, container in programs(manifests):
        if container["name"] == "inference":
            yield workload, container


def _downloads(manifests: Manifests) -> Iterator[tuple[Workload, Object]]:
    for workload in manifests.workloads():
        for container in workload.containers:
            if container["name"] == "model-download":
                yield workload, container


def _scalers(manifests: Manifests) -> Iterator[Object]:
    yield from manifests.of_kind("HorizontalPodAutoscaler")
    yield from manifests.of_kind("ScaledObject")


def _volume_of(
    workload: Workload, container: Object, place: PurePosixPath
) -> tuple[Object, Object]:
    """The innermost mount that contains a path, and its volume; empty if there is none."""
    volumes = {volume["name"]: volume for volume in workload.pod.get("volumes", [])}
    mounts = [
        mount
        for mount in container.get("volumeMounts", [])
        if place.is_relative_to(mount["mountPath"])
    ]
    if not mounts:
        return {}, {}
    mount = max(mounts, key=lambda item: len(item["mountPath"]))
    return mount, volumes.get(mount["name"], {})


RULES = (model_volume, model_revision, model_download, shared_volume)
