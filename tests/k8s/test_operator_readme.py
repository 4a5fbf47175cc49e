"""What k8s/README.md tells operators to type exists under that name."""

from __future__ import annotations

import base64
import re

from tests.k8s.manifest_set import ROOT, load


README = (ROOT / "k8s" / "README.md").read_text(encoding="utf-8")


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 60


def test_every_kustomization_exists() -> None:
    applied = re.findall(r"apply -k (\S+)", README)
    assert len(applied) == 2
    assert all((ROOT / folder / "kustomization.yaml").is_file() for folder in applied)
    rows = re.findall(r"^\| (`.+?`) \|", README, re.MULTILINE)
    folders = re.findall(r"`([\w/-]+)`", " ".join(rows))
    assert sorted(folders) == sorted(
        str(path.relative_to(ROOT / "k8s"))
        for part in ("overlays", "components")
        for path in (ROOT / "k8s" / part).iterdir()
    )
    assert all((ROOT / "k8s" / folder / "kustomization.yaml").is_file() for folder in folders)


def test_every_object_exists() -> None:
    manifests = load("single-gpu")
    for kind, name in re.findall(r"\b(deployment|service|job)/([\w-]+)", README):
        assert manifests.has(kind.capitalize(), name)
    assert set(re.findall(r"kubectl -n (\S+)", README)) == {
        manifests.of_kind("Namespace")[0]["metadata"]["name"]
    }


def test_the_key_of_the_developers_overlay_is_the_one_told() -> None:
    (secret,) = load("dev-cpu").of_kind("Secret")
    assert set(secret["data"]) == set(re.findall(r"--from-file=([\w-]+)=", README))
    key = base64.b64decode(secret["data"]["api-keys"]).decode()
    assert f"Authorization: Bearer {key}'" in README


def test_the_label_that_opens_metrics_is_the_one_of_the_policies() -> None:
    for name in ("inference-metrics", "rest-adapter-metrics"):
        (rule,) = load("monitored").get("NetworkPolicy", name)["spec"]["ingress"]
        ((label, value),) = rule["from"][0]["namespaceSelector"]["matchLabels"].items()
        assert f"`{label}={value}`" in README


def test_the_label_that_opens_grpc_is_the_one_of_the_policy() -> None:
    rule = load("base").get("NetworkPolicy", "inference")["spec"]["ingress"][0]
    ((label, value),) = rule["from"][1]["namespaceSelector"]["matchLabels"].items()
    assert f"`{label}={value}`" in README
