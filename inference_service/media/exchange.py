"""One HTTP request to a checked address, directly or through the operator's proxy."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
import contextlib
from dataclasses import dataclass
import ssl
from typing import Any, Final

import httpcore
import httpx

from inference_service.media.failures import HeadTooLargeError, Stage, TrailersTooLargeError
from inference_service.media.policy import FetchPolicy, public_tls
from inference_service.media.url import DEFAULT_PORTS, ImageUrl


# The head of a response is parsed in the event loop, for a millisecond per KiB; interim responses (1xx) before it cost
# more, and may go on for ever. Node.js reads 16 KiB.
_MAX_HEAD_BYTES: Final = 32 * 2**10
_MAX_HEADS: Final = 8
_HEAD_READ_BYTES: Final = 4096
# So are the trailers behind a body in chunks; up to as many may be in the last read of chunks.
_MAX_TRAILER_BYTES: Final = 16 * 2**10
_STAGES: Final = {
    "connect_tcp.started": Stage.CONNECT,
    "start_tls.started": Stage.TLS,
    "send_request_headers.started": Stage.ANSWER,
    "receive_response_headers.complete": Stage.BODY,
}


@dataclass(slots=True)
class Progress:
    """How far an exchange is.

    Attributes:
        stage: What it is doing.
        head_bytes: Bytes received of the response's head.
        heads: Heads in them.
        in_chunks: The body comes in chunks, behind which trailers may follow.
        idle_bytes: Bytes received since the last piece of a body in chunks.
    """

    stage: Stage = Stage.LOOKUP
    head_bytes: int = 0
    heads: int = 0
    in_chunks: bool = False
    idle_bytes: int = 0

    async def trace(self, event: str, _: Any) -> None:
        """Notes the stage; an extension of the HTTP client."""
        self.stage = _STAGES.get(event.partition(".")[2], self.stage)


class Exchanges:
    """Makes requests as the policy says."""

    def __init__(self, policy: FetchPolicy) -> None:
        self._policy = policy
        self._public_tls = public_tls()
        self._named_tls = self._public_tls if policy.ca_file is None else policy.named_hosts_tls()
        self._proxy = None if policy.proxy is None else httpx.Proxy(policy.proxy)
        self._timeouts = dict.fromkeys(("read", "write", "pool"), policy.timeout_s)
        self._timeouts["connect"] = policy.connect_timeout_s

    @contextlib.asynccontextmanager
    async def get(
        self, url: ImageUrl, address: str, headers: Mapping[str, str], progress: Progress
    ) -> AsyncIterator[httpcore.Response]:
        """Sends a GET request; the response's head has been received, its body has not.

        Args:
            url: What is requested.
            address: What is connected to; behind a proxy the URL's host.
            headers: Without `Host`.
            progress: Is kept up to date.
        """
        extensions = {"timeout": self._timeouts, "trace": progress.trace}
        if self._proxy is None:
            extensions["sni_hostname"] = url.host
        elif ":" in address:
            address = f"[{address}]"
        target = httpcore.URL(
            scheme=url.scheme,
            host=address,
            port=None if url.port == DEFAULT_PORTS[url.scheme] else url.port,
            target=url.target,
        )
        sent = [("Host", url.host_header), *headers.items()]
        progress.head_bytes = progress.heads = progress.idle_bytes = 0
        progress.in_chunks = False
        async with (
            self._pool(self._tls(url), progress) as pool,
            pool.stream("GET", target, headers=sent, extensions=extensions) as response,
        ):
            progress.in_chunks = any(
                name.lower() == b"transfer-encoding" for name, _ in response.headers
            )
            yield response

    def _tls(self, url: ImageUrl) -> ssl.SSLContext:
        return self._named_tls if self._policy.trusts_ca_file(url) else self._public_tls

    def _pool(self, tls: ssl.SSLContext, progress: Progress) -> httpcore.AsyncConnectionPool:
        # A new one for every request: kept-alive connections are reused by address, so that a second host on the same
        # address would be accepted without checking its certificate.
        backend = _Backend(progress)
        if self._proxy is None:
            return httpcore.AsyncConnectionPool(ssl_context=tls, network_backend=backend)
        url = self._proxy.url
        return httpcore.AsyncHTTPProxy(
            httpcore.URL(scheme=url.scheme, host=url.raw_host, port=url.port, target="/"),
            proxy_auth=self._proxy.raw_auth,
            ssl_context=tls,
            proxy_ssl_context=self._named_tls if url.scheme == "https" else None,
            network_backend=backend,
        )


class _Backend(httpcore.AnyIOBackend):
    """Connects as usual; the streams bound the head of the response."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - as in the base class
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        stream = await super().connect_tcp(host, port, timeout, local_address, socket_options)
        return _Stream(stream, self._progress)


class _Stream(httpcore.AsyncNetworkStream):
    def __init__(self, stream: httpcore.AsyncNetworkStream, progress: Progress) -> None:
        self._stream = stream
        self._progress = progress

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        progress = self._progress
        if progress.in_chunks:
            # The body's reader forgets them with each piece of data, which the last read may have had at its end.
            if progress.idle_bytes >= _MAX_TRAILER_BYTES:
                raise TrailersTooLargeError
            data = await self._stream.read(min(max_bytes, _MAX_TRAILER_BYTES), timeout)
            progress.idle_bytes += len(data)
            return data
        if progress.stage is Stage.BODY:
            return await self._stream.read(max_bytes, timeout)
        data = await self._stream.read(min(max_bytes, _HEAD_READ_BYTES), timeout)
        progress.head_bytes += len(data)
        progress.heads += data.count(b"HTTP/1.")
        if progress.head_bytes > _MAX_HEAD_BYTES or progress.heads > _MAX_HEADS:
            raise HeadTooLargeError
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        return _Stream(
            await self._stream.start_tls(ssl_context, server_hostname, timeout), self._progress
        )

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
