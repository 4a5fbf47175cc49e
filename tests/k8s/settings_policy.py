"""What settings mean in a cluster: what a schema cannot see.

Owns the rules about variables and command lines, and about settings that fit a machine but not several pods.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import PurePosixPath
import re
from urllib.parse import urlsplit

from rest_adapter.settings import AdapterSettings
from tests.k8s.manifest_network import Endpoint, matches, reaches
from tests.k8s.manifest_policy import PREFIX, programs, settings_of
from tests.k8s.manifest_set import Manifests, Object
from tests.k8s.pod_policy import quantity


LIBRARIES = {
    "HOME",
    "HF_HOME",
    "MODELSCOPE_CACHE",
    "POD_NAME",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_EXPORTER_OTLP_HEADERS",
}
"""The variables of others that manifests set; a misspelt one would have no effect."""
COMMANDS = {"model-download": ["qwenvl", "download", "--if-absent"]}
"""What a container runs instead of its image's entry point."""
SAMPLERS = {"always_on", "always_off", "traceidratio"}
COLLECTOR = Endpoint(
    {"any": "pod"}, namespace="any", namespace_labels={"qwen-vl-serving/otlp-collector": "true"}
)
STRANGER = Endpoint({"any": "pod"}, namespace="any")
ADAPTER_FACTOR = 4
"""The memory of a request to the adapter, as a multiple of its body."""
MIN_ANSWERS_MIB = 192
"""The room for unsent answers is as large as that for messages, and at least so large."""


def variables(manifests: Manifests) -> Iterator[str]:
    """Every variable is known, has one value, and comes from something that must be there."""
    for workload in manifests.workloads():
        for container in workload.containers:
            name = f"{workload.name}/{container['name']}"
            listed = [item["name"] for item in container.get("env", [])]
            for one in sorted({*listed, *manifests.environment(container)}):
                if not one.startswith(PREFIX) and one not in LIBRARIES:
                    yield f"{name}: nothing reads {one}"
            for one, count in Counter(listed).items():
                if count > 1:
                    yield f"{name}: {one} is set {count} times"
            for source in container.get("envFrom", []):
                if "prefix" in source or any(
                    part.get("optional") for part in source.values() if isinstance(part, dict)
                ):
                    yield f"{name}: {source} may set nothing"


def rolled_out(manifests: Manifests) -> Iterator[str]:
    """Settings are in ConfigMaps whose names change with their contents, so that a change replaces the pods."""
    for workload in manifests.workloads():
        for container in workload.containers:
            for source in container.get("envFrom", []):
                name = source.get("configMapRef", {}).get("name", "")
                if not re.fullmatch(r"[a-z-]+-[0-9a-z]{10}", name):
                    yield f"{workload.name}/{container['name']}: a change of {name} has no effect"


def proxies(manifests: Manifests) -> Iterator[str]:
    """A proxy for media can be reached by the service, and its name has no password."""
    for workload, container in programs(manifests):
        for name, value in manifests.environment(container).items():
            if re.search(r"://[^/]*@", value):
                yield f"{workload.name}: {name} has a secret in the environment"
        proxy = getattr(settings_of(manifests, container), "media_proxy", None)
        if proxy is None:
            continue
        port = urlsplit(proxy).port
        opened = {
            found.get("port")
            for item in manifests.of_kind("NetworkPolicy")
            if matches(item["spec"]["podSelector"], workload.labels)
            for rule in item["spec"].get("egress", [])
            for found in rule.get("ports", [])
        }
        if port not in opened:
            yield f"{workload.name}: no policy opens port {port} of {proxy}"


def value_sources(manifests: Manifests) -> Iterator[str]:
    """A variable that is read from a ConfigMap, a Secret or the pod names a key that is there."""
    for workload in manifests.workloads():
        for container in workload.containers:
            for item in container.get("env", []):
                source = item.get("valueFrom", {})
                name = f"{workload.name}/{container['name']}: {item['name']}"
                if "secretKeyRef" in source:
                    yield f"{name} has a secret in the environment: mount it as a file"
                if "configMapKeyRef" in source:
                    yield from _key(manifests, name, source["configMapKeyRef"])
                path = source.get("fieldRef", {}).get("fieldPath", "metadata.name")
                if path not in ("metadata.name", "spec.nodeName", "status.podIP"):
                    yield f"{name} is read from {path}"


def _key(manifests: Manifests, name: str, reference: Object) -> Iterator[str]:
    found = manifests.has("ConfigMap", reference["name"])
    if not found or reference["key"] not in manifests.get("ConfigMap", reference["name"])["data"]:
        yield f"{name} is read from {reference}, which is not there"


