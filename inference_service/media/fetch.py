"""Fetches images under a policy: the only module that connects to hosts named by users.

A URL is parsed once and its host is resolved once. Every address must be public, or be allowed by the operator with its
port; the connection goes to the checked address, the name is used only in `Host` and TLS. Every redirect is checked in
the same way. This prevents server-side request forgery (CVE-2025-6242, CVE-2026-24779, CVE-2026-33626).
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
_REFUSED_FILE = "This service may not read this file (--allow-local-media-path)."
_MALFORMED_FILE_URL = "The file URL is malformed; it must have the form file:///path/to/image."


class Resolver(Protocol):
    """Resolves host names to addresses."""

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """All addresses of a host, as text; an address resolves to itself.

        Raises:
            OSError: The name does not resolve.
        """


class SystemResolver:
    """The system's `getaddrinfo`, in separate threads so that slow name servers do not delay other work."""

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
    """What may be fetched, with limits on time and size.

    Attributes:
        enabled: Whether URLs are fetched at all.
        allowed_hosts: If not empty, the only allowed hosts; an entry with a port also allows non-public addresses.
        local_root: Directory, resolved, from which `file:` URLs may be read; None = refused.
        connect_timeout_s: Timeout of one connection, including TLS.
        total_timeout_s: Timeout for one image, including name resolution and redirects.
        max_bytes: Maximum size of one encoded image.
    """

    enabled: bool = True
    allowed_hosts: tuple[AllowedHost, ...] = ()
    local_root: Path | None = None
    connect_timeout_s: float = 2.0
    total_timeout_s: float = 10.0
    max_bytes: int = 20 * 2**20

    @classmethod
    def from_settings(cls, settings: ServiceSettings) -> FetchPolicy:
        """The operator's policy.

        Raises:
            ValueError: An allowed host is malformed, or the local directory does not exist.
        """
        root = settings.allow_local_media_path
        if root is not None and not Path(root).is_dir():
            raise ValueError(f"allow_local_media_path {root!r} is not a directory")
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
        """Whether a URL may be fetched, given the addresses of its host."""
        if not self.allows_host(url):
            return False
        if any(entry.port is not None and entry.permits(url) for entry in self.allowed_hosts):
            return True
        return bool(addresses) and all(map(is_public, addresses))

    def allows_host(self, url: ImageUrl) -> bool:
        """Whether host and port are allowed, before the name is resolved."""
        if not self.allowed_hosts:
            return url.port in DEFAULT_PORTS.values()
        return any(entry.permits(url) for entry in self.allowed_hosts)


