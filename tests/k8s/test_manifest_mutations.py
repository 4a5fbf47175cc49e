"""The rules notice what they are for: every broken manifest is refused by the rule that is named beside it."""

from __future__ import annotations

import tomllib

import jsonschema
import kubernetes_validate
import pytest

from tests.k8s import manifest_policy
from tests.k8s.broken_additions import (
    BROKEN_ADMISSION,
    BROKEN_NATIVE_ZERO,
    BROKEN_OTHERWISE,
    BROKEN_TRACES,
)
from tests.k8s.broken_by_operators import BROKEN_BY_OPERATORS
from tests.k8s.broken_manifests import BROKEN, BROKEN_POOL, BROKEN_TLS, BROKEN_TO_ZERO
from tests.k8s.manifest_set import ROOT, load
from tests.k8s.mutations import (
    BOX,
    POD,
    TRIGGER,
    gateway,
    grpc,
    hpa,
    http,
    inference,
    pdb,
    pool,
    scaled,
    set_field,
)
from tests.k8s.rules import RULES, broken_rules
from tests.k8s.test_manifests import RELEASES, check_schema


ALL_BROKEN = [
    *BROKEN_BY_OPERATORS,
    *(("monitored", *broken) for broken in BROKEN_OTHERWISE),
    *(("traced", *broken) for broken in BROKEN_TRACES),
    *(("guarded", *broken) for broken in BROKEN_ADMISSION),
    *(("native-zero", *broken) for broken in BROKEN_NATIVE_ZERO),
    *(("mutual-tls", *broken) for broken in BROKEN_TLS),
    *(("monitored", *broken) for broken in BROKEN),
    *(("pool", *broken) for broken in BROKEN_POOL),
    *(("to-zero", *broken) for broken in BROKEN_TO_ZERO),
]


@pytest.mark.parametrize(("kustomization", "rule", "mutate"), ALL_BROKEN)
def test_a_broken_manifest_is_refused(kustomization, rule, mutate):
    manifests = load(kustomization)
    assert list(RULES[rule](manifests)) == []
    mutate(manifests)
    assert list(RULES[rule](manifests))


@pytest.mark.full
@pytest.mark.parametrize(("kustomization", "rule", "mutate"), ALL_BROKEN)
def test_the_rule_is_among_those_that_all_together_name(kustomization, rule, mutate):
    manifests = load(kustomization)
    mutate(manifests)
    assert broken_rules(manifests).keys() & {rule, "settings"}


@pytest.mark.parametrize(
    ("kustomization", "mutate"),
    [
        ("monitored", inference(f"{BOX}/imagePullPolici", "Always")),
        ("monitored", inference("spec/replicas", "two")),
        ("monitored", inference(f"{BOX}/ports/0/containerPort", "grpc")),
        ("monitored", set_field("PodMonitor", "inference", "spec/podMetricsEndpoints/0/prot", "x")),
        (
            "monitored",
            set_field("PrometheusRule", "qwen-vl-serving", "spec/groups/0/rules/0/for", "5"),
        ),
        ("pool", hpa("spec/metrics/0/pods/target/averageValu", "48")),
        ("pool", pdb("spec/unhealthyPodEvictionPolicy", 1)),
        ("pool", pool("spec/targetPorts", [])),
        ("pool", pool("spec/endpointPickerRef", None)),
        ("pool", pool("spec/targetPortNumber", 8000)),
        ("pool", http("spec/rules/0/timeout", "1s")),
        ("pool", grpc("spec/rules/0/backendRefs", [])),
        ("pool", gateway("spec/listeners/0/protocol", "https")),
        ("to-zero", scaled("spec/triggers/0/type", "promehteus")),
        ("to-zero", scaled(f"{TRIGGER}/threshold", 48)),
        ("to-zero", scaled("spec/minReplicas", 0)),
    ],
)
def test_a_misspelt_manifest_does_not_fit_its_schema(kustomization, mutate):
    manifests = load(kustomization)
    mutate(manifests)
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        check_schemas(manifests)


def check_schemas(manifests):
    for item in manifests.objects:
        check_schema(item, RELEASES[-1])


@pytest.mark.parametrize("tag", ["latest", "0.0.9"])
def test_a_wrong_image_tag_is_refused(tag):
    manifests = load("base")
    inference(f"{BOX}/image", f"qwen-vl-serving/inference:{tag}")(manifests)
    assert list(manifest_policy.images(manifests, "0.2.0"))


def test_an_image_volume_without_a_digest_is_refused():
    manifests = load("image")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert list(manifest_policy.images(manifests, version)) == []
    inference(f"{POD}/volumes/0/image/reference", "registry.invalid/qwen:1")(manifests)
    assert list(manifest_policy.images(manifests, version))


def test_every_rule_has_a_broken_manifest():
    assert {rule for _, rule, _ in ALL_BROKEN} == set(RULES)
