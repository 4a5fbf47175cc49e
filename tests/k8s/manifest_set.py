"""What `kubectl apply -k` would send: renders a kustomization and finds things in it.

Owns rendering and looking up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
import functools
import os
from pathlib import Path
import shutil
import subprocess
import sys
import tempfile
from typing import Any

import yaml


ROOT = Path(__file__).resolve().parents[2]
OVERLAYS = ("single-gpu", "dev-cpu", "prod")
APPLIED = {
    "base": ("base", ()),
    "single-gpu": ("overlays/single-gpu", ()),
    "dev-cpu": ("overlays/dev-cpu", ()),
    "prod": ("overlays/prod", ()),
    "pool": ("overlays/prod", ("inference-pool", "kueue")),
    "mutual-tls": ("overlays/single-gpu", ("monitoring", "mutual-tls")),
    "to-zero": ("base", ("gpu-dra", "model-image", "monitoring", "keda")),
    "native-zero": ("base", ("gpu-dra", "model-image", "monitoring", "autoscaling-to-zero")),
    "traced": ("overlays/dev-cpu", ("monitoring", "tracing")),
    "guarded": ("overlays/prod", ("tracing", "admission-policy", "mutual-tls")),
    "slice": ("overlays/single-gpu", ("gpu-mig",)),
    "monitored": ("overlays/single-gpu", ("monitoring",)),
    "shared": ("base", ("gpu-node", "model-shared", "media-egress", "monitoring")),
    "image": ("base", ("gpu-node", "model-image")),
}
"""What tests look at, by name: a folder below k8s/, and components beside those that it has itself."""

Object = dict[str, Any]


@dataclass(frozen=True)
class Workload:
    """A Deployment or Job seen through its pod template."""

    kind: str
    name: str
    body: Object

    @property
    def spec(self) -> Object:
        return self.body["spec"]

    @property
    def labels(self) -> Mapping[str, str]:
        return self.spec["template"]["metadata"].get("labels", {})

    @property
    def pod(self) -> Object:
        return self.spec["template"]["spec"]

    @property
    def containers(self) -> list[Object]:
        return [*self.pod.get("initContainers", []), *self.pod["containers"]]


@dataclass(frozen=True)
class Manifests:
    """The objects that are in the cluster together."""

    objects: list[Object]

    def of_kind(self, kind: str) -> list[Object]:
        return [item for item in self.objects if item["kind"] == kind]

    def get(self, kind: str, name: str) -> Object:
        """One object.

        Raises:
            LookupError: It is not there.
        """
        for item in self.of_kind(kind):
            if item["metadata"]["name"] == name:
                return item
        raise LookupError(f"there is no {kind} {name}")

    def has(self, kind: str, name: str) -> bool:
        return any(item["metadata"]["name"] == name for item in self.of_kind(kind))

    def workloads(self) -> Iterator[Workload]:
        for item in self.objects:
            if item["kind"] in ("Deployment", "Job"):
                yield Workload(item["kind"], item["metadata"]["name"], item)

    def environment(self, container: Object) -> dict[str, str]:
        """The variables of a container as the kubelet would set them; Secrets stay out."""
        values: dict[str, str] = {}
        for source in container.get("envFrom", []):
            name = source.get("configMapRef", {}).get("name", "")
            if self.has("ConfigMap", name):
                values |= self.get("ConfigMap", name)["data"]
        values |= {
            item["name"]: item["value"] for item in container.get("env", []) if "value" in item
        }
        return values


@functools.cache
def render(
    resource: str, components: tuple[str, ...] = (), namespace: str = "qwen-vl-serving"
) -> str:
    """The YAML of a folder below k8s/ with components of k8s/components, as an operator's own overlay has them."""
    with tempfile.TemporaryDirectory() as folder:
        # As in a kustomization of an operator, paths are relative.
        here = Path(os.path.relpath(ROOT / "k8s", Path(folder).resolve()))
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "namespace": namespace,
            "resources": [str(here / resource)],
            "components": [str(here / "components" / name) for name in components],
        }
        Path(folder, "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return _kustomize(
            folder if components or namespace != "qwen-vl-serving" else str(ROOT / "k8s" / resource)
        )


def _kustomize(folder: str) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    kubectl = shutil.which("kubectl", path=path)
    assert kubectl is not None, "no kubectl: make setup-dev installs one"
    done = subprocess.run(
        [kubectl, "kustomize", folder], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    # A warning is a deprecated field or a patch that hit nothing.
    assert "Warning" not in done.stderr, done.stderr
    return done.stdout


def parse(text: str) -> Manifests:
    """Fresh objects, which a test may change."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, where it is
    return Manifests(list(yaml.load_all(text, Loader=loader)))


def load(name: str) -> Manifests:
    """Renders and parses one entry of APPLIED."""
    return parse(render(*APPLIED[name]))