def commands(manifests: Manifests) -> Iterator[str]:
    """Programs run as their images say: a flag would go before the setting that all other rules read."""
    for workload in manifests.workloads():
        for container in workload.containers:
            if container.get("command") != COMMANDS.get(container["name"]) or "args" in container:
                yield f"{workload.name}/{container['name']}: its command line is set here"


def logs(manifests: Manifests) -> Iterator[str]:
    """Logs are JSON, with a line for every call."""
    for workload, container in programs(manifests):
        values = settings_of(manifests, container)
        if values.log_format == "text" or values.log_level not in ("debug", "info"):
            yield f"{workload.name}: logs {values.log_format} from {values.log_level} on"


def local_media(manifests: Manifests) -> Iterator[str]:
    """Callers may name files of a volume that is there for it, never the keys, the certificates or the whole pod."""
    for workload, container in programs(manifests):
        path = getattr(settings_of(manifests, container), "allow_local_media_path", None)
        if path is None:
            continue
        kinds = {volume["name"]: volume for volume in workload.pod["volumes"]}
        mounts = {PurePosixPath(m["mountPath"]): m["name"] for m in container["volumeMounts"]}
        volume = kinds.get(mounts.get(PurePosixPath(path), ""), {})
        if "persistentVolumeClaim" not in volume or volume["name"] == "model-cache":
            yield f"{workload.name}: callers may read {path}"


def budgets(manifests: Manifests) -> Iterator[str]:
    """What requests may take of memory at one time fits into the limit of the container."""
    for workload, container in programs(manifests):
        values = settings_of(manifests, container)
        limit = quantity(container["resources"].get("limits", {}).get("memory", "0"))
        if isinstance(values, AdapterSettings):
            mib = ADAPTER_FACTOR * values.body_budget_mib
        else:
            mib = (
                values.message_budget_mib
                + max(values.message_budget_mib, MIN_ANSWERS_MIB)
                + values.media_buffer_mib
                + values.pixel_budget_mib
                + values.media_workers * values.decode_memory_mib
                + (values.cpu_kv_cache_mib if values.device == "cpu" else 0)
            )
        if mib * 2**20 > limit:
            yield f"{workload.name}/{container['name']}: requests may take {mib} MiB of {limit} bytes"


def response_store(manifests: Manifests) -> Iterator[str]:
    """A response that one adapter has stored is found by all: several share no memory and no file."""
    scaled = {
        item["spec"]["scaleTargetRef"]["name"]
        for kind in ("HorizontalPodAutoscaler", "ScaledObject")
        for item in manifests.of_kind(kind)
    }
    for workload, container in programs(manifests):
        place = getattr(settings_of(manifests, container), "response_store", None)
        several = workload.spec.get("replicas", 1) > 1 or workload.name in scaled
        if place is not None and several:
            yield f"{workload.name}: each of several adapters stores responses for itself"


def traces(manifests: Manifests) -> Iterator[str]:
    """Traces of all programs go to one collector in the cluster, which they reach, and nobody else by it."""
    seen = {
        f"{workload.name}/{container['name']}": (workload, container)
        for workload, container in programs(manifests)
    }
    endpoints = {
        name: settings_of(manifests, container).otlp_traces_endpoint
        for name, (_, container) in seen.items()
    }
    if len(set(endpoints.values())) > 1:
        yield f"a trace would have holes: {endpoints}"
    for name, (workload, container) in seen.items():
        environment = manifests.environment(container)
        pod, endpoint = Endpoint(workload.labels), endpoints[name]
        if reaches(manifests, pod, COLLECTOR, 4317) != (endpoint is not None):
            yield f"{name}: traces go to {endpoint}, and port 4317 is open or closed"
        if reaches(manifests, pod, STRANGER, 4317):
            yield f"{name}: port 4317 of the whole cluster is open"
        if endpoint is not None and not re.fullmatch(
            r"http://[a-z0-9-]+\.[a-z0-9-]+\.svc(\.cluster\.local)?:4317/?", endpoint
        ):
            yield f"{name}: {endpoint} is no Service of another namespace at port 4317"
        sampler = environment.get("OTEL_TRACES_SAMPLER", "always_on")
        ratio = environment.get("OTEL_TRACES_SAMPLER_ARG", "1")
        try:
            fits = 0 <= float(ratio) <= 1
        except ValueError:
            fits = False
        if sampler.removeprefix("parentbased_") not in SAMPLERS or not fits:
            yield f"{name}: samples by {sampler} {ratio}"


RULES = (
    variables,
    rolled_out,
    proxies,
    value_sources,
    commands,
    logs,
    local_media,
    budgets,
    response_store,
    traces,
)
