"""How a manifest is broken in one place."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tests.k8s.manifest_set import Manifests


def set_field(kind: str, name: str, path: str, value: Any) -> Callable[[Manifests], None]:
    """Sets one field of one object; None deletes it. Numbers in the path are list indices."""

    def mutate(manifests: Manifests) -> None:
        place: Any = manifests.get(kind, name)
        steps = [step.replace("~1", "/") for step in path.split("/")]
        *way, last = [int(step) if step.isdigit() else step for step in steps]
        for step in way:
            place = place[step]
        if value is None:
            del place[last]
        else:
            place[last] = value

    return mutate


def set_setting(name: str, value: str | None) -> Callable[[Manifests], None]:
    def mutate(manifests: Manifests) -> None:
        data = next(
            item["data"]
            for item in manifests.of_kind("ConfigMap")
            if item["metadata"]["name"].startswith("inference-settings")
        )
        if value is None:
            del data[name]
        else:
            data[name] = value

    return mutate


def set_adapter_setting(name: str, value: str) -> Callable[[Manifests], None]:
    def mutate(manifests: Manifests) -> None:
        for item in manifests.of_kind("ConfigMap"):
            if item["metadata"]["name"].startswith("adapter-settings"):
                item["data"][name] = value

    return mutate


def append_to(kind: str, name: str, path: str, value: Any) -> Callable[[Manifests], None]:
    """Appends to a list of one object, which is made if it is not there."""

    def mutate(manifests: Manifests) -> None:
        place: Any = manifests.get(kind, name)
        *way, last = [int(step) if step.isdigit() else step for step in path.split("/")]
        for step in way:
            place = place[step]
        place.setdefault(last, []).append(value)

    return mutate


def add_object(item: Any) -> Callable[[Manifests], None]:
    return lambda manifests: manifests.objects.append(item)


def without(kind: str, name: str) -> Callable[[Manifests], None]:
    return lambda manifests: manifests.objects.remove(manifests.get(kind, name))


def without_kind(kind: str) -> Callable[[Manifests], None]:
    def mutate(manifests: Manifests) -> None:
        manifests.objects[:] = [item for item in manifests.objects if item["kind"] != kind]

    return mutate


POD = "spec/template/spec"
BOX = f"{POD}/containers/0"
inference = partial(set_field, "Deployment", "inference")
adapter = partial(set_field, "Deployment", "rest-adapter")
hpa = partial(set_field, "HorizontalPodAutoscaler", "inference")
scaled = partial(set_field, "ScaledObject", "inference")
pdb = partial(set_field, "PodDisruptionBudget", "inference")
http = partial(set_field, "HTTPRoute", "rest-adapter")
grpc = partial(set_field, "GRPCRoute", "inference")
gateway = partial(set_field, "Gateway", "qwen-vl")
pool = partial(set_field, "InferencePool", "inference")
SIDECAR = f"{POD}/initContainers/0"
TRIGGER = "spec/triggers/0/metadata"
IN_FLIGHT = "spec/triggers/1/metadata"
ENGINE_TYPE = "spec/template/metadata/labels/llm-d.ai~1engine-type"
certificate = partial(set_field, "Certificate", "inference-tls")
service = partial(set_field, "Service", "inference")
claim = partial(set_field, "PersistentVolumeClaim", "model-cache")
job = partial(set_field, "Job", "model-download")
alert = partial(set_field, "PrometheusRule", "qwen-vl-serving")
policy = partial(set_field, "ValidatingAdmissionPolicy", "qwen-vl-serving")
binding = partial(set_field, "ValidatingAdmissionPolicyBinding", "qwen-vl-serving")
