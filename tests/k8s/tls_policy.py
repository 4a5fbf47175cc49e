"""TLS between the adapter and the service: what a schema cannot see.

Owns the rules about certificates, and about probes of a service that speaks TLS.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
import re

from inference_service.settings import ServiceSettings
from rest_adapter.settings import AdapterSettings
from tests.k8s.manifest_policy import port_of, programs, settings_of
from tests.k8s.manifest_set import Manifests, Object, Workload
from tests.k8s.pod_security import PROBES


def tls_ends(manifests: Manifests) -> Iterator[str]:
    """Both ends speak TLS and show a certificate, or none does; no file lacks another one."""
    ends = {}
    for workload, container in programs(manifests):
        values = settings_of(manifests, container)
        for name, others in values.NEEDS.items():
            for other in others:
                if getattr(values, name) and not getattr(values, other):
                    yield f"{workload.name}: {name} needs {other}"
        files = (
            (values.grpc_tls_cert_file, values.grpc_tls_client_ca_file)
            if isinstance(values, ServiceSettings)
            else (values.grpc_client_cert_file, values.grpc_ca_file)
        )
        ends[f"{workload.name}/{container['name']}"] = tuple(file is not None for file in files)
    if not set(ends.values()) <= {(True, True)} and not set(ends.values()) <= {(False, False)}:
        yield f"certificate and authority are set: {ends}"


def tls_probes(manifests: Manifests) -> Iterator[str]:
    """The kubelet speaks no TLS: it probes the plaintext address for health."""
    for workload, container in programs(manifests):
        values = settings_of(manifests, container)
        if not isinstance(values, ServiceSettings):
            continue
        address = values.health_address
        if values.grpc_tls_cert_file is None:
            address = address or values.grpc_address
        for probe in PROBES:
            port = container.get(probe, {}).get("grpc", {}).get("port")
            if address is None or port != port_of(address):
                yield f"{workload.name}: the {probe} asks port {port}, plaintext is {address}"


def tls_files(manifests: Manifests) -> Iterator[str]:
    """The files of a program are those of a Secret that a certificate fills, for its purpose and with its names."""
    certificates = {
        item["spec"]["secretName"]: item["spec"] for item in manifests.of_kind("Certificate")
    }
    for workload, container in programs(manifests):
        values = settings_of(manifests, container)
        server = isinstance(values, ServiceSettings)
        files = [path for path in _files(values) if path]
        secrets = {_secret_of(workload, container, path) for path in files}
        if not files:
            continue
        found = certificates.get(next(iter(secrets)) or "")
        if len(secrets) != 1 or found is None:
            yield f"{workload.name}: {files} are of no certificate"
            continue
        if {PurePosixPath(path).name for path in files} != {"tls.crt", "tls.key", "ca.crt"}:
            yield f"{workload.name}: {files} are not the names in the Secret"
        if found["usages"] != ["server auth" if server else "client auth"]:
            yield f"{workload.name}: its certificate is for {found['usages']}"
        if isinstance(values, AdapterSettings):
            called = re.sub(r"^dns:///|:\d+$", "", values.grpc_target)
            names = {
                name
                for spec in certificates.values()
                if "server auth" in spec.get("usages", [])
                for name in spec["dnsNames"]
            }
            if called not in names:
                yield f"{workload.name}: calls {called}, but the service's certificate has {sorted(names)}"


def certificate_times(manifests: Manifests) -> Iterator[str]:
    """A certificate is renewed well before it ends, by an issuer that is there, for names of its own namespace."""
    issuers = {item["metadata"]["name"] for item in manifests.of_kind("Issuer")}
    for item in manifests.of_kind("Certificate"):
        spec, name = item["spec"], item["metadata"]["name"]
        hours = [int(spec[field].rstrip("h")) for field in ("duration", "renewBefore")]
        if not 7 * 24 <= hours[1] < hours[0] / 2:
            yield f"Certificate {name}: lasts {hours[0]} h and is renewed {hours[1]} h before"
        if not spec.get("isCA") and spec.get("privateKey", {}).get("rotationPolicy") != "Always":
            yield f"Certificate {name}: is renewed with the old key"
        others = [
            one
            for one in spec.get("dnsNames", [])
            if one.split(".")[1:2] not in ([], [_home(item)])
        ]
        if others:
            yield f"Certificate {name}: {others} are names in other namespaces"
        if spec["issuerRef"]["name"] not in issuers:
            yield f"Certificate {name}: there is no Issuer {spec['issuerRef']['name']}"


def certificate_authority(manifests: Manifests) -> Iterator[str]:
    """The issuer signs with the key of a certificate that may sign; the certificates of the programs may not."""
    issuers = manifests.of_kind("Issuer")
    signing = {item["spec"]["ca"]["secretName"] for item in issuers if "ca" in item["spec"]}
    for item in manifests.of_kind("Certificate"):
        is_authority = item["spec"]["secretName"] in signing
        if bool(item["spec"].get("isCA")) != is_authority or is_authority == (
            "dnsNames" in item["spec"]
        ):
            yield f"Certificate {item['metadata']['name']}: authority {not is_authority}"
    if signing - {item["spec"]["secretName"] for item in manifests.of_kind("Certificate")}:
        yield f"nothing fills {sorted(signing)}"


def _home(item: Object) -> str:
    namespace: str = item["metadata"]["namespace"]
    return namespace


def _files(values: ServiceSettings | AdapterSettings) -> tuple[str | None, ...]:
    if isinstance(values, ServiceSettings):
        return (
            values.grpc_tls_cert_file,
            values.grpc_tls_key_file,
            values.grpc_tls_client_ca_file,
        )
    return (values.grpc_client_cert_file, values.grpc_client_key_file, values.grpc_ca_file)


def _secret_of(workload: Workload, container: Object, path: str) -> str | None:
    """The Secret whose volume has a file."""
    volumes = {volume["name"]: volume for volume in workload.pod["volumes"]}
    for mount in container["volumeMounts"]:
        if PurePosixPath(path).parent == PurePosixPath(mount["mountPath"]):
            name: str | None = volumes[mount["name"]].get("secret", {}).get("secretName")
            return name
    return None


RULES = (tls_ends, tls_probes, tls_files, certificate_times, certificate_authority)
