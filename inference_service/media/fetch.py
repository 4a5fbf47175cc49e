"""Fetches images under a policy: the only module that connects to hosts named by users.

A URL is parsed once and its host is resolved once. Every address must be public, or be allowed by the operator with its
port; the connection goes to the checked address, the name is used only in `Host` and TLS. Every redirect is checked in
the same way. This prevents server-side request forgery (CVE-2025-6242, CVE-2026-24779, CVE-2026-33626).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
import socket
import sys
from typing import Final, TypeVar

import httpcore
import httpx

from inference_service.errors import (
    ImageFetchTimeoutError,
    ImageUrlRefusedError,
    InvalidImageUrlError,
    ServiceError,
)
from inference_service.media.body import read_body
from inference_service.media.exchange import Exchanges
from inference_service.media.failures import Failure, Stage, failure_of
from inference_service.media.file_budget import FetchedFiles, FileBudget
from inference_service.media.local_files import local_file_size, read_local_file, too_large
from inference_service.media.places import FetchPlaces
from inference_service.media.policy import FetchPolicy
from inference_service.media.resolve import Resolver, SystemResolver
from inference_service.media.url import ImageUrl, UrlError, clean_url, parse_url, scheme_of
from inference_service.media.visit import Visit


MAX_REDIRECTS = 3
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_DIALS = 3  # addresses of one host that are tried
_MAX_ADDRESSES = 128  # of one host; all are checked, in the event loop
_MAX_COOKIES = 50  # of one response
# What the HTTP client raises beside timeouts.
_FAILURES: Final = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError, OSError)


def _user_agent() -> str:
    try:
        return f"qwen-vl-serving/{version('qwen-vl-serving')}"
    except PackageNotFoundError:  # run from a source tree
        return "qwen-vl-serving/0"


_USER_AGENT: Final = _user_agent()
_LOCAL: Final = "file:"  # no name of a host
# Of their own: nothing can interrupt a file system that does not answer, and nothing else shall wait for it.
_THREADS: Final = ThreadPoolExecutor(max_workers=4, thread_name_prefix="local-files")

T = TypeVar("T")


async def _in_thread(read: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(_THREADS, read)


def _uncounted(caller: str) -> FetchedFiles:
    """Files of nobody who counts them."""
    return FetchedFiles(FileBudget(sys.maxsize, wait_s=0.0), caller)


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
        try:
            return await self._fetched(uri, field, caller, files)
        except (ServiceError, asyncio.CancelledError) as error:
            # Its frames, and those of its cause, hold what was read so far, which nobody counts any more.
            error.__context__ = None
            raise error.with_traceback(None) from None

    async def _fetched(
        self, uri: str, field: str, caller: str, files: FetchedFiles | None
    ) -> bytes:
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
            url = None if scheme_of(uri) == "file" else parse_url(uri)
        except UrlError as error:
            raise InvalidImageUrlError(str(error), field=field) from None
        request = "" if files is None else str(id(files))
        host = _LOCAL if url is None else url.host_header
        counted = _uncounted(caller) if files is None else files
        async with self._places.taken(host, caller=caller, request=request):
            if url is None:
                return await self._local_file(uri, field, counted)
            limit = asyncio.timeout(policy.timeout_s)
            return await self._within(
                limit, Visit(url, url, field, limit, counted, bool(policy.proxy))
            )

    async def _local_file(self, uri: str, field: str, files: FetchedFiles) -> bytes:
        """A file of the operator's directory; it is read when there is room for it."""
        policy = self._policy
        size = await _in_thread(lambda: local_file_size(uri, policy.local_root, field))
        if size > policy.max_bytes:
            raise too_large(policy.max_bytes, field)
        await files.take(size, field)
        data = await _in_thread(
            lambda: read_local_file(uri, policy.local_root, policy.max_bytes, field)
        )
        files.add(len(data) - size)  # it may have changed
        return data

    async def _within(self, limit: asyncio.Timeout, visit: Visit) -> bytes:
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

    def _timed_out(self, visit: Visit, error: Exception) -> ImageFetchTimeoutError:
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

    async def _follow(self, visit: Visit) -> bytes:
        """Fetches, following redirects."""
        for _ in range(MAX_REDIRECTS + 1):
            got = await self._get(visit, await self._checked_addresses(visit))
            if isinstance(got, bytes):
                return got
            visit.url = got
        raise visit.failed(
            Failure("redirects", f"is reached after more than {MAX_REDIRECTS} redirects")
        )

    async def _checked_addresses(self, visit: Visit) -> Sequence[str]:
        """The addresses to dial, checked; behind a proxy the host itself."""
        policy, url = self._policy, visit.url
        visit.progress.stage = Stage.LOOKUP
        if reason := policy.refusal(url):
            raise visit.refused(reason)
        addresses: Sequence[str] | None = [url.host]
        if not url.is_numeric:
            addresses = await (
                self._known_addresses(visit) if policy.proxy else self._lookup(visit)
            )
        reason = (
            policy.refusal_of_name(url) if addresses is None else policy.refusal_of(url, addresses)
        )
        if reason:
            raise visit.refused(reason)
        return [url.host] if policy.proxy or addresses is None else addresses

    async def _lookup(self, visit: Visit) -> Sequence[str]:
        addresses = await self._resolve(visit.url.host, visit.url.port)
        if len(addresses) > _MAX_ADDRESSES:
            raise visit.failed(
                Failure("name", f"has a name with more than {_MAX_ADDRESSES} addresses")
            )
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "no addresses")
        return addresses

    async def _known_addresses(self, visit: Visit) -> Sequence[str] | None:
        """The addresses of a host that a proxy looks up itself; None where only the proxy can."""
        try:
            async with asyncio.timeout(self._policy.connect_timeout_s):
                return await self._lookup(visit)
        except OSError:  # includes the timeout
            return None

    async def _get(self, visit: Visit, addresses: Sequence[str]) -> bytes | ImageUrl:
        """Sends one request to the first address that accepts a connection: the body, or the URL to go on with."""
        *others, last = addresses[:_MAX_DIALS]
        for address in others:
            try:
                return await self._get_from(visit, address)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._get_from(visit, last)

    async def _get_from(self, visit: Visit, address: str) -> bytes | ImageUrl:
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
            return next_url or await read_body(visit, self._policy, response, received)

    def _next_url(self, visit: Visit, status: int, headers: httpx.Headers) -> ImageUrl | None:
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


def _is_whole(content_range: str) -> bool:
    """Whether a `Content-Range` is the whole file (`bytes 0-99/100`), which some hosts send unasked."""
    unit_range, _, size = content_range.partition("/")
    return len(size) < 20 and size.isdecimal() and unit_range == f"bytes 0-{int(size) - 1}"