class MediaFetcher:
    """Fetches images under a policy. Error messages contain neither addresses nor content of a response."""

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
        """Fetches the content of a URL, which may not be an image.

        Args:
            uri: An http, https or file URL.
            field: Path of the image in the request, for errors.

        Raises:
            InvalidImageUrlError: The text is not a URL that can be fetched.
            ImageUrlRefusedError: The policy does not allow it.
            ImageTooLargeError: It has more bytes than allowed.
            ImageFetchTimeoutError: The host was too slow.
            ImageFetchError: The host failed.
        """
        if not self._policy.enabled:
            raise ImageUrlRefusedError(
                "This service does not fetch images from URLs (--enable-media-fetch is off); send the bytes instead.",
                field=field,
            )
        scheme = uri[:16].partition(":")[0].lower()
        if scheme == "data":
            raise InvalidImageUrlError(
                "A data: URI is not fetched; send the image's bytes in `data` instead.", field=field
            )
        if scheme == "file":
            return await asyncio.to_thread(self._read_file, uri, field)
        try:
            async with asyncio.timeout(self._policy.total_timeout_s):
                return await self._follow(parse_url(uri), field)
        except UrlError as error:
            raise InvalidImageUrlError(str(error), field=field) from None
        except (TimeoutError, httpx.TimeoutException):
            raise ImageFetchTimeoutError(
                "The image could not be fetched in time: at most"
                f" {self._policy.connect_timeout_s:g} s to connect (--media-connect-timeout-s)"
                f" and {self._policy.total_timeout_s:g} s in all (--media-total-timeout-s).",
                field=field,
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError):
            raise ImageFetchError(
                "The connection to the image's host failed; check the URL, or send the bytes instead.",
                field=field,
            ) from None

    async def _follow(self, url: ImageUrl, field: str) -> bytes:
        """Fetches, following redirects."""
        for _ in range(MAX_REDIRECTS + 1):
            got = await self._get(url, await self._checked_addresses(url, field), field)
            if isinstance(got, bytes):
                return got
            url = got
        raise ImageFetchError(
            f"The image's URL redirects more than {MAX_REDIRECTS} times.", field=field
        )

    async def _checked_addresses(self, url: ImageUrl, field: str) -> Sequence[str]:
        """Resolves once; every address must be allowed, as mixed answers are used for DNS rebinding."""
        refused = ImageUrlRefusedError(
            "The media policy of this service does not allow this host (--allowed-media-domains).",
            field=field,
        )
        if not self._policy.allows_host(url):
            raise refused
        try:
            addresses = await self._resolve(url.host, url.port)
        except (OSError, UnicodeError):
            raise ImageFetchError(
                "The name of the image's host cannot be resolved.", field=field
            ) from None
        if not addresses:
            raise ImageFetchError("The name of the image's host cannot be resolved.", field=field)
        if not self._policy.may_dial(url, addresses):
            raise refused
        return addresses

    async def _get(self, url: ImageUrl, addresses: Sequence[str], field: str) -> bytes | ImageUrl:
        """Sends one request to the first address that accepts a connection: the body, or the redirect target."""
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
        # A new client for every request: kept-alive connections are reused by address, so that a second host on the
        # same address would be accepted without checking its certificate.
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
                    f"The image's host answered with status {response.status_code} instead of 200.",
                    field=field,
                    metadata={"status": str(response.status_code)},
                )
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise ImageFetchError(
                    "The image's host sent a compressed response, which was not requested.",
                    field=field,
                )
            return await self._read(response, field)

    async def _read(self, response: httpx.Response, field: str) -> bytes:
        """The body, counted while reading; Content-Length is only used to refuse early."""
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
        refused = ImageUrlRefusedError(_REFUSED_FILE, field=field)
        if root is None:
            raise refused
        try:
            reject_odd_characters(uri)
            parts = urlsplit(uri)
            name = unquote(parts.path, errors="strict")
        except ValueError:
            raise InvalidImageUrlError(_MALFORMED_FILE_URL, field=field) from None
        if parts.netloc not in {"", "localhost"} or parts.query or not name.startswith("/"):
            raise InvalidImageUrlError(_MALFORMED_FILE_URL, field=field)
        try:
            path = Path(name).resolve()
            if not path.is_relative_to(root):
                raise refused
            return _read_regular_file(path, self._policy.max_bytes, field)
        except (OSError, ValueError, RuntimeError):
            raise ImageFetchError(
                "The file does not exist or cannot be read.", field=field
            ) from None


def ssl_context() -> ssl.SSLContext:
    """Verifies certificates against the public authorities, ignoring the environment."""
    return httpx.create_ssl_context(trust_env=False)


def _read_regular_file(path: Path, max_bytes: int, field: str) -> bytes:
    # The path is resolved: a symbolic link was created since and is refused. A pipe must not block.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ImageUrlRefusedError(_REFUSED_FILE, field=field)
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise _too_large(max_bytes, field)
    return data


def _too_large(max_bytes: int, field: str) -> ImageTooLargeError:
    return ImageTooLargeError(
        f"The image has more than {max_bytes} bytes, the maximum (--max-image-bytes); send a smaller one.",
        field=field,
        metadata={"max_bytes": str(max_bytes)},
    )


def _version() -> str:
    try:
        return version("qwen-vl-serving")
    except PackageNotFoundError:  # run from a source tree
        return "0"
