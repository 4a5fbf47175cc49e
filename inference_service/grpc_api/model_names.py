"""Resolves the names under which a model is served."""

from __future__ import annotations

from collections.abc import Sequence

from inference_service.errors import ModelNotFoundError


def canonical_name(name: str, served: Sequence[str], *, field: str) -> str:
    """The canonical name of a served model.

    Args:
        name: The name in the request; empty = the canonical one.
        served: The served names, the canonical one first.
        field: Path of the name in the request, for errors.

    Raises:
        ModelNotFoundError: No model of this name is served.
    """
    if name and name not in served:
        raise ModelNotFoundError(
            f"The model {name[:100]!r} is not served here; served: {', '.join(served)}.",
            field=field,
            metadata={"model": name[:100]},
        )
    return served[0]
