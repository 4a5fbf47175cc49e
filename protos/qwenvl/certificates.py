"""TLS of gRPC from files in PEM, which are read again when they change: certificates are renewed without a restart."""

from __future__ import annotations

from dataclasses import dataclass
import logging
from pathlib import Path
import ssl
import threading
from typing import Final

import grpc


_LOG: Final = logging.getLogger(__name__)


class CertificateError(OSError):
    """Files cannot be used for TLS; the message names them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """What TLS needs, in PEM.

    Attributes:
        certificate: Own certificate, followed by those between it and the authority's; None = none is shown.
        key: Its private key.
        authority: Certificates of the authorities by which the peer's must be signed; None = the peer shows none (of a
            server: those of the system).
    """

    certificate: bytes | None
    key: bytes | None
    authority: bytes | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFiles:
    """The files of a `Certificates`; certificate and key are both there or both None."""

    certificate: Path | None = None
    key: Path | None = None
    authority: Path | None = None

    def read(self) -> Certificates:
        """Reads and checks the files.

        Raises:
            CertificateError: One cannot be read, is no PEM, or the key is not that of the certificate.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        named = ", ".join(str(path) for path in self._paths())
        try:
            if self.certificate is not None:
                # An empty password: else OpenSSL would ask the terminal for that of an encrypted key.
                context.load_cert_chain(self.certificate, self.key, password="")
            if self.authority is not None:
                context.load_verify_locations(self.authority)
            contents = [
                None if path is None else path.read_bytes()
                for path in (self.certificate, self.key, self.authority)
            ]
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
            words = str(reason).replace("_", " ").lower()
            raise CertificateError(f"cannot be used for TLS: {named}: {words}") from error
        certificate, key, authority = contents
        return Certificates(certificate=certificate, key=key, authority=authority)

    def version(self) -> tuple[tuple[int, int, int], ...]:
        """A value that differs when a file was replaced or changed.

        Raises:
            OSError: A file is gone.
        """
        found = [path.stat() for path in self._paths()]
        return tuple((status.st_mtime_ns, status.st_size, status.st_ino) for status in found)

    def _paths(self) -> list[Path]:
        return [path for path in (self.certificate, self.key, self.authority) if path is not None]


class WatchedCertificates:
    """Certificates that follow their files; what cannot be used is logged, and the ones before it stay.

    Raises:
        CertificateError: The files cannot be used.
    """

    def __init__(self, files: CertificateFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._version = self._version_now()
        self.current = files.read()

    def changed(self) -> Certificates | None:
        """The certificates, if their files have changed since the last call; thread-safe."""
        with self._lock:
            version = self._version_now()
            if version is None or version == self._version:
                return None
            # Also noted if they cannot be used: else every connection would read them.
            self._version = version
            try:
                self.current = self._files.read()
            except CertificateError as error:
                _LOG.warning("%s; the certificates stay unchanged", error)
                return None
            _LOG.info("the certificates were reloaded")
            return self.current

    def _version_now(self) -> tuple[tuple[int, int, int], ...] | None:
        try:
            return self._files.version()
        except OSError:  # being replaced
            return None


def server_credentials(files: CertificateFiles) -> grpc.ServerCredentials:
    """The credentials of a server: every new connection has the newest certificates.

    Args:
        files: Certificate and key; with an authority, clients need a certificate signed by it.

    Raises:
        CertificateError: The files cannot be used.
    """
    watched = WatchedCertificates(files)

    def newest() -> grpc.ServerCertificateConfiguration | None:
        found = watched.changed()
        return None if found is None else _configuration(found)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(watched.current),
        newest,  # type: ignore[arg-type]  # None = unchanged; the types of grpcio leave it out
        require_client_authentication=files.authority is not None,
    )


def channel_credentials(certificates: Certificates) -> grpc.ChannelCredentials:
    """The credentials of a channel; a channel cannot change them."""
    return grpc.ssl_channel_credentials(
        certificates.authority, certificates.key, certificates.certificate
    )


def _configuration(found: Certificates) -> grpc.ServerCertificateConfiguration:
    assert found.key is not None
    assert found.certificate is not None
    return grpc.ssl_server_certificate_configuration(
        [(found.key, found.certificate)], found.authority
    )
