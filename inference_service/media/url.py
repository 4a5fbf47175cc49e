"""Parses the URLs of images strictly.

Requests are made from the parsed parts only: a validator and an HTTP client that each parse the text may disagree
(CVE-2026-24779).
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
import re
import unicodedata
from urllib.parse import quote, urljoin

import idna


DEFAULT_PORTS = {"http": 80, "https": 443}
MAX_URL_LENGTH = 8192
_MAX_SHOWN = 64
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,15}(?=:)")
_PARTS = re.compile(r"[A-Za-z]+://([^/?#]*)([^?#]*)(\?[^#]*)?(?:#.*)?", re.DOTALL)
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_MAX_HOST_LENGTH = 1024  # as written; encoded, 253
# White space, and the marks that editors and browsers copy with a text (byte order, zero width, direction).
_INVISIBLE = (
    " \t\n\v\f\r\x85\xa0\xad\u061c\u1680\u180e"
    "\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u200b\u200c\u200d\u200e\u200f"
    "\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u202f\u205f\u2060\u2066\u2067\u2068\u2069\u3000\ufeff"
)
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\\]")  # controls, surrogates, backslash
_NAMES = {"\\": "a backslash", "\n": "a line break", "\r": "a line break", "\t": "a tab"}
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

    @property
    def is_numeric(self) -> bool:
        """Whether the host is an address, not a name."""
        return is_address(self.host)

    def resolve(self, location: str) -> ImageUrl:
        """The URL that a redirect from here leads to.

        Raises:
            UrlError: It is not a URL that can be fetched.
        """
        base = f"{self.scheme}://{self.host_header}{self.target}"
        try:
            return parse_url(urljoin(base, clean_url(location)))
        except UrlError:
            raise
        except ValueError as error:
            raise UrlError("The URL is malformed.") from error


def parse_url(text: str) -> ImageUrl:
    """Parses an http or https URL. White space around it is dropped, in path and query it is percent-encoded.

    Raises:
        UrlError: The text is not such a URL, or parsers may disagree on it.
    """
    text = clean_url(text)
    scheme = scheme_of(text)
    if scheme not in DEFAULT_PORTS:
        if scheme:
            raise UrlError(f"The URL's scheme must be http or https, not {scheme}.")
        shown = text[:_MAX_SHOWN] + ("..." if len(text) > _MAX_SHOWN else "")
        raise UrlError(f"{shown!r} is not a URL: its scheme is missing, and must be http or https.")
    parts = _PARTS.fullmatch(text)
    if parts is None or not parts[1]:
        raise UrlError("The URL has no host; it must have the form https://host/path.")
    authority, path, query = parts[1], parts[2], parts[3] or ""
    if "@" in authority:
        raise UrlError(
            "The URL must not contain a user name or password before the host;"
            " use a presigned URL, or send the bytes instead."
        )
    host, port = split_port(authority)
    return ImageUrl(
        scheme=scheme,
        host=encode_host(host),
        port=DEFAULT_PORTS[scheme] if port is None else port,
        target=quote((path or "/") + (query if len(query) > 1 else ""), safe=_URL_CHARACTERS),
    )


def scheme_of(text: str) -> str:
    """The scheme of a URL in lower case; empty if it has none."""
    match = _SCHEME.match(text)
    return match[0].lower() if match else ""


def clean_url(text: str) -> str:
    r"""Drops white space and invisible characters around a URL, as people copy and files end with them.

    Inside it, control characters and `\` are refused: parsers drop them or take them for something else.

    Raises:
        UrlError: The text contains such a character, or is too long.
    """
    if len(text) > MAX_URL_LENGTH:  # first: everything else takes time for every character
        raise UrlError(
            f"The URL has {len(text)} characters, but at most {MAX_URL_LENGTH} are allowed; it begins with"
            f" {text[:_MAX_SHOWN]!r}."
        )
    text = text.strip(_INVISIBLE)
    found = _FORBIDDEN.search(text)
    if found:
        what = _NAMES.get(found[0], f"the character U+{ord(found[0]):04X}")
        raise UrlError(
            f"The URL contains {what} at position {found.start()}, which must be percent-encoded."
        )
    return text


def encode_host(host: str) -> str:
    """Normalises a host: ASCII in lower case, addresses in their shortest form.

    Raises:
        UrlError: It is malformed, or a number that only some resolvers accept as an address.
    """
    if host.startswith("["):
        return _encode_v6(host)
    if len(host) > _MAX_HOST_LENGTH:
        raise _malformed(host)
    if any(unicodedata.category(character)[0] in "CZ" for character in host):
        raise UrlError("The URL's host contains white space or an invisible character.")
    try:
        encoded = host if host.isascii() else idna.encode(host, uts46=True).decode("ascii")
    except (idna.IDNAError, UnicodeError) as error:
        raise _malformed(host) from error
    encoded = encoded.lower().removesuffix(".")
    labels = encoded.split(".")
    if len(encoded) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise _malformed(host)
    if _NUMBER.fullmatch(labels[-1]):
        # Some resolvers read `2130706433`, `0x7f.1` and `127.1` as 127.0.0.1; only four decimal numbers are accepted.
        try:
            return str(IPv4Address(encoded))
        except ValueError as error:
            raise _malformed(host) from error
    return encoded


def is_address(host: str) -> bool:
    """Whether an encoded host is an address, not a name."""
    return ":" in host or host.rpartition(".")[2].isdigit()


def split_port(authority: str) -> tuple[str, int | None]:
    """Splits `host:port`; the port is None if it is missing or empty.

    Raises:
        UrlError: The port is malformed.
    """
    host, colon, digits = authority.rpartition(":")
    if not colon or "]" in digits:
        return authority, None
    if not digits:
        return host, None
    if not (digits.isascii() and digits.isdigit() and 1 <= len(digits) <= 5):
        raise UrlError("The URL's port is malformed; it must be 1 to 65535.")
    if not 1 <= int(digits) <= 65535:
        raise UrlError("The URL's port is malformed; it must be 1 to 65535.")
    return host, int(digits)


def _encode_v6(host: str) -> str:
    try:
        address = IPv6Address(host[1:-1])
    except ValueError as error:
        raise _malformed(host) from error
    if not host.endswith("]") or address.scope_id is not None:
        raise _malformed(host)
    return str(address)


def _malformed(host: str) -> UrlError:
    shown = host[:_MAX_SHOWN] + ("..." if len(host) > _MAX_SHOWN else "")
    return UrlError(
        f"The URL's host {shown!r} is malformed;"
        " it must be a name, four decimal numbers, or an IPv6 address in brackets."
    )
