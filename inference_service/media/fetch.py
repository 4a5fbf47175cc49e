"""Fetches images under a policy: the only module that connects to hosts named by users.

A URL is parsed once and its host is resolved once. Every address must be public, or be allowed by the operator with its
port; the connection goes to the checked address, the name is used only in `Host` and TLS. Every redirect is checked in
the same way. This prevents server-side request forgery (CVE-2025-6242, CVE-2026-24779, CVE-2026-33626).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
import dataclasses
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
import socket
from typing import Final

import httpcore
import httpx

from inference_service.errors import (
    ImageFetchError,
    ImageFetchTimeoutError,
    ImageUrlRefusedError,
    InvalidImageUrlError,
)
from inference_service.media.content_coding import (
    CodingError,
    DecodedTooLargeError,
    content_codings,
    decode,
)
from inference_service.media.exchange import Exchanges, Progress
from inference_service.media.failures import Failure, Stage, failure_of
from inference_service.media.file_budget import FetchedFiles
from inference_service.media.local_files import read_local_file, too_large
from inference_service.media.places import FetchPlaces
from inference_service.media.policy import FetchPolicy
from inference_service.media.resolve import Resolver, SystemResolver
from inference_service.media.url import ImageUrl, UrlError, clean_url, parse_url, scheme_of


MAX_REDIRECTS = 3
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_DIALS = 3  # addresses of one host that are tried
_MIN_CHUNK = 256  # bytes; the mean of smaller chunks costs more time than it brings data
_FREE_CHUNKS = 1000
_MAX_COOKIES = 50  # of one response
# Names the formats that are read: hosts send AVIF or HEIC to those who accept `image/*`.
_ACCEPT: Final = (
    "image/jpeg, image/png, image/webp, image/gif, image/bmp;q=0.9, image/tiff;q=0.9,"
    " application/octet-stream;q=0.5"
)
# What the HTTP client raises beside timeouts.
_FAILURES: Final = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError, OSError)


def _user_agent() -> str:
    try:
        return f"qwen-vl-serving/{version('qwen-vl-serving')}"
    except PackageNotFoundError:  # run from a source tree
        return "qwen-vl-serving/0"


_USER_AGENT: Final = _user_agent()


@dataclass(slots=True)
class _Visit:
    """The state of one fetch.

    Attributes:
        first: The caller's URL.
        url: The current one.
        field: Path of the image in the request, for errors.
        limit: Ends the fetch if the host is too slow.
        files: Counts the bytes in memory.
        proxied: The connection goes to the operator's proxy.
        progress: How far the current request is.
        accept: The `Accept` header.
        cookies: Set by the hosts on the way: some redirect to the same URL until their cookie comes back.
    """

    first: ImageUrl
    url: ImageUrl
    field: str
    limit: asyncio.Timeout
    files: FetchedFiles | None = None
    proxied: bool = False
    progress: Progress = dataclasses.field(default_factory=Progress)
    accept: str = _ACCEPT
    cookies: httpx.Cookies = dataclasses.field(default_factory=httpx.Cookies)

    @property
    def host(self) -> str:
        """The host for an error message: no address, and no host that the caller does not know."""
        if self.proxied and self.progress.stage is Stage.CONNECT:
            return "the proxy of this service (--media-proxy)"
        if self.url.host != self.first.host:
            return "the host that the image's URL redirects to"
        return "the image's host" if self.url.is_numeric else f"the host {self.url.host_header}"

    @property
    def known(self) -> dict[str, str]:
        """The host as metadata of an error, if it may be told."""
        told = self.url.host == self.first.host and not self.url.is_numeric
        return {"host": self.url.host_header} if told else {}

    def failed(self, failure: Failure, **metadata: str) -> ImageFetchError:
        """The error that tells the caller of a failure."""
        return ImageFetchError(
            f"The image could not be fetched: {self.host} {failure.text}.",
            field=self.field,
            metadata={"cause": failure.cause, **self.known, **metadata},
        )

    def failed_with_status(self, status: int, text: str) -> ImageFetchError:
        """The same for an answer without an image."""
        return self.failed(
            Failure("status", f"answered with status {status} {text}"), status=str(status)
        )

    def refused(self, reason: str) -> ImageUrlRefusedError:
        """The error that tells the caller why the policy does not allow the current host."""
        return ImageUrlRefusedError(
            f"The media policy of this service does not allow {self.host}: {reason}.",
            field=self.field,
            metadata=self.known,
        )


class MediaFetcher:
    """Fetches images under a policy. Error messages contain neither addresses nor content of a response."""

    def __init__(self, policy: FetchPolicy, resolver: Resolver | None = None) -> None:
        self._policy = policy
        self._resolve = resolver or SystemResolver()
        self._places = FetchPlaces(policy.max_fetches)
        self._exchanges = Exchanges(policy)

    async def close(self) -> None:
        """Ends the lookups of names."""
        if isinstance(self._resolve, SystemResolver):
            await self._resolve.close()

    async def fetch(
        self, uri: str, *, field: str, caller: str = "", files: FetchedFiles | None = None
    ) -> bytes:
        """Fetches the content of a URL, which may not be an image.

        Args:
            uri: An http, https or file URL.
            field: Path of the image in the request, for errors.
            caller: The caller, who has at most half of the places; empty = unknown.
            files: Counts the bytes in memory, for the request.

        Raises:
            InvalidImageUrlError: The text is not a URL that can be fetched.
            ImageUrlRefusedError: The policy does not allow it.
            ImageTooLargeError: It has more bytes than allowed.
            ImageFetchTimeoutError: The host was too slow.
            ImageFetchError: The host failed.
            QueueFullError: There was no memory for it in time.
        """
        policy = self._policy
        if not policy.enabled:
            raise ImageUrlRefusedError(
                "This service does not fetch images from URLs (--enable-media-fetch is off); send the bytes instead.",
                field=field,
            )
        if uri[:64].lstrip()[:5].lower() == "data:":
            raise InvalidImageUrlError(
                "A data: URI is not fetched; send the image's bytes in `data` instead.", field=field
            )
        try:
            uri = clean_url(uri)
            if scheme_of(uri) == "file":
                data = await asyncio.to_thread(
                    read_local_file, uri, policy.local_root, policy.max_bytes, field
                )
                if files is not None:
                    files.add(len(data))
                return data
            url = parse_url(uri)
        except UrlError as error:
            raise InvalidImageUrlError(str(error), field=field) from None
        request = "" if files is None else str(id(files))
        async with self._places.taken(url.host_header, caller=caller, request=request):
            limit = asyncio.timeout(policy.timeout_s)
            return await self._within(
                limit, _Visit(url, url, field, limit, files, bool(policy.proxy))
            )

    async def _within(self, limit: asyncio.Timeout, visit: _Visit) -> bytes:
        try:
            async with limit:
                return await self._follow(visit)
        except UrlError as error:
            raise InvalidImageUrlError(
                f"The image's URL redirects to a URL that cannot be fetched: {error}",
                field=visit.field,
            ) from None
        except (TimeoutError, httpcore.TimeoutException) as error:
            raise self._timed_out(visit, error) from None
        except _FAILURES as error:
            raise visit.failed(failure_of(error, visit.progress.stage)) from None

    def _timed_out(self, visit: _Visit, error: Exception) -> ImageFetchTimeoutError:
        policy, stage = self._policy, visit.progress.stage
        if isinstance(error, httpcore.ConnectTimeout):
            when = f"after {policy.connect_timeout_s:g} s (--media-connect-timeout-s)"
        elif stage is Stage.BODY:
            rate = f"{policy.min_bytes_per_s / 2**10:g} KiB/s (--media-min-kib-per-s)"
            when = f"at less than {rate} over {policy.timeout_s:g} s (--media-timeout-s)"
        else:
            when = f"after {policy.timeout_s:g} s (--media-timeout-s)"
        return ImageFetchTimeoutError(
            f"The image could not be fetched in time from {visit.host}:"
            f" the service was still {stage.value} {when}.",
            field=visit.field,
            metadata={"cause": f"timeout_{stage.name.lower()}", **visit.known},
        )

    async def _follow(self, visit: _Visit) -> bytes:
        """Fetches, following redirects."""
        for _ in range(MAX_REDIRECTS + 1):
            got = await self._get(visit, await self._checked_addresses(visit))
            if isinstance(got, bytes):
                return got
            visit.url = got
        raise visit.failed(
            Failure("redirects", f"is reached after more than {MAX_REDIRECTS} redirects")
        )

    async def _checked_addresses(self, visit: _Visit) -> Sequence[str]:
        """The addresses to dial, checked; behind a proxy the host itself."""
        policy, url = self._policy, visit.url
        visit.progress.stage = Stage.LOOKUP
        if reason := policy.refusal(url):
            raise visit.refused(reason)
        addresses: Sequence[str] | None = [url.host]
        if not url.is_numeric:
            addresses = await (self._known_addresses(url) if policy.proxy else self._lookup(url))
        reason = (
            policy.refusal_of_name(url) if addresses is None else policy.refusal_of(url, addresses)
        )
        if reason:
            raise visit.refused(reason)
        return [url.host] if policy.proxy or addresses is None else addresses

    async def _lookup(self, url: ImageUrl) -> Sequence[str]:
        addresses = await self._resolve(url.host, url.port)
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "no addresses")
        return addresses

    async def _known_addresses(self, url: ImageUrl) -> Sequence[str] | None:
        """The addresses of a host that a proxy looks up itself; None where only the proxy can."""
        try:
            async with asyncio.timeout(self._policy.connect_timeout_s):
                return await self._lookup(url)
        except OSError:  # includes the timeout
            return None

    async def _get(self, visit: _Visit, addresses: Sequence[str]) -> bytes | ImageUrl:
        """Sends one request to the first address that accepts a connection: the body, or the URL to go on with."""
        *others, last = addresses[:_MAX_DIALS]
        for address in others:
            try:
                return await self._get_from(visit, address)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._get_from(visit, last)

    async def _get_from(self, visit: _Visit, address: str) -> bytes | ImageUrl:
        url = visit.url
        named = httpx.Request("GET", f"{url.scheme}://{url.host_header}{url.target}")
        visit.cookies.set_cookie_header(named)
        headers = {
            "User-Agent": _USER_AGENT,
            "Accept": visit.accept,
            "Accept-Encoding": "identity",
            "Connection": "close",
            **({"Cookie": named.headers["cookie"]} if "cookie" in named.headers else {}),
        }
        async with self._exchanges.get(url, address, headers, visit.progress) as response:
            received = httpx.Headers(response.headers)
            cookies = [
                (name, value)
                for name, value in response.headers
                if name.lower() == b"set-cookie" and value.isascii()
            ]
            visit.cookies.extract_cookies(
                httpx.Response(response.status, headers=cookies[:_MAX_COOKIES], request=named)
            )
            next_url = self._next_url(visit, response.status, received)
            return next_url or await self._body(visit, response, received)

    def _next_url(self, visit: _Visit, status: int, headers: httpx.Headers) -> ImageUrl | None:
        """The URL to go on with, if the response is no image."""
        if status in _REDIRECTS and "location" in headers:
            locations = set(headers.get_list("location"))
            if len(locations) > 1:
                raise visit.failed(Failure("redirects", "redirects to several URLs at once"))
            return visit.url.resolve(locations.pop())
        if status == 406 and visit.accept != "*/*":
            visit.accept = "*/*"
            return visit.url
        if status // 100 != 2:
            hint = "; it may need a login, or its link may have expired" * (status in {401, 403})
            raise visit.failed_with_status(status, f"instead of 200{hint}")
        if status == 206 and not _is_whole(headers.get("content-range", "")):
            raise visit.failed_with_status(status, "and a part of the image")
        return None

    async def _body(
        self, visit: _Visit, response: httpcore.Response, headers: httpx.Headers
    ) -> bytes:
        """The body without its content coding."""
        max_bytes = self._policy.max_bytes
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > max_bytes:
            raise too_large(max_bytes, visit.field)
        body = await self._read(visit, response.aiter_stream())
        if not body:
            raise visit.failed_with_status(response.status, "and no content")
        codings = content_codings(headers.get("content-encoding", ""))
        if not codings:
            return body
        try:
            return await asyncio.to_thread(decode, body, codings, max_bytes)
        except CodingError as error:
            raise visit.failed(Failure("content_encoding", f"sent {error}")) from None
        except DecodedTooLargeError:
            raise too_large(max_bytes, visit.field) from None

    async def _read(self, visit: _Visit, chunks: AsyncIterator[bytes]) -> bytes:
        """The body, counted while reading: Content-Length may be false."""
        policy, loop = self._policy, asyncio.get_running_loop()
        body = bytearray()
        number, counted = 0, 0
        visit.limit.reschedule(loop.time() + policy.timeout_s)
        async for chunk in chunks:
            if visit.files is not None:
                if not visit.files.has_room(len(chunk)):
                    visit.limit.reschedule(None)
                    await visit.files.wait_for_room(len(chunk), visit.field)
                    visit.limit.reschedule(loop.time() + policy.timeout_s)
                visit.files.add(len(chunk))
            body += chunk
            number += 1
            if len(body) > policy.max_bytes:
                raise too_large(policy.max_bytes, visit.field)
            if number > _FREE_CHUNKS + len(body) // _MIN_CHUNK:
                raise visit.failed(Failure("small_pieces", "sends the image in too small pieces"))
            if len(body) - counted >= policy.min_bytes_per_s * policy.timeout_s:
                counted = len(body)
                visit.limit.reschedule(loop.time() + policy.timeout_s)
        return bytes(body)


def _is_whole(content_range: str) -> bool:
    """Whether a `Content-Range` is the whole file (`bytes 0-99/100`), which some hosts send unasked."""
    unit_range, _, size = content_range.partition("/")
    return len(size) < 20 and size.isdecimal() and unit_range == f"bytes 0-{int(size) - 1}"
