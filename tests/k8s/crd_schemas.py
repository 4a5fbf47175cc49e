"""Validates custom resources, whose schemas Kubernetes itself does not have.

Owns the kept schemas, made strict: a field that they do not list is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tests.k8s.manifest_set import Object


_KEPT: dict[str, Any] = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
KINDS = frozenset(_KEPT)


def api_version(kind: str) -> str | None:
    """The group and version of a custom resource; None = no schema is kept for its kind."""
    version: str | None = _KEPT.get(kind, {}).get("apiVersion")
    return version


def validate(item: Object) -> None:
    """Checks one object.

    Raises:
        jsonschema.ValidationError: It does not fit.
        KeyError: No schema is kept for its kind.
    """
    kept = _KEPT[item["kind"]]
    schema = {
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"const": kept["apiVersion"]},
            "kind": {},
            "metadata": {"type": "object"},
            "spec": kept["spec"],
        },
    }
    jsonschema.validate(item, _strict(schema))


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if not isinstance(schema.get("properties"), dict):
        return {key: _strict(value) for key, value in schema.items()}
    properties = {name: _strict(value) for name, value in schema["properties"].items()}
    rest = {key: value for key, value in schema.items() if key != "properties"}
    return {"type": "object", "additionalProperties": False, **rest, "properties": properties}
