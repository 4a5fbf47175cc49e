"""Every setting of the REST adapter: name, default, limits, flag and environment variable."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from qwenvl.flags import FlagSettings


Positive = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]


class AdapterSettings(FlagSettings):
    """Settings of `rest-adapter`."""

    http_address: str = Field("127.0.0.1:8000", description="address (host:port) of the REST API")
    grpc_target: str = Field(
        "dns:///127.0.0.1:50051", description="gRPC target of the inference service"
    )
    api_key_file: str | None = Field(
        None, description="file with one API key per line; none = no authentication"
    )
    max_body_mib: Positive = Field(44, description="maximum size of a request body, in MiB")
    max_media_mib: Positive = Field(
        31, description="maximum total size of the decoded data: URIs in one request, in MiB"
    )
    request_timeout_s: Seconds = Field(600.0, description="deadline for a request, in seconds")
    body_timeout_s: Seconds = Field(
        30.0, description="time for a client to send the request body, in seconds"
    )
    sse_heartbeat_s: Seconds = Field(
        15.0, description="interval of comment lines on a stream without output, in seconds"
    )
    strict_fields: bool = Field(
        False, description="refuse unknown JSON fields instead of logging and ignoring them"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="minimum level of log messages"
    )
