"""Parses the URLs of images strictly, and the entries of the operator's allow-list.

Requests are made from the parsed parts only: a validator and an HTTP client that each parse the text may disagree
(CVE-2026-24779).
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
import re
import unicodedata
from urllib.parse import quote, urljoin, urlsplit

import idna


DEFAULT_PORTS = {"http": 80, "https": 443}
MAX_URL_LENGTH = 8192
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_URL_CHARACTERS = "/?:@!$&'()*+,;=%-._~[]"  # left as they are; everything else is percent-encoded


class UrlError(ValueError):
    """The text is not a URL that can be fetched; the message is safe to return to a client."""


@dataclass(frozen=True, slots=True)
class ImageUrl:
    """The parts of an http or https URL.

    Attributes:
        scheme: `http` or `https`.
        host: ASCII, lower case: a name (IDNA-encoded), or an address without brackets.
        port: 1 to 65535.
        target: Path and query as sent, percent-encoded ASCII, beginning with `/`.
    """

    scheme: str
    host: str
    port: int
    target: str

    @property
    def host_header(self) -> str:
        """The value of the `Host` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def resolve(self, location: str) -> ImageUrl:
        """The URL that a redirect from here leads to.

        Raises:
            UrlError: It is not a URL that can be fetched.
        """
        reject_odd_characters(location)
        return parse_url(urljoin(f"{self.scheme}://{self.host_header}{self.target}", location))


@dataclass(frozen=True, slots=True)
class AllowedHost:
    """An entry of the operator's allow-list: `host`, `host:port` or `[address]:port`.

    Attributes:
        host: As in ImageUrl.
        port: None = the default ports of the schemes.
    """

    host: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> AllowedHost:
        """Reads an entry.

        Raises:
            ValueError: It is not a host, with or without a port.
        """
        try:
            return cls._parse(text)
        except ValueError as error:
            raise ValueError(
                f"allowed media domain {text!r} is not of the form host or host:port"
            ) from error

    @classmethod
    def _parse(cls, text: str) -> AllowedHost:
        if text.count(":") > 1 and not text.startswith("["):
            return cls(encode_host(f"[{text}]"), None)  # an IPv6 address without brackets
        reject_odd_characters(text)
        parts = urlsplit(f"//{text}")
        if parts.netloc != text or "@" in text:
            raise UrlError("The host is malformed.")
        host, port = _split_port(text)
        return cls(encode_host(host), port)

    def permits(self, url: ImageUrl) -> bool:
        """Whether the entry matches the URL's host and port."""
        port_matches = (
            url.port in DEFAULT_PORTS.values() if self.port is None else url.port == self.port
        )
        return port_matches and url.host == self.host


def parse_url(text: str) -> ImageUrl:
    """Parses an http or https URL.

    Raises:
        UrlError: The text is not such a URL, or parsers may disagree on it.
    """
    reject_odd_characters(text)
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise UrlError("The URL is malformed.") from error
    if parts.scheme not in DEFAULT_PORTS:
        raise UrlError("The URL's scheme must be http or https.")
    if not parts.netloc:
        raise UrlError("The URL has no host.")
    if "@" in parts.netloc:
        raise UrlError("The URL must not contain a user name or password.")
    host, port = _split_port(parts.netloc)
    query = f"?{parts.query}" if parts.query else ""
    return ImageUrl(
        scheme=parts.scheme,
        host=encode_host(host),
        port=DEFAULT_PORTS[parts.scheme] if port is None else port,
        target=quote((parts.path or "/") + query, safe=_URL_CHARACTERS),
    )


def reject_odd_characters(text: str) -> None:
    r"""Refuses control characters, white space and `\`, which parsers treat differently.

    Raises:
        UrlError: The text contains one or is too long.
    """
    if len(text) > MAX_URL_LENGTH:
        raise UrlError(
            f"The URL has {len(text)} characters, but at most {MAX_URL_LENGTH} are allowed."
        )
    if "\\" in text or any(unicodedata.category(character)[0] in "CZ" for character in text):
        raise UrlError(
            "The URL contains white space, a backslash or another character that is not allowed."
        )


def encode_host(host: str) -> str:
    """Normalises a host: ASCII in lower case, addresses in their shortest form.

    Raises:
        UrlError: It is malformed, or a number that only some resolvers accept as an address.
    """
    if host.startswith("["):
        return _encode_v6(host)
    try:
        encoded = host if host.isascii() else idna.encode(host, uts46=True).decode("ascii")
    except (idna.IDNAError, UnicodeError) as error:
        raise UrlError("The URL's host is malformed.") from error
    encoded = encoded.lower().removesuffix(".")
    labels = encoded.split(".")
    if len(encoded) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise UrlError("The URL's host is malformed.")
    if _NUMBER.fullmatch(labels[-1]):
        # Some resolvers read `2130706433`, `0x7f.1` and `127.1` as 127.0.0.1; only four decimal numbers are accepted.
        try:
            return str(IPv4Address(encoded))
        except ValueError as error:
            raise UrlError("The URL's host is malformed.") from error
    return encoded


def _encode_v6(host: str) -> str:
    try:
        address = IPv6Address(host[1:-1])
    except ValueError as error:
        raise UrlError("The URL's host is malformed.") from error
    if not host.endswith("]") or address.scope_id is not None:
        raise UrlError("The URL's host is malformed.")
    return str(address)


def _split_port(netloc: str) -> tuple[str, int | None]:
    host, colon, digits = netloc.rpartition(":")
    if not colon or "]" in digits:
        return netloc, None
    if not digits:
        return host, None
    if not (digits.isascii() and digits.isdigit() and 1 <= len(digits) <= 5):
        raise UrlError("The URL's port is malformed; it must be 1 to 65535.")
    if not 1 <= int(digits) <= 65535:
        raise UrlError("The URL's port is malformed; it must be 1 to 65535.")
    return host, int(digits)
