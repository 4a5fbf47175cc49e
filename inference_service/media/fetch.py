"""The guarded fetch of images: the only module that opens connections to hosts which users name.

Owns policy, name resolution, redirects, time and size limits.

A URL is parsed once; its host is resolved once; every answer must be public (or named by the operator with its
port); the checked address itself is dialled, with the name only in `Host` and TLS. Each redirect goes through all of
it again. CVE-2025-6242, CVE-2026-24779 and CVE-2026-33626 are what happens otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
import os
from pathlib import Path
import socket
import ssl
import stat
from typing import Protocol
from urllib.parse import unquote, urlsplit

import httpx

from inference_service.errors import (
    ImageFetchError,
    ImageFetchTimeoutError,
    ImageTooLargeError,
    ImageUrlRefusedError,
    InvalidImageUrlError,
)
from inference_service.media.addresses import is_public
from inference_service.media.url import (
    DEFAULT_PORTS,
    AllowedHost,
    ImageUrl,
    UrlError,
    parse_url,
    reject_odd_characters,
)
from inference_service.settings import ServiceSettings


MAX_REDIRECTS = 3
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_DIALS = 3  # addresses of one host that are tried


class Resolver(Protocol):
    """Turns a host name into addresses."""

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """All addresses of a host, as text; an address resolves to itself.

        Raises:
            OSError: The name does not resolve.
        """


class SystemResolver:
    """The system's `getaddrinfo`, in threads of its own: slow name servers keep nobody else's work waiting."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(max_workers=8, thread_name_prefix="resolve")

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """See Resolver."""
        found = await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        )
        return list(dict.fromkeys(str(address[0]) for *_, address in found))


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchPolicy:
    """What may be fetched, and how long and large it may be.

    Attributes:
        enabled: False = nothing is fetched.
        allowed_hosts: If any, only these; an entry with a port also permits an address that is not public.
        local_root: Directory, resolved, from which `file:` URLs may be read; None = refused.
        connect_timeout_s: For one connection, TLS included.
        total_timeout_s: For one image, name resolution and redirects included.
        max_bytes: Of one encoded image.
    """

    enabled: bool = True
    allowed_hosts: tuple[AllowedHost, ...] = ()
    local_root: Path | None = None
    connect_timeout_s: float = 2.0
    total_timeout_s: float = 10.0
    max_bytes: int = 20 * 2**20

    @classmethod
    def from_settings(cls, settings: ServiceSettings) -> FetchPolicy:
        """The policy that the operator set.

        Raises:
            ValueError: An allowed host is malformed, or the local directory is none.
        """
        root = settings.allow_local_media_path
        if root is not None and not Path(root).is_dir():
            raise ValueError(f"allow_local_media_path {root!r} is no directory")
        return cls(
            enabled=settings.enable_media_fetch,
            allowed_hosts=tuple(map(AllowedHost.parse, settings.allowed_media_domains)),
            local_root=None if root is None else Path(root).resolve(),
            connect_timeout_s=settings.media_connect_timeout_s,
            total_timeout_s=settings.media_total_timeout_s,
            max_bytes=settings.max_image_bytes,
        )

    @property
    def url_schemes(self) -> tuple[str, ...]:
        """Schemes an image's URL may have; empty = fetching is switched off."""
        if not self.enabled:
            return ()
        return ("http", "https") if self.local_root is None else ("http", "https", "file")

    def may_dial(self, url: ImageUrl, addresses: Sequence[str]) -> bool:
        """Whether a URL whose host has these addresses may be fetched."""
        if not self.names(url):
            return False
        if any(entry.port is not None and entry.permits(url) for entry in self.allowed_hosts):
            return True
        return bool(addresses) and all(map(is_public, addresses))

    def names(self, url: ImageUrl) -> bool:
        """Whether host and port alone are permitted, before the name is resolved."""
        if not self.allowed_hosts:
            return url.port in DEFAULT_PORTS.values()
        return any(entry.permits(url) for entry in self.allowed_hosts)


