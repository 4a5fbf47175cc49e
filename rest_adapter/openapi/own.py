"""Describes the adapter's own routes, which belong to no dialect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Literal

from typing_extensions import TypedDict

from rest_adapter.openapi.operation import Description, Operation, Parameter


_TAG: Final = "Operation"


class Status(TypedDict):
    """The state of the server."""

    status: Literal["ok", "ready"]


class Version(TypedDict):
    """The version of this software."""

    version: str


_OWN: Final = (
    Operation(
        method="get",
        path="/health",
        name="getHealth",
        summary="200 while the adapter runs.",
        tag=_TAG,
        answer=Status,
        is_open=True,
    ),
    Operation(
        method="get",
        path="/ready",
        name="getReadiness",
        summary="200 while the inference service can answer.",
        tag=_TAG,
        answer=Status,
        is_open=True,
    ),
    Operation(
        method="get",
        path="/version",
        name="getVersion",
        summary="The version of this software.",
        tag=_TAG,
        answer=Version,
    ),
    Operation(
        method="get",
        path="/metrics",
        name="getMetrics",
        summary="Metrics of the adapter, for Prometheus.",
        tag=_TAG,
        other=(
            "text/plain",
            "The metrics in Prometheus' text format, or OpenMetrics if asked for.",
        ),
    ),
)

_PAGES: Final = (
    Operation(
        method="get",
        path="/",
        name="getPlayground",
        summary="A page that asks the API.",
        tag=_TAG,
        other=("text/html", "The page."),
        is_open=True,
    ),
    Operation(
        method="get",
        path="/playground/{name}",
        name="getPlaygroundFile",
        summary="A file of that page.",
        tag=_TAG,
        other=("text/plain", "The file, in its own media type."),
        parameters=(
            Parameter(
                name="name",
                place="path",
                description="The path of the file.",
                schema={"type": "string", "minLength": 1},
            ),
        ),
        is_open=True,
    ),
    Operation(
        method="get",
        path="/docs",
        name="getDocs",
        summary="This document as a page.",
        tag=_TAG,
        other=("text/html", "The page."),
        is_open=True,
    ),
    Operation(
        method="get",
        path="/openapi.json",
        name="getOpenApi",
        summary="This document.",
        tag=_TAG,
        answer=dict[str, object],
        is_open=True,
    ),
)


def own_descriptions(dialects: Sequence[Description]) -> list[Description]:
    """Describes the adapter's own routes, whose errors are those of the first dialect; none without a dialect."""
    return [replace(first, operations=(*_OWN, *_PAGES)) for first in dialects[:1]]
