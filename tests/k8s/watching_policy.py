"""What watches the service in the manifests: what a schema cannot see.

Owns the rules about alerts and dashboards: metrics, severities, instructions.
"""

from __future__ import annotations

from collections.abc import Iterator
import json
import re

from tests.k8s.manifest_set import ROOT, Manifests
from tests.support.metric_names import exposed_names, used_names


SEVERITIES = ("critical", "warning")


def watched_metrics(manifests: Manifests) -> Iterator[str]:
    """Alerts and panels read metrics that the programs have."""
    known = exposed_names()
    for name, text in _texts(manifests):
        unknown = sorted(set(used_names(text)) - known)
        if unknown:
            yield f"{name}: nothing exposes {unknown}"


def alerts(manifests: Manifests) -> Iterator[str]:
    """An alert has a severity that routes know, a moment of patience, and a part of the handbook of its name."""
    handbook = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    written = set(re.findall(r"^### (Qwenvl\w+)$", handbook, re.MULTILINE))
    seen: set[str] = set()
    for item in manifests.of_kind("PrometheusRule"):
        for group in item["spec"]["groups"]:
            for rule in group["rules"]:
                name = rule.get("alert", "?")
                if name not in written:
                    yield f"alert {name}: docs/operations.md does not say what to do"
                if name in seen:
                    yield f"alert {name} is there twice"
                seen.add(name)
                if rule.get("labels", {}).get("severity") not in SEVERITIES:
                    yield f"alert {name}: severity {rule.get('labels', {}).get('severity')}"
                # One whose expression looks back over minutes needs none.
                patience = rule.get("for", "" if "[" not in rule["expr"] else "1s")
                if not re.fullmatch(r"[1-9]\d*[smh]", patience):
                    yield f"alert {name}: a moment suffices: {rule.get('for')}"
                url = rule.get("annotations", {}).get("runbook_url", "")
                if not url.endswith(f"#{name.lower()}"):
                    yield f"alert {name}: leads to {url}"


def readable(manifests: Manifests) -> Iterator[str]:
    """Expressions have as many closing brackets as opening ones (promtool tells more); Grafana finds the dashboard."""
    for name, text in _texts(manifests):
        plain = re.sub(r'"[^"]*"', "", text)
        if any(plain.count(one) != plain.count(other) for one, other in ("()", "[]", "{}")):
            yield f"{name}: brackets do not fit"
    for item in manifests.of_kind("ConfigMap"):
        boards = [file for file, text in item.get("data", {}).items() if '"panels"' in text]
        if boards and item["metadata"].get("labels", {}).get("grafana_dashboard") != "1":
            yield f"{boards}: Grafana does not look for it"


def scrape_times(manifests: Manifests) -> Iterator[str]:
    """Metrics are read so often that rates over minutes mean something; a scrape ends before the next one."""
    for item in manifests.of_kind("PodMonitor"):
        for endpoint in item["spec"]["podMetricsEndpoints"]:
            interval_s, timeout_s = (
                int(endpoint.get(field, default).rstrip("s"))
                if endpoint.get(field, default).endswith("s")
                else 0
                for field, default in (("interval", "30s"), ("scrapeTimeout", "10s"))
            )
            if not 0 < timeout_s <= interval_s <= 60:
                yield f"PodMonitor {item['metadata']['name']}: {endpoint}"


def _texts(manifests: Manifests) -> Iterator[tuple[str, str]]:
    """The queries of alerts and dashboards."""
    for item in manifests.of_kind("PrometheusRule"):
        for group in item["spec"]["groups"]:
            yield from ((f"alert {rule.get('alert')}", rule["expr"]) for rule in group["rules"])
    for item in manifests.of_kind("ConfigMap"):
        if "grafana_dashboard" in item["metadata"].get("labels", {}):
            for file, text in item["data"].items():
                yield file, "\n".join(_queries(json.loads(text)))


def _queries(part: object) -> Iterator[str]:
    if isinstance(part, dict):
        for key, value in part.items():
            if key == "expr" and isinstance(value, str):
                yield value
            yield from _queries(value)
    elif isinstance(part, list):
        for value in part:
            yield from _queries(value)


RULES = (watched_metrics, alerts, readable, scrape_times)
