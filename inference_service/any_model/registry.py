"""The architectures that the installed transformers library knows, read from its source without importing it.

Importing it takes seconds and gigabytes, and what a model's files name must be judged before anything is imported.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib import metadata, util
from pathlib import Path
from typing import Final


_TABLE: Final = "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"
EXTRA: Final = "pip install 'qwen-vl-serving[transformers]'"


class RegistryError(ValueError):
    """transformers is not installed, or its registry cannot be read; the message is for the operator."""


@cache
def architectures() -> dict[str, str]:
    """The class of `AutoModelForImageTextToText` for each `model_type`.

    Raises:
        RegistryError: transformers is not installed, or keeps its registry elsewhere.
    """
    found = util.find_spec("transformers")  # finds a top-level package without importing it
    if found is None or found.origin is None:
        raise RegistryError(f"transformers is not installed ({EXTRA})")
    path = Path(found.origin).parent / "models/auto/modeling_auto.py"
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        table = next(
            node.value for node in tree.body if _assigns(node) and isinstance(node, ast.Assign)
        )
        assert isinstance(table, ast.Call)
        return {str(kind): str(name) for kind, name in ast.literal_eval(table.args[0])}
    except (OSError, SyntaxError, StopIteration, AssertionError, ValueError, TypeError) as error:
        raise RegistryError(
            f"the registry of transformers {metadata.version('transformers')} cannot be read"
        ) from error


def _assigns(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and any(
        isinstance(target, ast.Name) and target.id == _TABLE for target in node.targets
    )
