"""TLS of the gRPC API, and certificates that are renewed while the service runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import os
from pathlib import Path
import subprocess
import sys

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
import pytest

from qwenvl.aio import AsyncService
from qwenvl.certificates import (
    CertificateError,
    CertificateFiles,
    Certificates,
    WatchedCertificates,
    channel_credentials,
)
from rest_adapter.service_connection import ServiceConnection
from rest_adapter.settings import AdapterSettings
from tests.grpc_api.asking import spec_of, until
from tests.grpc_api.conftest import Service
from tests.support.certificates import Authority


@dataclass
class Folder:
    """Files as a Secret has them: tls.crt, tls.key, ca.crt."""

    path: Path

    def put(self, authority: Authority, host: str) -> Folder:
        """Replaces them, as the kubelet does: all at once."""
        both = authority.certify(host).read_bytes()
        certificate, begin, key = both.partition(b"-----BEGIN PRIVATE KEY-----")
        self.path.mkdir(exist_ok=True)
        for name, data in (
            ("tls.crt", certificate),
            ("tls.key", begin + key),
            ("ca.crt", authority.file.read_bytes()),
        ):
            new = self.path / f"{name}.new"
            new.write_bytes(data)
            new.replace(self.path / name)
        return self

    @property
    def files(self) -> CertificateFiles:
        certificate, key, authority = (self.path / n for n in ("tls.crt", "tls.key", "ca.crt"))
        return CertificateFiles(certificate=certificate, key=key, authority=authority)

    def of_service(self, *, mutual: bool = True) -> dict[str, str]:
        """The settings of the service."""
        files = {"grpc_tls_cert_file": "tls.crt", "grpc_tls_key_file": "tls.key"}
        files |= {"grpc_tls_client_ca_file": "ca.crt"} if mutual else {}
        return {name: str(self.path / file) for name, file in files.items()}

    def of_adapter(self, target: str) -> AdapterSettings:
        return AdapterSettings(
            grpc_target=target,
            grpc_ca_file=str(self.path / "ca.crt"),
            grpc_client_cert_file=str(self.path / "tls.crt"),
            grpc_client_key_file=str(self.path / "tls.key"),
        )


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def server(authority: Authority, tmp_path: Path) -> Folder:
    return Folder(tmp_path / "server").put(authority, "localhost")


@pytest.fixture
def client(authority: Authority, tmp_path: Path) -> Folder:
    return Folder(tmp_path / "client").put(authority, "adapter")


def target_of(service: Service) -> str:
    return f"localhost:{service.front.ports['grpc']}"


async def ask(service: Service, credentials: grpc.ChannelCredentials | None) -> str:
    """The text of an answer, or the status of the failure."""
    calls = AsyncService(target_of(service), credentials=credentials, timeout_s=10)
    try:
        answer = await calls.create_chat(spec_of("hello"))
        return answer.choices[0].text
    except grpc.aio.AioRpcError as error:
        return error.code().name
    finally:
        await calls.close()


async def test_mutual_tls_lets_in_who_has_a_certificate(open_service, server, client) -> None:
    service = await open_service(**server.of_service())
    known = client.files.read()
    nameless = Certificates(certificate=None, key=None, authority=known.authority)
    assert await ask(service, channel_credentials(known)) == "hello"
    assert await ask(service, channel_credentials(nameless)) == "UNAVAILABLE"
    assert await ask(service, None) == "UNAVAILABLE"


async def test_a_certificate_of_another_authority_is_refused(
    open_service, server, tmp_path: Path
) -> None:
    service = await open_service(**server.of_service())
    stranger = Folder(tmp_path / "stranger").put(Authority(tmp_path, "Other"), "adapter")
    theirs, ours = stranger.files.read(), server.files.read()
    mixed = Certificates(certificate=theirs.certificate, key=theirs.key, authority=ours.authority)
    assert await ask(service, channel_credentials(mixed)) == "UNAVAILABLE"
    # And the client does not speak to a service that it cannot know.
    assert await ask(service, channel_credentials(theirs)) == "UNAVAILABLE"


async def test_tls_without_certificates_of_clients(open_service, server) -> None:
    service = await open_service(**server.of_service(mutual=False))
    known = server.files.read()
    nameless = Certificates(certificate=None, key=None, authority=known.authority)
    assert await ask(service, channel_credentials(nameless)) == "hello"


async def test_probes_and_the_admin_address_stay_plaintext(open_service, server) -> None:
    service = await open_service(health_address="127.0.0.1:0", **server.of_service())
    for name in ("health", "admin"):
        async with grpc.aio.insecure_channel(service.target(name)) as channel:
            request = health_pb2.HealthCheckRequest(service="readiness")
            answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=20)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_renewed_certificates_count_for_new_connections(
    open_service, server, client, tmp_path: Path
) -> None:
    service = await open_service(**server.of_service())
    old = channel_credentials(client.files.read())
    running = AsyncService(target_of(service), credentials=old, timeout_s=20)
    service.engine.hold_at = 2
    stream = await running.stream_chat(spec_of("longer"))
    renewed = Authority(tmp_path, "Renewed")
    server.put(renewed, "localhost")
    client.put(renewed, "adapter")
    service.engine.resume.set()
    assert await ask(service, channel_credentials(client.files.read())) == "hello"
    assert await ask(service, old) == "UNAVAILABLE"
    assert [event async for event in stream]  # not cut
    await running.close()


async def test_a_key_of_another_certificate_changes_nothing(
    open_service, server, client, authority, caplog
) -> None:
    service = await open_service(**server.of_service())
    (server.path / "tls.key").write_bytes((client.path / "tls.key").read_bytes())
    assert await ask(service, channel_credentials(client.files.read())) == "hello"
    assert "the certificates stay unchanged" in caplog.text
    server.put(authority, "localhost")
    assert await ask(service, channel_credentials(client.files.read())) == "hello"
    assert await ask(service, channel_credentials(client.files.read())) == "hello"


async def test_the_adapter_follows_renewed_certificates(
    open_service, server, client, tmp_path: Path
) -> None:
    service = await open_service(**server.of_service())
    connection = ServiceConnection(client.of_adapter(target_of(service)))
    connection.open()
    assert (await connection.service.create_chat(spec_of("one"))).choices[0].text == "one"
    service.engine.hold_at = 2
    stream = await connection.service.stream_chat(spec_of("longer"))
    renewed = Authority(tmp_path, "Renewed")
    server.put(renewed, "localhost")
    client.put(renewed, "adapter")
    before = connection.service
    watched = WatchedCertificates(client.files)
    connection.renew(watched.current)
    assert connection.service is not before
    service.engine.resume.set()
    assert (await connection.service.create_chat(spec_of("two"))).choices[0].text == "two"
    assert [event async for event in stream]
    await connection.close()


async def test_the_adapter_notices_new_files_by_itself(
    open_service, server, client, authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rest_adapter.service_connection._POLL_S", 0.05)
    service = await open_service(**server.of_service())
    connection = ServiceConnection(client.of_adapter(target_of(service)))
    connection.open()
    before = connection.service
    client.put(authority, "adapter")
    await until(lambda: connection.service is not before)
    assert (await connection.service.create_chat(spec_of("new"))).choices[0].text == "new"
    await connection.close()


def spoil_key(folder: Folder) -> str:
    (folder.path / "tls.key").write_text("no key")
    return "tls.key"


def swap_key(folder: Folder) -> str:
    other = Folder(folder.path.parent / "other").put(Authority(folder.path.parent, "x"), "x")
    (other.path / "tls.key").replace(folder.path / "tls.key")
    return "key values mismatch"


def spoil_authority(folder: Folder) -> str:
    (folder.path / "ca.crt").write_text("no certificate")
    return "ca.crt"


def remove_certificate(folder: Folder) -> str:
    (folder.path / "tls.crt").unlink()
    return "no such file"


@pytest.mark.parametrize("spoil", [spoil_key, swap_key, spoil_authority, remove_certificate])
def test_files_that_cannot_be_used_are_named(
    server: Folder, spoil: Callable[[Folder], str]
) -> None:
    words = spoil(server)
    with pytest.raises(CertificateError, match=words):
        server.files.read()


@pytest.mark.parametrize(
    ("module", "variables", "words"),
    [
        ("inference_service", {"GRPC_TLS_CERT_FILE": "tls.crt"}, "needs --grpc-tls-key-file"),
        ("inference_service", {"GRPC_TLS_CLIENT_CA_FILE": "ca.crt"}, "needs --grpc-tls-cert-file"),
        ("inference_service", {"GRPC_TLS_KEY_FILE": "tls.key"}, "needs --grpc-tls-cert-file"),
        ("rest_adapter", {"GRPC_CLIENT_CERT_FILE": "tls.crt"}, "needs --grpc-client-key-file"),
        (
            "rest_adapter",
            {"GRPC_CLIENT_CERT_FILE": "tls.crt", "GRPC_CLIENT_KEY_FILE": "tls.key"},
            "needs --grpc-ca-file",
        ),
        ("rest_adapter", {"GRPC_CA_FILE": "tls.key"}, "cannot be used for TLS"),
        ("qwenvl.cli", {"GRPC_CA_FILE": "ca.crt"}, "programs of their own"),
    ],
)
def test_settings_that_do_not_go_together_end_the_start(
    server: Folder, module: str, variables: dict[str, str], words: str
) -> None:
    files = {f"QWENVL_{name}": str(server.path / file) for name, file in variables.items()}
    done = subprocess.run(
        [sys.executable, "-m", module, *(["serve"] if module == "qwenvl.cli" else [])],
        env=os.environ | files,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert words in done.stderr
