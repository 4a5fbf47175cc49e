"""The settings of the adapter: names, defaults, flags and environment variables."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from qwenvl.flags import Address, FlagSettings, Target
from qwenvl.observability import LogFormat, LogLevel


Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class AdapterSettings(FlagSettings):
    """Settings of `rest-adapter`."""

    http_address: Address = Field(
        "127.0.0.1:8000", description="address (host:port) of the REST API"
    )
    grpc_target: Target = Field(
        "dns:///127.0.0.1:50051", description="gRPC target of the inference service"
    )
    api_key_file: str | None = Field(
        None, description="file with one API key per line; none = no authentication"
    )
    max_body_mib: Positive = Field(44, description="maximum size of one request body, in MiB")
    max_media_mib: Positive = Field(
        31, description="maximum total size of the decoded images of one request, in MiB"
    )
    request_timeout_s: Seconds = Field(600.0, description="timeout of a request, in seconds")
    body_timeout_s: Seconds = Field(
        30.0, description="timeout for receiving a request body, in seconds"
    )
    sse_heartbeat_s: Seconds = Field(
        15.0, description="interval of comments on a stream without output, in seconds"
    )
    strict_fields: bool = Field(
        False, description="refuse unknown JSON fields instead of ignoring them"
    )
    log_level: LogLevel = Field("info", description="lowest level that is logged")
    log_format: LogFormat | None = Field(
        None, description="json or text; none = text on a terminal, JSON otherwise"
    )
