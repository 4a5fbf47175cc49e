"""The operator's media policy: which hosts, ports, addresses and files callers may name, and the limits of a fetch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
import functools
import os
from pathlib import Path
import ssl
from types import ModuleType
from typing import Final

from inference_service.media.addresses import is_public, is_public_name
from inference_service.media.url import (
    DEFAULT_PORTS,
    ImageUrl,
    UrlError,
    encode_host,
    is_address,
    split_port,
)
from inference_service.settings import ServiceSettings


PUBLIC: Final = ("public", "*")
"""Entries of the allow-list that mean every public host."""

_FLAG = "--allowed-media-domains"


class Scope(Enum):
    """What an entry of the allow-list covers."""

    HOST = "host"
    DOMAIN = "domain and its subdomains"
    SUBDOMAINS = "subdomains"
    PUBLIC = "every public host"


@dataclass(frozen=True, slots=True)
class AllowedHost:
    """An entry of the operator's allow-list.

    `host` is that host, `.domain` the domain and its subdomains, `*.domain` its subdomains only, each with or without a
    port (`host:port`, `[address]:port`); `public` (or `*`) is every public host on the default ports.

    Attributes:
        host: As in ImageUrl, without the prefix; empty for every public host.
        port: None = the default ports of the schemes. With a port, addresses that are not public are allowed too.
        scope: What it covers.
    """

    host: str
    port: int | None
    scope: Scope = Scope.HOST

    @classmethod
    def parse(cls, text: str) -> AllowedHost:
        """Reads an entry.

        Raises:
            ValueError: It has none of the forms above.
        """
        if text in PUBLIC:
            return cls("", None, Scope.PUBLIC)
        try:
            return cls._parse(text)
        except ValueError as error:
            raise ValueError(
                f"allowed media domain {text!r} is not of the form host, host:port, .domain, *.domain or public"
            ) from error

    @classmethod
    def _parse(cls, text: str) -> AllowedHost:
        if text.count(":") > 1 and not text.startswith("["):
            return cls(encode_host(f"[{text}]"), None)  # an IPv6 address without brackets
        name, port = split_port(text)
        for prefix, scope in ((".", Scope.DOMAIN), ("*.", Scope.SUBDOMAINS)):
            if name.startswith(prefix):
                domain = encode_host(name.removeprefix(prefix))
                if is_address(domain):
                    raise UrlError("An address has no subdomains.")
                return cls(domain, port, scope)
        return cls(encode_host(name), port)

    def permits(self, url: ImageUrl) -> bool:
        """Whether the entry covers the URL's host and port."""
        if self.port is None:
            return url.port in DEFAULT_PORTS.values() and self.covers(url.host)
        return url.port == self.port and self.covers(url.host)

    def covers(self, host: str) -> bool:
        """Whether the entry covers a host on some port."""
        if self.scope is Scope.PUBLIC:
            return True
        if host == self.host:
            return self.scope is not Scope.SUBDOMAINS
        return self.scope is not Scope.HOST and host.endswith(f".{self.host}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchPolicy:
    """What may be fetched, how, and with which limits.

    Attributes:
        enabled: Whether URLs are fetched at all.
        allowed_hosts: If not empty, the only allowed hosts; an entry with a port also allows non-public addresses.
        local_root: Directory, resolved, from which `file:` URLs may be read; None = refused.
        proxy: HTTP proxy that all fetches go through; None = direct.
        ca_file: File with certificate authorities for the hosts that entries name, and for all hosts behind the proxy.
        connect_timeout_s: Timeout of one connection, including TLS.
        timeout_s: Time until a host must have begun to send the image, including name resolution and redirects; then
            the time over which its rate is measured.
        min_bytes_per_s: Lowest rate at which a host may send.
        max_bytes: Maximum size of one encoded image.
        max_fetches: Maximum number of fetches at a time; one host and one caller have at most half of them.
    """

    enabled: bool = True
    allowed_hosts: tuple[AllowedHost, ...] = ()
    local_root: Path | None = None
    proxy: str | None = None
    ca_file: Path | None = None
    connect_timeout_s: float = 2.0
    timeout_s: float = 10.0
    min_bytes_per_s: float = 8 * 2**10
    max_bytes: int = 20 * 2**20
    max_fetches: int = 256

    @classmethod
    def from_settings(cls, settings: ServiceSettings) -> FetchPolicy:
        """The operator's policy.

        Raises:
            ValueError: An allowed host or the proxy is malformed, the directory does not exist, or the file contains no
                certificates.
        """
        root = settings.allow_local_media_path
        if root is not None and not os.path.isdir(root):  # noqa: PTH112 - Path raises for names that cannot be
            raise ValueError("allow_local_media_path is not a directory")
        policy = cls(
            enabled=settings.enable_media_fetch,
            allowed_hosts=tuple(map(AllowedHost.parse, settings.allowed_media_domains)),
            local_root=None if root is None else Path(root).resolve(),
            proxy=None if settings.media_proxy is None else _checked_proxy(settings.media_proxy),
            ca_file=None if settings.media_ca_file is None else Path(settings.media_ca_file),
            connect_timeout_s=settings.media_connect_timeout_s,
            timeout_s=settings.media_timeout_s,
            min_bytes_per_s=settings.media_min_kib_per_s * 2**10,
            max_bytes=settings.max_image_bytes,
            max_fetches=settings.max_media_fetches,
        )
        if policy.ca_file is not None:
            policy.named_hosts_tls()
        return policy

    @property
    def url_schemes(self) -> tuple[str, ...]:
        """Schemes an image's URL may have; empty = fetching is switched off."""
        if not self.enabled:
            return ()
        return ("http", "https") if self.local_root is None else ("http", "https", "file")

    def refusal(self, url: ImageUrl) -> str:
        """Why host and port are not allowed, before the name is resolved; empty if they are.

        The text continues "This service does not fetch from HOST: ".
        """
        if any(entry.permits(url) for entry in self.allowed_hosts):
            return ""
        if any(entry.covers(url.host) for entry in self.allowed_hosts):
            return f"it is named by {_FLAG}, but not with port {url.port}"
        if self.allowed_hosts:
            return f"it is not named by {_FLAG}"
        if url.port not in DEFAULT_PORTS.values():
            return (
                f"port {url.port} is neither 80 nor 443, and {_FLAG} does not name the host with it"
            )
        return ""

    def refusal_of(self, url: ImageUrl, addresses: Sequence[str]) -> str:
        """Why a host with these addresses is not allowed, as above. All must be public, as rebinding mixes them."""
        if self._may_be_private(url) or (addresses and all(map(is_public, addresses))):
            return ""
        return f"it is not on the public internet, and {_FLAG} does not name it with its port"

    def refusal_of_name(self, url: ImageUrl) -> str:
        """Why the proxy must not be asked for a name that does not resolve here, as above."""
        if self._may_be_private(url) or is_public_name(url.host):
            return ""
        return f"its name is not public, and {_FLAG} does not name it with its port"

    def _may_be_private(self, url: ImageUrl) -> bool:
        return any(entry.port is not None and entry.permits(url) for entry in self.allowed_hosts)

    def trusts_ca_file(self, url: ImageUrl) -> bool:
        """Whether the authorities of `ca_file` may vouch for a URL's host."""
        if self.ca_file is None:
            return False
        named = (entry for entry in self.allowed_hosts if entry.scope is not Scope.PUBLIC)
        return self.proxy is not None or any(entry.permits(url) for entry in named)

    def named_hosts_tls(self) -> ssl.SSLContext:
        """Verifies certificates against the public authorities and those of `ca_file`.

        Raises:
            ValueError: The file cannot be read, or contains no certificates.
        """
        context: ssl.SSLContext = _httpx().create_ssl_context(trust_env=False)
        try:
            context.load_verify_locations(cafile=self.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ValueError(
                f"media_ca_file {str(self.ca_file)!r} is not a readable file of PEM certificates"
            ) from error
        # An operator may name an intermediate authority, or the certificate of the host itself.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return context


@functools.cache
def public_tls() -> ssl.SSLContext:
    """Verifies certificates against the public authorities, ignoring the environment."""
    context: ssl.SSLContext = _httpx().create_ssl_context(trust_env=False)
    return context


def _checked_proxy(text: str) -> str:
    httpx = _httpx()
    try:
        url = httpx.URL(text)
        known = url.scheme in {"http", "https"} and url.host and url.raw_path == b"/"
        if known and 1 <= (url.port or 80) <= 65535:
            return text
    except (httpx.InvalidURL, UnicodeError):
        pass
    # The text is not repeated: it may contain a password.
    raise ValueError("media_proxy is not of the form http://host:port (or https://...)")


def _httpx() -> ModuleType:
    """Imported late: it takes a tenth of a second, and a start checks policies that need nothing of it."""
    import httpx  # noqa: PLC0415

    return httpx
