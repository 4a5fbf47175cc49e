"""Tells a caller why a fetch failed: fixed sentences by kind, without addresses, parser texts or upstream content."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
import errno
import socket
import ssl
from typing import Final

import httpcore


class Stage(Enum):
    """What a fetch is doing; the value continues "while"."""

    LOOKUP = "looking up its name"
    CONNECT = "connecting to it"
    TLS = "setting up TLS with it"
    ANSWER = "waiting for its answer"
    BODY = "receiving the image from it"


class HeadTooLargeError(httpcore.RemoteProtocolError):
    """The head of a response is too large."""


class TrailersTooLargeError(httpcore.RemoteProtocolError):
    """What follows the body of a response, or stands between its chunks, is too large."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a fetch failed.

    Attributes:
        cause: A word for programs.
        text: Continues "The image could not be fetched: HOST".
    """

    cause: str
    text: str


_EXPIRED: Final = Failure("certificate_expired", "has a TLS certificate that has expired")
_EARLY: Final = Failure("certificate_not_yet_valid", "has a TLS certificate that is not valid yet")
_UNTRUSTED: Final = Failure(
    "certificate_not_trusted",
    "has a TLS certificate that is not signed by an authority trusted here (--media-ca-file)",
)
_MISNAMED: Final = Failure(
    "certificate_name_mismatch", "has a TLS certificate for another host name"
)
_INVALID: Final = Failure("certificate_invalid", "has an invalid TLS certificate")
# The codes of OpenSSL's X509_V_ERR_..., see `man X509_STORE_CTX_get_error`.
_CERTIFICATE: Final = {
    9: _EARLY,
    10: _EXPIRED,
    **dict.fromkeys((2, 18, 19, 20, 21, 24, 27), _UNTRUSTED),
    **dict.fromkeys((62, 64), _MISNAMED),
}
_NOT_TLS: Final = frozenset(
    {
        "HTTP_REQUEST",
        "PACKET_LENGTH_TOO_LONG",
        "RECORD_LAYER_FAILURE",
        "UNKNOWN_PROTOCOL",
        "WRONG_VERSION_NUMBER",
    }
)
_ALERTS: Final = frozenset({"TLSV1_ALERT_PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL"})
_NO_SUCH_NAME: Final = Failure("no_such_name", "has a name that does not exist")
_REFUSED: Final = Failure("refused", "refused the connection")
_RESET: Final = Failure("reset", "reset the connection")
_UNREACHABLE: Final = Failure("unreachable", "cannot be reached from here")
_BY_ERRNO: Final = {
    errno.ECONNREFUSED: _REFUSED,
    errno.ECONNRESET: _RESET,
    errno.EPIPE: _RESET,
    **dict.fromkeys(
        (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT),
        _UNREACHABLE,
    ),
}
_BY_STAGE: Final = {
    Stage.LOOKUP: Failure("name", "has a name that cannot be looked up at the moment"),
    Stage.CONNECT: Failure("connection", "could not be connected to"),
    Stage.TLS: Failure("tls", "ended the connection while setting up TLS"),
    Stage.ANSWER: Failure("no_answer", "ended the connection without an answer"),
    Stage.BODY: Failure("incomplete", "ended its answer before the image was complete"),
}


def failure_of(error: Exception, stage: Stage) -> Failure:
    """Why a fetch failed.

    Args:
        error: What the HTTP client or the resolver raised.
        stage: What the fetch was doing.
    """
    if isinstance(error, httpcore.ProxyError):
        return Failure("proxy", "could not be reached by the proxy of this service (--media-proxy)")
    known = next(filter(None, (_known(cause, stage) for cause in _chain(error))), None)
    if known is not None:
        return known
    if isinstance(error, HeadTooLargeError):
        return Failure("head", "answered with a head that is too large")
    if isinstance(error, TrailersTooLargeError):
        return Failure("trailers", "sent trailers that are too large")
    if isinstance(error, httpcore.RemoteProtocolError) and stage is Stage.ANSWER:
        disconnected = str(error).startswith("Server disconnected")
        return _BY_STAGE[stage] if disconnected else Failure("not_http", "did not answer in HTTP")
    return _BY_STAGE[stage]


def _known(error: BaseException, stage: Stage) -> Failure | None:
    """What an exception of the standard library says; None = nothing."""
    match error:
        case socket.gaierror():
            missing = error.errno in {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", None)}
            return _NO_SUCH_NAME if missing else _BY_STAGE[Stage.LOOKUP]
        case ssl.SSLCertVerificationError():
            return _CERTIFICATE.get(error.verify_code, _INVALID)
        case ssl.SSLError():
            return _tls_failure(error.reason or "", stage)
        case OSError():
            return _BY_ERRNO.get(error.errno or 0)
    return None


def _tls_failure(reason: str, stage: Stage) -> Failure:
    if reason in _NOT_TLS:
        return Failure(
            "not_tls", "does not use TLS on this port: the URL may have to begin with http://"
        )
    if reason in _ALERTS:
        return Failure("tls_version", "supports no TLS version that is secure (1.2 or 1.3)")
    return _BY_STAGE[stage] if "EOF" in reason else Failure("tls", "failed to set up TLS")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and its causes, the innermost last."""
    seen: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in seen:
        seen.append(found)
        yield found
        if isinstance(found, BaseExceptionGroup):
            yield from found.exceptions
        found = found.__cause__ or found.__context__
