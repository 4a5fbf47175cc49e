"""`qwenvl serve [MODEL]`: run the inference service and the REST adapter on one machine.

Everything that can be checked is checked first, so that no API opens for a command that cannot work.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import fields
import os
from pathlib import Path

from inference_service.any_model.facts import ModelFacts, handed_over
from inference_service.commands.console import Console
from inference_service.commands.devices import find_device, may_exist
from inference_service.commands.pair import Pair
from inference_service.commands.ports import PortProblem, claimed, reserve
from inference_service.commands.report import Assessment, assess
from inference_service.commands.subject import Subject, read_subject
from inference_service.families.size_limits import SizeError, Sizes, check_sizes
from inference_service.hub.resolve import (
    ModelNotFound,
    hub_names,
    is_hub_id,
    obtain_model,
    resolve_model,
)
from inference_service.hub.snapshot import SnapshotError, verify_weights
from inference_service.media.policy import FetchPolicy
from inference_service.model_spec import ModelSpec
from inference_service.settings import ServiceSettings
from qwenvl.addresses import Address, parse_address
from qwenvl.command_line import EXAMPLES
from qwenvl.environment import ENV_PREFIX, unknown_variables
from qwenvl.flags import is_true
from qwenvl.interrupts import ending_at_once
from qwenvl.safe_path import child_environment


_DEFAULT_HTTP_ADDRESS = "127.0.0.1:8000"
_PLAYGROUND = ENV_PREFIX + "PLAYGROUND"
_EXAMPLES = (
    EXAMPLES
    + """\
  qwenvl serve                                     the embedded demo model, on the CPU
  qwenvl serve Qwen/Qwen3-VL-4B-Instruct           from ModelScope; --hub huggingface for Hugging Face
  qwenvl serve ./my-model --device cuda:0 --max-model-len 32768
  qwenvl serve --port 8010 --grpc-address 127.0.0.1:50061   beside another server
  qwenvl serve --host 0.0.0.0 --api-key-file keys.txt       for other machines"""
)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "serve",
        usage="%(prog)s [MODEL] [flags]",
        help="serve a model over gRPC and REST",
        description="Serve a model over gRPC and an OpenAI-compatible REST API. Every flag is also a variable: "
        "--max-num-seqs is QWENVL_MAX_NUM_SEQS. Settings of the REST adapter that have no flag here are read from "
        "their variables (see `rest-adapter --help`).",
        epilog=_EXAMPLES,
    )
    parser.add_argument(
        "model", nargs="?", help="model directory or hub id (default: the embedded demo model)"
    )
    rest = parser.add_argument_group("REST API")
    rest.add_argument(
        "--http-address",
        metavar="HOST:PORT",
        help=f"address (host:port) of the REST API (default: {_DEFAULT_HTTP_ADDRESS})",
    )
    rest.add_argument("--host", help="host of --http-address alone")
    rest.add_argument("--port", metavar="N", help="port of --http-address alone")
    rest.add_argument(
        "--allowed-origins",
        nargs="+",
        metavar="ORIGIN",
        help="web pages that may call the REST API (default: those of this machine); * = all",
    )
    rest.add_argument(
        "--playground",
        action=argparse.BooleanOptionalAction,
        help="serve a web page at / that asks the API (default: on)",
    )
    rest.add_argument(
        "--response-store",
        metavar="STORE",
        help="where /v1/responses keeps responses: memory, or the path of an SQLite file (default: none)",
    )
    ServiceSettings.add_flags(parser, skip={"model"})
    parser.set_defaults(run=run)


def run(flags: Mapping[str, object]) -> int:
    """Runs the command; returns the exit status."""
    explicit = {name: value for name, value in flags.items() if value is not None}
    with ExitStack() as stack:
        with ending_at_once():
            settings, addresses = _settle(explicit)
            console = Console(settings.log_level, settings.log_format)
            _claim(stack, addresses)
            environment = build_environment(explicit, addresses)
            pair = stack.enter_context(
                Pair(addresses, drain_s=settings.drain_timeout_s, console=console)
            )
            pair.start_adapter(environment)
            subject = _prepare(pair, environment, settings, console)
            pair.check_adapter()
            _report(subject, settings, console)
        return pair.run(lambda: _banner(settings, addresses, environment))


def _settle(explicit: Mapping[str, object]) -> tuple[ServiceSettings, dict[str, Address]]:
    """The settings and all addresses, as far as they can be checked without the model.

    Raises:
        SystemExit: Something is wrong; the message names flag, value and variable.
    """
    http_address = _http_address(explicit)
    settings = ServiceSettings.load(explicit, os.environ)
    settings.check_files()
    _check_plaintext(settings)
    _check_media(settings)
    _check_device(settings)
    return settings, _reserve(settings, http_address)


def _claim(stack: ExitStack, addresses: Mapping[str, Address]) -> None:
    try:
        stack.enter_context(claimed(addresses))
    except PortProblem as problem:
        raise SystemExit(_problem(problem)) from None


def _prepare(
    pair: Pair, environment: dict[str, str], settings: ServiceSettings, console: Console
) -> Subject:
    """Finds or fetches the model, and starts the service with it.

    Args:
        pair: Starts it.
        environment: The service's; what it needs to find the model is added.
        settings: The settings.
        console: For the progress of a download.
    """
    fetches = settings.model is not None and is_hub_id(settings.model)
    if fetches:
        pair.check_adapter()
    directory, subject = _complete_model(settings, console)
    if settings.model is not None and fetches:
        # The service finds it by its place, under the names that it would give it by its id.
        names = settings.served_model_name or hub_names(settings.model)
        environment[ENV_PREFIX + "MODEL"] = str(directory)
        environment[ENV_PREFIX + "SERVED_MODEL_NAME"] = ",".join(names)
    if isinstance(subject, ModelFacts):
        environment |= handed_over(directory, subject)
    pair.start_service(environment)
    return subject


def _banner(
    settings: ServiceSettings, addresses: Mapping[str, Address], environment: Mapping[str, str]
) -> Iterable[str]:
    from inference_service.commands.banner import Banner  # noqa: PLC0415 - imports gRPC

    banner = Banner(addresses, api_key_file=settings.api_key_file, has_page=has_page(environment))
    return banner.lines()


def _http_address(explicit: Mapping[str, object]) -> Address:
    """The address of the REST API, from `--http-address` or from `--host` and `--port`."""
    flag = explicit.get("http_address")
    for name in ("http_address", "host", "port"):
        if not str(explicit.get(name, "?")).strip():
            raise SystemExit(f"--{name.replace('_', '-')}= (QWENVL_HTTP_ADDRESS): is empty")
    text = str(flag or os.environ.get(ENV_PREFIX + "HTTP_ADDRESS") or _DEFAULT_HTTP_ADDRESS)
    host, port = explicit.get("host"), explicit.get("port")
    if flag and (host or port):
        raise SystemExit(
            "--http-address already has a host and a port; leave out --host and --port"
        )
    try:
        address = parse_address(text)
    except ValueError as error:
        raise SystemExit(f"--http-address={text} (QWENVL_HTTP_ADDRESS): {error}") from None
    shown = str(host or address.host).strip()
    if ":" in shown and not shown.startswith("["):
        shown = f"[{shown}]"
    try:
        return parse_address(f"{shown}:{address.port if port is None else str(port).strip()}")
    except ValueError as error:
        name, value = ("port", port) if host is None else ("host", host)
        raise SystemExit(f"--{name}={value} (QWENVL_HTTP_ADDRESS): {error}") from None


def _check_plaintext(settings: ServiceSettings) -> None:
    """Both processes are on this machine, so that TLS between them would protect nothing."""
    text = "is for inference-service and rest-adapter as programs of their own"
    if settings.grpc_tls_cert_file is not None:
        raise SystemExit(settings.problem("grpc_tls_cert_file", settings.grpc_tls_cert_file, text))
    if path := os.environ.get(ENV_PREFIX + "GRPC_CA_FILE"):
        raise SystemExit(f"{ENV_PREFIX}GRPC_CA_FILE={path} {text}")


def _check_media(settings: ServiceSettings) -> None:
    """Checks the media policy; the message names the setting that is wrong by itself."""
    try:
        FetchPolicy.from_settings(settings)
    except ValueError as problem:
        for name in ServiceSettings.model_fields:
            value = getattr(settings, name)
            try:
                FetchPolicy.from_settings(ServiceSettings.model_validate({name: value}))
            except ValueError as error:
                raise SystemExit(settings.problem(name, value, str(error))) from None
        raise SystemExit(f"invalid settings: {problem}") from None


def _check_device(settings: ServiceSettings) -> None:
    if find_device(settings.device, os.environ) is None and not may_exist(
        settings.device, os.environ
    ):
        text = "there is no such GPU on this machine; --device cpu serves without one"
        raise SystemExit(settings.problem("device", settings.device, text))


def _reserve(settings: ServiceSettings, http_address: Address) -> dict[str, Address]:
    """All addresses of both processes, with free ports."""
    addresses = {"http_address": http_address}
    for name in ServiceSettings.model_fields:
        if name.endswith("_address") and (text := getattr(settings, name)) is not None:
            addresses[name] = parse_address(text)
    try:
        return reserve(addresses)
    except PortProblem as problem:
        raise SystemExit(_problem(problem)) from None


def _problem(problem: PortProblem) -> str:
    return ServiceSettings.problem(problem.name, str(problem.address), str(problem))


def build_environment(
    explicit: Mapping[str, object], addresses: Mapping[str, Address]
) -> dict[str, str]:
    """The environment of both processes: their settings as `QWENVL_*` variables."""
    unknown = unknown_variables(os.environ)
    known = {name: value for name, value in os.environ.items() if name not in unknown}
    environment = child_environment(known)
    settings = {name: _as_text(value) for name, value in explicit.items()}
    settings |= {name: str(address) for name, address in addresses.items()}
    for name, text in settings.items():
        if name not in ("host", "port"):
            environment[ENV_PREFIX + name.upper()] = text
    if not environment.get(ENV_PREFIX + "GRPC_TARGET"):
        environment[ENV_PREFIX + "GRPC_TARGET"] = f"dns:///{addresses['grpc_address'].local()}"
    return environment


def has_page(environment: Mapping[str, str]) -> bool:
    """Whether the adapter will serve the playground; it has found the value valid."""
    return is_true(environment.get(_PLAYGROUND) or "true")


def _as_text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _complete_model(settings: ServiceSettings, console: Console) -> tuple[Path, Subject]:
    """The directory and configuration of the model; a hub id that is not on this machine is fetched."""
    model, hub, revision = settings.model, settings.hub, settings.revision
    try:
        if model is not None and is_hub_id(model):
            directory = obtain_model(model, hub=hub, revision=revision, tell=console.say)
        else:
            directory = resolve_model(model).directory
        verify_weights(directory)
        return directory, read_subject(directory, settings.backend)
    except (ModelNotFound, SnapshotError, ValueError, OSError) as error:
        raise SystemExit(f"cannot serve this model: {error}") from None


def _report(spec: Subject, settings: ServiceSettings, console: Console) -> None:
    """Prints the report of `qwenvl check`; only the engine measures what really fits."""
    wanted, window = settings.max_model_len, spec.max_position_embeddings
    if wanted is not None and wanted > window:
        text = f"exceeds the model's context window of {window} tokens"
        raise SystemExit(settings.problem("max_model_len", wanted, text))
    device = find_device(settings.device, os.environ)
    if device is None:
        return
    found = assess(spec, device, settings)
    if isinstance(spec, ModelSpec):
        _refuse_impossible(spec, found, settings)
    console.say(*found.lines)


def _refuse_impossible(spec: ModelSpec, found: Assessment, settings: ServiceSettings) -> None:
    """Refuses sizes that the device cannot hold."""
    device = found.device
    try:
        check_sizes(
            spec,
            found.model.dtype,
            Sizes(**{field.name: getattr(settings, field.name) for field in fields(Sizes)}),
            device=device.name,
            device_bytes=found.usable_bytes,
            on_gpu=device.is_gpu,
        )
    except SizeError as error:
        problem = settings.problem(error.setting, error.value, error.text)
        raise SystemExit(problem) from None
