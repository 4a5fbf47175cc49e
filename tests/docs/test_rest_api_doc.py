"""docs/rest-api.md says what becomes of every request field that the adapter knows."""

from __future__ import annotations

from pathlib import Path
import re
import sys

from pydantic import BaseModel
import pytest

import rest_adapter.app
from rest_adapter.settings import AdapterSettings


ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "rest-api.md").read_text(encoding="utf-8")
MODULES = [
    module
    for name, module in sorted(sys.modules.items())
    if name.startswith("rest_adapter.") and name != AdapterSettings.__module__
]


def served_fields() -> set[str]:
    """The fields of all JSON models of requests."""
    models = {
        value
        for module in MODULES
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, BaseModel)
        and value.__module__ == module.__name__
    }
    return {name for model in models for name in model.model_fields}


def unserved_fields() -> set[str]:
    """The fields that are known and ignored, or refused unless they ask for nothing."""
    return {
        str(name)
        for module in MODULES
        for constant, names in vars(module).items()
        if constant.endswith(("_IGNORED", "_NEUTRAL"))
        for name in names
    }


def fields_of_parts() -> set[str]:
    """The types and fields of the parts of messages, which are read without a model."""
    tables = (
        *("IGNORED", "SOURCES", "_HINTS", "_KINDS"),
        *("_OF_VIDEO_FILES", "_RESIZED", "_THINKING", "_UNSUPPORTED"),
    )
    return {
        str(name)
        for module in MODULES
        for constant, names in vars(module).items()
        if constant in tables
        for name in names
    }


def named_in(document: str) -> set[str]:
    return set(re.findall(r"[a-z_0-9]+", " ".join(re.findall(r"`([^`\n]+)`", document))))


def test_every_request_field_is_described() -> None:
    assert rest_adapter.app in MODULES
    fields = served_fields() | unserved_fields() | fields_of_parts()
    assert {"temperature", "messages", "image_url", "tools", "metadata"} <= fields
    assert fields - named_in(DOCUMENT) == set()


@pytest.mark.parametrize(
    "field", ["/v1/chat/completions", "/v1/completions", "/v1/decisions", "/v1/models/{id}"]
)
def test_endpoints_are_listed(field: str) -> None:
    assert field in DOCUMENT
