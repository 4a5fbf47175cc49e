"""Every overlay renders with every set of components that fit together, keeps the schemas and all rules."""

from __future__ import annotations

from collections.abc import Iterator
import itertools
import json

import pytest

from tests.k8s.manifest_set import ROOT, parse, render
from tests.k8s.rules import broken_rules
from tests.k8s.test_manifests import RELEASES, check_schema


CARDS = (("gpu-node",), ("gpu-node", "gpu-mig"), ("gpu-dra",))
MODELS = (("model-download",), ("model-shared",), ("model-image",))
SCALERS: tuple[tuple[str, ...], ...] = ((), ("autoscaling",), ("keda",), ("autoscaling-to-zero",))
TO_ZERO = (("keda",), ("autoscaling-to-zero",))
EXTRAS: tuple[tuple[str, ...], ...] = (
    (),
    ("media-egress",),
    ("transformers",),
    ("high-availability",),
    ("gateway",),
    ("kueue",),
    ("mutual-tls",),
    ("tracing",),
    ("admission-policy",),
    ("gateway", "inference-pool"),
    ("media-egress", "high-availability", "gateway", "inference-pool", "kueue", "tracing"),
)
OVERLAYS: dict[str, tuple[tuple[str, ...], ...]] = {
    "overlays/dev-cpu": (
        (),
        ("monitoring",),
        ("gateway",),
        ("monitoring", "gateway"),
        ("tracing",),
    ),
    "overlays/single-gpu": (
        (),
        ("monitoring",),
        ("gateway",),
        ("gpu-mig",),
        ("mutual-tls",),
        ("kueue", "gateway"),
    ),
    "overlays/prod": (
        (),
        ("inference-pool",),
        ("kueue",),
        ("gpu-mig",),
        ("inference-pool", "kueue", "tracing", "admission-policy"),
    ),
}


def sets() -> Iterator[tuple[str, tuple[str, ...]]]:
    """A resource below k8s/ and the components beside it."""
    for resource, choices in OVERLAYS.items():
        yield from ((resource, choice) for choice in choices)
    for card, model, scaler, extra in itertools.product(CARDS, MODELS, SCALERS, EXTRAS):
        several = scaler or "high-availability" in extra
        if several and model == ("model-download",):
            continue  # a volume of one node
        if scaler in TO_ZERO and "inference-pool" in extra:
            continue  # the pool's adapters would be gone
        watched = scaler or "inference-pool" in extra
        for monitoring in (("monitoring",),) if watched else ((), ("monitoring",)):
            # A number of replicas is the autoscaler's, so that it comes last.
            yield "base", (*card, *model, *monitoring, *extra, *scaler)


ALL = list(sets())
SAMPLE = [*ALL[:4], *ALL[len(OVERLAYS) :: 41]]


def check(resource: str, components: tuple[str, ...], releases: tuple[str, ...]) -> None:
    manifests = parse(render(resource, components))
    assert broken_rules(manifests) == {}
    for item in manifests.objects:
        for release in releases:
            check_schema(item, release)


@pytest.mark.parametrize(
    ("resource", "components"),
    SAMPLE,
    ids=lambda part: "+".join(part) if isinstance(part, tuple) else part,
)
def test_a_sample_of_sets(resource, components):
    check(resource, components, RELEASES[-1:])


@pytest.mark.parametrize("scaler", TO_ZERO)
def test_a_pool_does_not_go_with_zero_replicas(scaler):
    components = ("gpu-node", "model-image", "monitoring", "gateway", "inference-pool", *scaler)
    assert broken_rules(parse(render("base", components))).keys() == {"scaling_to_zero"}


SEEN: set[str] = set()
"""Objects that fit their schemas, as JSON: most are the same in many sets."""
PARTS = 10


# In parts, so that none comes near the time limit of a test, however slow the machine is.
@pytest.mark.full
@pytest.mark.parametrize("part", range(PARTS))
def test_all_sets(part):
    for resource, components in ALL[part::PARTS]:
        manifests = parse(render(resource, components))
        faults = broken_rules(manifests)
        assert faults == {}, (resource, components, faults)
        for item in manifests.objects:
            text = json.dumps(item, sort_keys=True)
            if text not in SEEN:
                SEEN.add(text)
                for release in RELEASES:
                    check_schema(item, release)


def test_every_component_is_in_a_set():
    used = {name for _, components in ALL for name in components}
    assert used == {path.name for path in (ROOT / "k8s" / "components").iterdir()}
