"""The alerts fire when they should and have a runbook; the dashboard shows what exists."""

from __future__ import annotations

import json
from pathlib import Path
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from qwenvl.errors import BY_REASON
from tests.k8s import crd_schemas
from tests.k8s.manifest_set import ROOT, load
from tests.support.metric_names import exposed_names, used_names


OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
DASHBOARD = ROOT / "k8s" / "components" / "monitoring" / "dashboard.json"
UNIT_TESTS = Path(__file__).parent / "alerts.test.yaml"
# Also the labels that Prometheus adds to every series of a pod.
LABELS = {"namespace", "pod", "le", "model_name", "version", "model_revision"}


def rules() -> list[dict[str, Any]]:
    (item,) = load("monitored").of_kind("PrometheusRule")
    return [rule for group in item["spec"]["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    """Those of the dashboard, with the variables of Grafana replaced."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    found = [target["expr"] for panel in panels for target in panel["targets"]]
    return [
        text.replace("$__rate_interval", "5m").replace("$namespace", "qwen-vl-serving")
        for text in found
    ]


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("no promtool: Debian's package `prometheus` has it")
    return found


def call(promtool: str, *arguments: str, folder: Path) -> None:
    done = subprocess.run(
        [promtool, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_fit_their_schema() -> None:
    (item,) = load("monitored").of_kind("PrometheusRule")
    crd_schemas.validate(item)


def test_rules_fire_as_their_unit_tests_say(promtool: str, tmp_path: Path) -> None:
    (item,) = load("monitored").of_kind("PrometheusRule")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(item["spec"]))
    shutil.copy(UNIT_TESTS, tmp_path / "tests.yaml")
    call(promtool, "check", "rules", "rules.yaml", folder=tmp_path)
    call(promtool, "test", "rules", "tests.yaml", folder=tmp_path)


def test_every_alert_has_a_unit_test_in_which_it_fires() -> None:
    fired = {
        name
        for test in yaml.safe_load(UNIT_TESTS.read_text())["tests"]
        for query in test["promql_expr_test"]
        for sample in query["exp_samples"]
        for name in re.findall(r'alertname="(\w+)"', sample["labels"])
    }
    assert fired == {rule["alert"] for rule in rules()}


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    sections = dict(
        re.findall(r"^### (Qwenvl\w+)\n\n(.+?)(?=\n#|\Z)", OPERATIONS, re.MULTILINE | re.DOTALL)
    )
    assert set(sections) == {rule["alert"] for rule in rules()}
    for rule in rules():
        link = f"docs/operations.md#{rule['alert'].lower()}"
        assert rule["annotations"]["runbook_url"] == link
        assert len(sections[rule["alert"]]) > 80


def test_runbooks_name_reasons_that_exist() -> None:
    named = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)+|INTERNAL)`", OPERATIONS))
    named = {name for name in named if not name.startswith(("QWENVL_", "OTEL_"))}
    assert named
    assert named <= set(BY_REASON)


@pytest.mark.parametrize("text", [*(rule["expr"] for rule in rules()), *expressions()])
def test_expressions_use_names_and_labels_that_exist(text: str) -> None:
    names = set(used_names(text)) | set(re.findall(r"\bprocess_\w+", text))
    assert names
    process = {"process_cpu_seconds_total", "process_resident_memory_bytes"}
    assert names <= exposed_names() | process
    labels = {
        label
        for group in re.findall(r"(?:by|on) \(([^)]*)\)", text)
        for label in group.replace(" ", "").split(",")
    } | set(re.findall(r"[{,](\w+)=~?\"", text))
    documented = set(
        re.findall(r"`(\w+)`", (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8"))
    )
    assert labels <= LABELS | documented


def test_prometheus_can_read_the_expressions_of_the_dashboard(
    promtool: str, tmp_path: Path
) -> None:
    recorded = [
        {"record": f"a:b:c{number}", "expr": text} for number, text in enumerate(expressions())
    ]
    groups = {"groups": [{"name": "dashboard", "rules": recorded}]}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(groups))
    call(promtool, "check", "rules", "rules.yaml", folder=tmp_path)


def test_the_dashboard_is_found_by_grafana() -> None:
    (item,) = [
        item
        for item in load("monitored").of_kind("ConfigMap")
        if item["metadata"]["labels"].get("grafana_dashboard") == "1"
    ]
    (text,) = item["data"].values()
    dashboard = json.loads(text)
    assert dashboard == json.loads(DASHBOARD.read_text())
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]}
    assert len(places) == len(dashboard["panels"]) > 20
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(places)


def test_every_alert_concerns_something_on_the_dashboard() -> None:
    shown = set(used_names(" ".join(expressions())))
    for rule in rules():
        used = set(used_names(rule["expr"])) - {"qwenvl_build_info"}
        assert not used or used & shown
