"""The tables of the documentation are those that its sources give, and say all that there is to say."""

from __future__ import annotations

from pathlib import Path
import re
import runpy
import subprocess
import sys

import pytest

from inference_service.settings import ServiceSettings
from rest_adapter.settings import AdapterSettings


ROOT = Path(__file__).parents[2]
GENERATE = ROOT / "docs" / "generate.py"


def test_generated_tables_are_up_to_date() -> None:
    result = subprocess.run(
        [sys.executable, GENERATE, "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("old", ["| `64` |", "| integer ≥ 1, ≤ 1024 |", "`QUEUE_FULL` |"])
def test_a_table_that_is_out_of_date_is_found(old: str) -> None:
    render = runpy.run_path(str(GENERATE))["render"]
    [document, *_] = [
        text
        for path in sorted((ROOT / "docs").glob("*.md"))
        if old in (text := path.read_text(encoding="utf-8"))
    ]
    assert render(document) == document
    assert render(document.replace(old, "| other |", 1)) == document


@pytest.mark.parametrize("settings", [ServiceSettings, AdapterSettings])
def test_every_setting_is_described_once(
    settings: type[ServiceSettings | AdapterSettings],
) -> None:
    program = {ServiceSettings: "inference-service", AdapterSettings: "rest-adapter"}[settings]
    document = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    table = document.partition(f"<!-- generated: {program} -->")[2]
    table = table.partition("<!-- end generated -->")[0]
    variables = re.findall(r"^\| .*?`QWENVL_(\w+)`", table, re.MULTILINE)
    assert [name.lower() for name in variables] == list(settings.model_fields)


def test_every_setting_has_a_description_in_plain_words() -> None:
    for settings in (ServiceSettings, AdapterSettings):
        for name, info in settings.model_fields.items():
            assert info.description, name
            assert not re.search(r"\b(door|picture)\b", info.description), name
