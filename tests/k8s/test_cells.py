"""A cell: the same manifests in a namespace with another name, as docs/operations.md has them."""

from __future__ import annotations

from tests.k8s.admission_policy import admission
from tests.k8s.manifest_set import parse, render
from tests.k8s.scaling_policy import scaler_queries
from tests.k8s.tls_policy import certificate_times


def cell(*components: str):
    return parse(render("base", ("gpu-node", "model-image", "monitoring", *components), "cell-1"))


def test_the_admission_policy_is_bound_to_the_namespace_of_a_cell():
    manifests = cell("admission-policy")
    assert [item["metadata"]["name"] for item in manifests.of_kind("Namespace")] == ["cell-1"]
    assert list(admission(manifests)) == []


def test_what_a_cell_has_to_patch_is_noticed_until_it_is_patched():
    manifests = cell("keda", "mutual-tls")
    assert len(list(scaler_queries(manifests))) == 2
    assert len(list(certificate_times(manifests))) == 1
    (scaler,) = manifests.of_kind("ScaledObject")
    for trigger in scaler["spec"]["triggers"]:
        query = trigger["metadata"]["query"]
        trigger["metadata"]["query"] = query.replace("qwen-vl-serving", "cell-1")
    names = manifests.get("Certificate", "inference-tls")["spec"]["dnsNames"]
    names[:] = [name.replace("qwen-vl-serving", "cell-1") for name in names]
    assert list(scaler_queries(manifests)) == []
    assert list(certificate_times(manifests)) == []