class MediaFetcher:
    """Fetches images under a policy. Messages of its errors tell neither addresses nor what a host answered."""

    def __init__(self, policy: FetchPolicy, resolver: Resolver | None = None) -> None:
        self._policy = policy
        self._resolve = resolver or SystemResolver()
        self._tls = ssl_context()
        self._headers = {
            "User-Agent": f"qwen-vl-serving/{_version()}",
            "Accept": "image/*",
            "Accept-Encoding": "identity",
            "Connection": "close",
        }

    async def fetch(self, uri: str, *, field: str) -> bytes:
        """The bytes that a URL stands for; not necessarily an image.

        Args:
            uri: An http, https or file URL.
            field: Path of the image in the request, for errors.

        Raises:
            InvalidImageUrlError: The text is no URL that could be fetched.
            ImageUrlRefusedError: The policy forbids it.
            ImageTooLargeError: It has more bytes than allowed.
            ImageFetchTimeoutError: The host was too slow.
            ImageFetchError: The host failed.
        """
        if not self._policy.enabled:
            raise ImageUrlRefusedError("This service fetches no images.", field=field)
        scheme = uri[:16].partition(":")[0].lower()
        if scheme == "data":
            raise InvalidImageUrlError(
                "A data: URI is not fetched: send the image's bytes as `data`.", field=field
            )
        if scheme == "file":
            return await asyncio.to_thread(self._read_file, uri, field)
        try:
            async with asyncio.timeout(self._policy.total_timeout_s):
                return await self._follow(parse_url(uri), field)
        except UrlError as error:
            raise InvalidImageUrlError(str(error), field=field) from None
        except (TimeoutError, httpx.TimeoutException):
            raise ImageFetchTimeoutError("The image's host took too long.", field=field) from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError):
            raise ImageFetchError("The image's host failed.", field=field) from None

    async def _follow(self, url: ImageUrl, field: str) -> bytes:
        """Fetches, following redirects."""
        for _ in range(MAX_REDIRECTS + 1):
            got = await self._get(url, await self._checked_addresses(url, field), field)
            if isinstance(got, bytes):
                return got
            url = got
        raise ImageFetchError("The image's host redirects too often.", field=field)

    async def _checked_addresses(self, url: ImageUrl, field: str) -> Sequence[str]:
        """Resolves once; every answer must pass, for a mixed answer is how a name is rebound."""
        refused = ImageUrlRefusedError(
            "The media policy of this service does not permit this host.", field=field
        )
        if not self._policy.names(url):
            raise refused
        try:
            addresses = await self._resolve(url.host, url.port)
        except (OSError, UnicodeError):
            raise ImageFetchError("The image's host has no address.", field=field) from None
        if not addresses:
            raise ImageFetchError("The image's host has no address.", field=field)
        if not self._policy.may_dial(url, addresses):
            raise refused
        return addresses

    async def _get(self, url: ImageUrl, addresses: Sequence[str], field: str) -> bytes | ImageUrl:
        """One request to the first address that takes a connection: the body, or where it redirects to."""
        *others, last = addresses[:_MAX_DIALS]
        for address in others:
            try:
                return await self._get_from(url, address, field)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue
        return await self._get_from(url, last, field)

    async def _get_from(self, url: ImageUrl, address: str, field: str) -> bytes | ImageUrl:
        timeout = httpx.Timeout(
            self._policy.total_timeout_s, connect=self._policy.connect_timeout_s
        )
        dialled = httpx.URL(
            scheme=url.scheme, host=address, port=url.port, raw_path=url.target.encode("ascii")
        )
        # A client of its own for every hop: connections kept alive are found by address, and the second host on an
        # address would pass without a look at its certificate.
        async with (
            httpx.AsyncClient(
                verify=self._tls, trust_env=False, follow_redirects=False, timeout=timeout
            ) as client,
            client.stream(
                "GET",
                dialled,
                headers={"Host": url.host_header, **self._headers},
                extensions={"sni_hostname": url.host},
            ) as response,
        ):
            if response.status_code in _REDIRECTS and "location" in response.headers:
                return url.resolve(response.headers["location"])
            if response.status_code != 200:
                raise ImageFetchError(
                    "The image's host did not answer with status 200.",
                    field=field,
                    metadata={"status": str(response.status_code)},
                )
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise ImageFetchError(
                    "The image's host sent an encoding that was not asked for.", field=field
                )
            return await self._read(response, field)

    async def _read(self, response: httpx.Response, field: str) -> bytes:
        """The body, counted as it comes: what Content-Length says is only a reason to give up early."""
        too_large = _too_large(self._policy.max_bytes, field)
        length = response.headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length) > self._policy.max_bytes:
            raise too_large
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > self._policy.max_bytes:
                raise too_large
        return bytes(body)

    def _read_file(self, uri: str, field: str) -> bytes:
        root = self._policy.local_root
        refused = ImageUrlRefusedError("This service does not read this file.", field=field)
        if root is None:
            raise refused
        try:
            reject_odd_characters(uri)
            parts = urlsplit(uri)
            name = unquote(parts.path, errors="strict")
        except ValueError:
            raise InvalidImageUrlError("The file URL is malformed.", field=field) from None
        if parts.netloc not in {"", "localhost"} or parts.query or not name.startswith("/"):
            raise InvalidImageUrlError("The file URL is malformed.", field=field)
        try:
            path = Path(name).resolve()
            if not path.is_relative_to(root):
                raise refused
            return _read_regular_file(path, self._policy.max_bytes, field)
        except (OSError, ValueError, RuntimeError):
            raise ImageFetchError("The file cannot be read.", field=field) from None


def ssl_context() -> ssl.SSLContext:
    """Certificates are checked against the public authorities, whatever the environment says."""
    return httpx.create_ssl_context(trust_env=False)


def _read_regular_file(path: Path, max_bytes: int, field: str) -> bytes:
    # The path is resolved already: a link that stands there now was put there since. A pipe must not block.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ImageUrlRefusedError("This service does not read this file.", field=field)
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise _too_large(max_bytes, field)
    return data


def _too_large(max_bytes: int, field: str) -> ImageTooLargeError:
    return ImageTooLargeError(
        "The image has more bytes than allowed.",
        field=field,
        metadata={"max_bytes": str(max_bytes)},
    )


def _version() -> str:
    try:
        return version("qwen-vl-serving")
    except PackageNotFoundError:  # run from a source tree
        return "0"
