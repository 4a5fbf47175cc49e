"""Who may reach whom under the NetworkPolicies of a kustomization.

Owns the meaning of NetworkPolicy: policies only add, and a pod that no policy selects for a direction is open in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
import ipaddress

from tests.k8s.manifest_set import Manifests, Object


NAMESPACE = "qwen-vl-serving"


@dataclass(frozen=True)
class Endpoint:
    """A pod (labels and namespace) or an address outside the cluster."""

    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: str = NAMESPACE
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    address: str | None = None


def outside(address: str) -> Endpoint:
    """An address that is no pod."""
    return Endpoint(namespace="", address=address)


def reaches(
    manifests: Manifests, source: Endpoint, target: Endpoint, port: int, protocol: str = "TCP"
) -> bool:
    """Whether a connection passes the source's egress and the target's ingress."""
    policies = manifests.of_kind("NetworkPolicy")
    service = (port, protocol)
    return _passes(policies, "Egress", source, target, service) and _passes(
        policies, "Ingress", target, source, service
    )


def _passes(
    policies: Iterable[Object],
    direction: str,
    subject: Endpoint,
    peer: Endpoint,
    service: tuple[int, str],
) -> bool:
    if subject.namespace != NAMESPACE:
        return True  # not ours to decide
    selecting = [
        policy["spec"]
        for policy in policies
        if direction in policy["spec"]["policyTypes"]
        and matches(policy["spec"]["podSelector"], subject.labels)
    ]
    peers = "to" if direction == "Egress" else "from"
    rules = [rule for spec in selecting for rule in spec.get(direction.lower()) or []]
    return not selecting or any(
        _port_fits(rule, *service)
        and (not rule.get(peers) or any(_is_peer(item, peer) for item in rule[peers]))
        for rule in rules
    )


def matches(selector: Object, labels: Mapping[str, str]) -> bool:
    """Whether a label selector selects these labels."""
    assert set(selector) <= {"matchLabels", "matchExpressions"}, f"not understood: {selector}"
    wanted = (selector.get("matchLabels") or {}).items()
    return all(labels.get(key) == value for key, value in wanted) and all(
        _OPERATORS[item["operator"]](labels.get(item["key"]), item.get("values", []))
        for item in selector.get("matchExpressions") or []
    )


_OPERATORS: Mapping[str, Callable[[str | None, list[str]], bool]] = {
    "In": lambda value, values: value in values,
    "NotIn": lambda value, values: value not in values,
    "Exists": lambda value, _: value is not None,
    "DoesNotExist": lambda value, _: value is None,
}


def _port_fits(rule: Object, port: int, protocol: str) -> bool:
    ports = rule.get("ports")
    return not ports or any(
        item.get("protocol", "TCP") == protocol and _is_in(item, port) for item in ports
    )


def _is_in(item: Object, port: int) -> bool:
    """Whether a port is meant: by its number, in a range, or by none at all; `edge_policy` refuses names."""
    first = item.get("port")
    return first is None or (isinstance(first, int) and first <= port <= item.get("endPort", first))


def _is_peer(item: Object, peer: Endpoint) -> bool:
    if "ipBlock" in item:
        if peer.address is None:
            return False
        address = ipaddress.ip_address(peer.address)
        block = item["ipBlock"]
        return address in ipaddress.ip_network(block["cidr"]) and not any(
            address in ipaddress.ip_network(part) for part in block.get("except", [])
        )
    if peer.address is not None:
        return False
    if "namespaceSelector" in item:
        in_namespace = matches(item["namespaceSelector"], peer.namespace_labels)
    else:
        in_namespace = peer.namespace == NAMESPACE
    return in_namespace and matches(item.get("podSelector", {}), peer.labels)
