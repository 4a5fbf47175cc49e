"""https: the pinned address is dialled, and the certificate is checked against the host's name all the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import datetime as dt
import http.server
from pathlib import Path
import ssl
import threading

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
import pytest

from inference_service.errors import ImageFetchError
from inference_service.media import fetch as fetch_module
from inference_service.media.fetch import FetchPolicy, MediaFetcher
from inference_service.media.url import AllowedHost


class Images(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = self.headers["host"].encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Tests stay silent."""


class QuietServer(http.server.ThreadingHTTPServer):
    def handle_error(self, *arguments: object) -> None:
        """A refused handshake is what the test wants."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for images.test, with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "images.test")])
    now = dt.datetime.now(tz=dt.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("images.test")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = tmp_path_factory.mktemp("tls") / "images.pem"
    path.write_bytes(built.public_bytes(serialization.Encoding.PEM) + private)
    return path


@pytest.fixture(scope="module")
def port(certificate: Path) -> Iterator[int]:
    server = QuietServer(("127.0.0.1", 0), Images)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


async def to_loopback(host: str, port: int) -> Sequence[str]:
    del host, port
    return ["127.0.0.1"]


def fetcher(port: int, *hosts: str) -> MediaFetcher:
    allowed = tuple(AllowedHost.parse(f"{host}:{port}") for host in hosts)
    return MediaFetcher(FetchPolicy(allowed_hosts=allowed), to_loopback)


@pytest.fixture
def trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def context() -> ssl.SSLContext:
        return ssl.create_default_context(cafile=certificate)

    monkeypatch.setattr(fetch_module, "ssl_context", context)


async def test_the_right_name_is_accepted(port: int, trusted: None) -> None:
    body = await fetcher(port, "images.test").fetch(f"https://images.test:{port}/a", field="x")
    assert body == f"images.test:{port}".encode()


async def test_another_name_on_the_same_address_is_refused(port: int, trusted: None) -> None:
    both = fetcher(port, "images.test", "other.test")
    await both.fetch(f"https://images.test:{port}/a", field="x")
    with pytest.raises(ImageFetchError):
        await both.fetch(f"https://other.test:{port}/a", field="x")


async def test_an_unknown_authority_is_refused(port: int) -> None:
    with pytest.raises(ImageFetchError):
        await fetcher(port, "images.test").fetch(f"https://images.test:{port}/a", field="x")
