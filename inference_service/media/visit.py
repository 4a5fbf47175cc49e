"""The state of one fetch, and the errors that tell the caller how it ended."""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass
from typing import Final

import httpx

from inference_service.errors import ImageFetchError, ImageUrlRefusedError
from inference_service.media.exchange import Progress
from inference_service.media.failures import Failure, Stage
from inference_service.media.file_budget import FetchedFiles
from inference_service.media.url import ImageUrl


# Names the formats that are read: hosts send AVIF or HEIC to those who accept `image/*`.
ACCEPT: Final = (
    "image/jpeg, image/png, image/webp, image/gif, image/bmp;q=0.9, image/tiff;q=0.9,"
    " application/octet-stream;q=0.5"
)


@dataclass(slots=True)
class Visit:
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
    files: FetchedFiles
    proxied: bool = False
    progress: Progress = dataclasses.field(default_factory=Progress)
    accept: str = ACCEPT
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
