"""The settings of the adapter: names, defaults, flags and environment variables."""

from __future__ import annotations

from collections.abc import Mapping
import os
from pathlib import Path
from typing import ClassVar, Final

from pydantic import Field, ValidationInfo, field_validator

from qwenvl.flags import Address, Endpoint, FlagSettings, Positive, Seconds, Target
from qwenvl.observability import LogFormat, LogLevel
from rest_adapter.origins import compile_origins


IN_MEMORY: Final = "memory"
"""The value of `response_store` for a store in memory."""
_SQLITE_BEGINNING: Final = b"SQLite format 3\0"


class AdapterSettings(FlagSettings):
    """Settings of `rest-adapter`."""

    NEEDS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "grpc_client_cert_file": ("grpc_client_key_file", "grpc_ca_file"),
        "grpc_client_key_file": ("grpc_client_cert_file", "grpc_ca_file"),
    }

    http_address: Address = Field(
        "127.0.0.1:8000", description="address (host:port) of the REST API"
    )
    http_metrics_address: Address | None = Field(
        None,
        description="additional address (host:port) that serves GET /metrics for Prometheus, without a key; none ="
        " only the REST API serves it, to callers with a key",
    )
    grpc_target: Target = Field(
        "dns:///127.0.0.1:50051", description="gRPC target of the inference service"
    )
    grpc_ca_file: str | None = Field(
        None,
        description="certificates of the authorities that sign that of the inference service, in PEM; read again when"
        " it changes; none = plaintext",
    )
    grpc_client_cert_file: str | None = Field(
        None, description="certificate that is shown to the inference service, in PEM"
    )
    grpc_client_key_file: str | None = Field(
        None, description="private key of --grpc-client-cert-file, in PEM"
    )
    api_key_file: str | None = Field(
        None, description="file with one API key per line; none = no authentication"
    )
    allowed_origins: tuple[str, ...] = Field(
        ("local",),
        description="web pages that may call the API, as origins (https://app.example, * inside a name matches "
        "anything); local = pages and applications of this machine, null = pages that are files, * = all, none = no "
        "page",
    )
    max_body_mib: Positive = Field(
        44, description="maximum size of one request body, also when decompressed, in MiB"
    )
    max_text_mib: Positive = Field(
        8, description="maximum size of one request body without its images, in MiB"
    )
    body_budget_mib: Positive = Field(
        256,
        validate_default=True,
        description="maximum size of all request bodies in memory, in MiB",
    )
    max_media_mib: Positive = Field(
        31, description="maximum total size of the decoded images of one request, in MiB"
    )
    request_timeout_s: Seconds = Field(600.0, description="timeout of a request, in seconds")
    drain_timeout_s: Seconds = Field(
        90.0,
        description="time for running requests to finish after SIGTERM, in seconds; then they end with an error",
    )
    body_timeout_s: Seconds = Field(
        30.0,
        description="maximum time without a byte of a request body, in seconds; the minimum rate is a mean over it",
    )
    min_body_kib_per_s: Positive = Field(
        16,
        description="minimum mean rate at which a request body must arrive and a large answer be read, in KiB/s",
    )
    sse_heartbeat_s: Seconds = Field(
        15.0, description="interval of comments on a stream without output, in seconds"
    )
    playground: bool = Field(
        True,
        description="serve a web page at / that asks the API, and the API's description at /docs and /openapi.json;"
        " they need no key",
    )
    response_store: str | None = Field(
        None,
        description="where /v1/responses keeps responses for previous_response_id and retrieval: memory, or the path of"
        " an SQLite file; none = nowhere, and requests that need it are refused",
    )
    response_store_entries: Positive = Field(
        10_000,
        description="maximum number of stored responses; of the caller with the most, those unused longest give way",
    )
    response_store_mib: Positive = Field(
        256, description="maximum total size of the stored responses, in MiB"
    )
    response_store_age_s: Positive = Field(
        86_400,
        description="time for which a response is stored after its last use, in seconds; continuing it is a use",
    )
    response_truncation: bool = Field(
        False,
        description="let /v1/responses leave out the oldest exchanges of a conversation that exceeds the context"
        ' window, for requests with truncation "auto", which are otherwise refused',
    )
    strict_fields: bool = Field(
        False, description="refuse unknown JSON fields instead of ignoring them"
    )
    otlp_traces_endpoint: Endpoint | None = Field(
        None,
        description="where traces of the calls are sent, by OTLP over gRPC (http://host:port, or https://); needs the"
        " extra [tracing]; none = no traces",
    )
    log_level: LogLevel = Field("info", description="lowest level that is logged")
    log_format: LogFormat | None = Field(
        None, description="json or text; none = text on a terminal, JSON otherwise"
    )

    @field_validator("allowed_origins")
    @classmethod
    def _check_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        compile_origins(value)
        return value

    @field_validator("body_budget_mib")
    @classmethod
    def _check_budget(cls, value: int, info: ValidationInfo) -> int:
        # A quarter of the budget is for small bodies.
        max_body_mib = info.data.get("max_body_mib", 0)
        if value * 3 < max_body_mib * 4:
            raise ValueError(
                f"it is {value}, but must be at least 4/3 of --max-body-mib, which is {max_body_mib}"
            )
        return value

    def check_files(self) -> None:
        """Checks the files in the settings, see `FlagSettings`, and that of the store of responses."""
        super().check_files()
        path = self.response_store
        if path not in (None, IN_MEMORY) and (problem := _store_problem(Path(path or ""))):
            raise SystemExit(self.problem("response_store", path, problem))


def _store_problem(file: Path) -> str:
    """Why a file cannot be a store of responses; empty = it can, as far as can be seen without opening it."""
    if file.is_dir():
        return "is a directory, not a file"
    if not file.parent.is_dir():
        return f"cannot be created: {file.parent} is not a directory"
    exists = file.exists()
    if not os.access(file if exists else file.parent, os.W_OK):
        return "cannot be written"
    if exists and file.stat().st_size:
        with file.open("rb") as content:
            if content.read(len(_SQLITE_BEGINNING)) != _SQLITE_BEGINNING:
                return "is not an SQLite database"
    return ""
