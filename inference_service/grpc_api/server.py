"""Runs the gRPC servers around a backend: start, drain and stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
import logging
from pathlib import Path
import signal

import grpc
import grpc.aio
from grpc_channelz.v1 import channelz_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from inference_service.backend.base import Backend, BackendStartError, BackendState
from inference_service.grpc_api.admin_service import AdminServicer, Drain
from inference_service.grpc_api.answer_budget import COPIES, AnswerBudget
from inference_service.grpc_api.backend_metrics import open_metrics
from inference_service.grpc_api.call_metrics import MetricsInterceptor
from inference_service.grpc_api.channelz import add_channelz
from inference_service.grpc_api.chat_service import ChatServicer
from inference_service.grpc_api.completion_service import CompletionServicer
from inference_service.grpc_api.connections import Connections
from inference_service.grpc_api.decision_service import DecisionServicer
from inference_service.grpc_api.fair_room import Line
from inference_service.grpc_api.health import Health
from inference_service.grpc_api.interceptors import CallInterceptor
from inference_service.grpc_api.load_report import LoadReports
from inference_service.grpc_api.message_budget import MessageBudget, Patience
from inference_service.grpc_api.model_service import ModelServicer
from inference_service.grpc_api.reflection import add_reflection
from inference_service.grpc_api.tokenize_service import TokenizeServicer
from inference_service.grpc_api.wire import WireLimits
from inference_service.settings import ServiceSettings
from qwenvl.addresses import listen, parse_address, why_not
from qwenvl.certificates import CertificateFiles, server_credentials
from qwenvl.descriptors import raise_descriptor_limit
from qwenvl.inference.v1 import (
    admin_service_pb2,
    admin_service_pb2_grpc,
    chat_service_pb2,
    chat_service_pb2_grpc,
    completion_service_pb2,
    completion_service_pb2_grpc,
    decision_service_pb2,
    decision_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    tokenize_service_pb2,
    tokenize_service_pb2_grpc,
)
from qwenvl.keys import KeyFile
from qwenvl.limits import MAX_MESSAGE_BYTES
from qwenvl.observability.metrics_server import MetricsServer
from qwenvl.stop_signals import StopSignals


_SERVICES = tuple(
    file.DESCRIPTOR.services_by_name[name].full_name
    for file, name in (
        (chat_service_pb2, "ChatService"),
        (completion_service_pb2, "CompletionService"),
        (decision_service_pb2, "DecisionService"),
        (model_service_pb2, "ModelService"),
        (tokenize_service_pb2, "TokenizeService"),
        (admin_service_pb2, "AdminService"),
    )
)
_SMALL_MESSAGE_BYTES = 2**20
"""Limit of the admin and the health address; the largest request there names 256 ids."""
_ADDRESSES = 3
_MAX_CONNECTIONS = 2048
"""Connections of one address, if the process may have so many."""
_OTHER_DESCRIPTORS = 1024
"""What is kept free of connections, for pixels, workers and downloads."""
_OPEN_BUDGET_MESSAGES = 4
_OPEN_ANSWERS_BYTES = 2**24
_OPEN_TIMEOUT_S = 5.0
_WAIT_FOR_ROOM_S = 10.0
_PATIENCE_S = 1.0
_UNREAD_PART = 4
"""This part of the room for answers may be held by those that were not read in time."""
_OPTIONS = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # A second server on the port must fail, not share it.
    ("grpc.so_reuseport", 0),
    # Clients may send pings while a long prefill sends nothing (gRPC A8).
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_ping_strikes", 0),
    # A message that nobody reads yet takes one window, not the megabytes of an estimated bandwidth; the window of a
    # message that is read grows with it.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 2**16),
    ("grpc.max_concurrent_streams", 1024),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 300_000),
    # Ends connections whose peer vanished without a FIN.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    (
        "grpc.http2.ping_timeout_ms",
        20_000,
    ),  # the longer one of the two counts, and is a minute by default
)

AddServices = Callable[[grpc.aio.Server, Drain | None], None]

logger = logging.getLogger(__name__)


class Front:
    """The gRPC servers of the service around one backend."""

    def __init__(self, settings: ServiceSettings, backend: Backend) -> None:
        self._settings = settings
        self._backend = backend
        self._stopping = False
        self._servers: list[grpc.aio.Server] = []
        self._hurry = asyncio.Event()
        self._ended = asyncio.Event()
        path = settings.api_key_file
        self._keys = KeyFile(Path(path)) if path else None
        self._limits = _limits(settings, self._keys)
        self._max_connections = _max_connections()
        self._connections = Connections(
            self._max_connections * 3 // 4,
            self._limits.answers.limit_bytes // (_UNREAD_PART * COPIES),
        )
        self._health = Health(_SERVICES, self._connections.is_used)
        self._load = LoadReports(backend).end
        self._watch: asyncio.Task[None] | None = None
        self._metrics: MetricsServer | None = None
        self.ports: dict[str, int] = {}

    async def start(self) -> None:
        """Opens the ports; the caller starts the backend.

        Raises:
            OSError: An address cannot be bound.
        """
        settings = self._settings
        if settings.metrics_address:
            self._metrics = open_metrics(settings, self._backend)
            self.ports["metrics"] = self._metrics.port
        self._backend.on_state_change(self._health.on_state)
        try:
            await self._open("grpc", settings.grpc_address, self._add_all, drain=None)
            if settings.admin_address:
                await self._open("admin", settings.admin_address, self._add_admin, drain=self.stop)
            if settings.health_address:
                await self._open("health", settings.health_address, self._add_health, drain=None)
        except OSError:
            await self._close_servers(grace_s=0.0)
            raise
        self._watch = asyncio.create_task(self._connections.watch(self.ports))

    @property
    def stopping(self) -> bool:
        """Whether the service is ending."""
        return self._stopping

    async def wait(self) -> None:
        """Returns when the service has ended."""
        await self._ended.wait()

    async def stop(self, budget_s: float) -> None:
        """Refuses new requests, waits for running ones up to `budget_s` seconds, then ends everything."""
        if self._stopping:
            await self._ended.wait()
            return
        self._stopping = True
        waits = [
            asyncio.ensure_future(self._backend.drain(budget_s)),
            asyncio.ensure_future(self._hurry.wait()),
        ]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        await (
            self._backend.close()
        )  # what is still running ends with an error, not with a cut connection
        # The transport may still have to send answers and errors.
        await self._close_servers(grace_s=1.0)
        self._ended.set()

    async def _close_servers(self, grace_s: float) -> None:
        if self._watch is not None:
            self._watch.cancel()
        await asyncio.gather(*(server.stop(grace=grace_s) for server in self._servers))
        if self._metrics is not None:
            await asyncio.to_thread(self._metrics.close)

    def hurry(self) -> None:
        """Lets a running `stop` no longer wait for requests."""
        self._hurry.set()

    async def _open(
        self, name: str, address: str, add: AddServices, *, drain: Drain | None
    ) -> None:
        max_bytes = MAX_MESSAGE_BYTES if name == "grpc" else _SMALL_MESSAGE_BYTES
        calls = CallInterceptor(
            self._keys,
            self._backend.check_admission,
            self._limits,
            _open_limits(self._settings, max_bytes),
            self._settings.request_timeout_s,
            connections=self._connections,
            load=self._load,
        )
        server = grpc.aio.server(
            interceptors=(MetricsInterceptor(self._keys), calls),
            options=self._options(max_bytes),
        )
        self._servers.append(server)
        add(server, drain)
        credentials = _credentials(self._settings) if name == "grpc" else None
        try:
            self.ports[name] = (
                server.add_insecure_port(address)
                if credentials is None
                else server.add_secure_port(address, credentials)
            )
        except RuntimeError:
            setting = f"{name}_address"
            raise OSError(self._settings.problem(setting, address, _refused(address))) from None
        await server.start()
        logger.info("%s listens on %s", name, address)

    def _options(self, max_bytes: int) -> list[tuple[str, int]]:
        """The options of one server; they limit every connection, whether its client has a key or not."""
        settings = self._settings
        # After its age a connection takes no new calls; those that are running may take their full time.
        grace_s = settings.request_timeout_s + settings.send_timeout_s
        return [
            *_OPTIONS,
            ("grpc.max_receive_message_length", max_bytes),
            ("grpc.max_allowed_incoming_connections", self._max_connections),
            ("grpc.max_connection_age_ms", _milliseconds(settings.max_connection_age_s)),
            ("grpc.max_connection_age_grace_ms", _milliseconds(grace_s)),
        ]

    def _add_all(self, server: grpc.aio.Server, drain: Drain | None) -> None:
        chat = ChatServicer(self._backend, self._settings)
        chat_service_pb2_grpc.add_ChatServiceServicer_to_server(chat, server)
        completion = CompletionServicer(self._backend, self._settings)
        completion_service_pb2_grpc.add_CompletionServiceServicer_to_server(completion, server)
        decisions = DecisionServicer(self._backend, self._settings)
        decision_service_pb2_grpc.add_DecisionServiceServicer_to_server(decisions, server)
        models = ModelServicer(self._backend)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(models, server)
        tokenize = TokenizeServicer(self._backend)
        tokenize_service_pb2_grpc.add_TokenizeServiceServicer_to_server(tokenize, server)
        self._add_admin(server, drain)

    def _add_admin(self, server: grpc.aio.Server, drain: Drain | None) -> None:
        admin = AdminServicer(self._backend, self._settings, drain)
        admin_service_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)
        self._add_health(server, drain)
        names = [*_SERVICES, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name]
        if drain is not None:  # the admin address; it tells the addresses of all callers
            add_channelz(server)
            names.append(channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name)
        add_reflection(names, server)

    def _add_health(self, server: grpc.aio.Server, drain: Drain | None) -> None:
        del drain
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)


def _max_connections() -> int:
    """Connections of one address, so that those of all leave descriptors for the rest."""
    limit = raise_descriptor_limit(_ADDRESSES * _MAX_CONNECTIONS + _OTHER_DESCRIPTORS)
    return (limit - min(_OTHER_DESCRIPTORS, limit // 2)) // _ADDRESSES


def _credentials(settings: ServiceSettings) -> grpc.ServerCredentials | None:
    """TLS of the gRPC API; None = plaintext. The other addresses are for this machine and its probes."""
    if settings.grpc_tls_cert_file is None or settings.grpc_tls_key_file is None:
        return None
    authority = settings.grpc_tls_client_ca_file
    return server_credentials(
        CertificateFiles(
            certificate=Path(settings.grpc_tls_cert_file),
            key=Path(settings.grpc_tls_key_file),
            authority=None if authority is None else Path(authority),
        )
    )


def _limits(settings: ServiceSettings, keys: KeyFile | None) -> WireLimits:
    """One for all servers of the process: they share the room for messages."""
    budget_bytes = settings.message_budget_mib * 2**20
    # Without keys, a caller is a connection, of which anyone may have many.
    alone_s = _PATIENCE_S if keys is None else _WAIT_FOR_ROOM_S / 2
    messages = MessageBudget(
        budget_bytes,
        Line(max_waiting=settings.max_queue, wait_s=_WAIT_FOR_ROOM_S),
        Patience(one_s=_PATIENCE_S, alone_s=alone_s),
        max_message_bytes=MAX_MESSAGE_BYTES,
        setting="--message-budget-mib",
    )
    # By then those that fill the room are sent, or their time for that is over.
    wait_s = settings.send_timeout_s + _WAIT_FOR_ROOM_S
    answers = AnswerBudget(
        budget_bytes,
        Line(max_waiting=settings.max_queue, wait_s=wait_s),
        max_message_bytes=MAX_MESSAGE_BYTES,
        setting="--message-budget-mib",
    )
    return WireLimits(
        messages=messages,
        answers=answers,
        receive_timeout_s=settings.request_timeout_s,
        send_timeout_s=settings.send_timeout_s,
    )


def _open_limits(settings: ServiceSettings, max_bytes: int) -> WireLimits:
    """Of health checks of one server: those of strangers take no room of a probe of another address."""
    line = Line(max_waiting=64, wait_s=_OPEN_TIMEOUT_S)
    messages = MessageBudget(
        _OPEN_BUDGET_MESSAGES * MAX_MESSAGE_BYTES,
        line,
        Patience(one_s=0.1, alone_s=0.1),
        max_message_bytes=max_bytes,
    )
    return WireLimits(
        messages=messages,
        answers=AnswerBudget(_OPEN_ANSWERS_BYTES, line, max_message_bytes=_SMALL_MESSAGE_BYTES),
        receive_timeout_s=_OPEN_TIMEOUT_S,
        send_timeout_s=settings.send_timeout_s,
    )


def _refused(address: str) -> str:
    """Why an address cannot be listened on; gRPC does not tell."""
    try:
        for one in listen(parse_address(address)):
            one.close()
    except OSError as error:
        return why_not(error)
    return "cannot be listened on"


def _milliseconds(seconds: float) -> int:
    return min(int(seconds * 1000), 2**31 - 1)


async def serve(settings: ServiceSettings, backend: Backend) -> int:
    """Runs the service until SIGTERM, SIGINT or Drain, or until the backend has failed for good.

    Returns:
        Exit status; 1 = the backend could not be started or restarted.
    """
    front = Front(settings, backend)
    loop = asyncio.get_running_loop()
    failed = loop.create_future()
    stops: list[asyncio.Task[None]] = []
    signals = StopSignals()

    def on_signal() -> None:
        signals.arrived()
        if signals.insisted:  # do not wait for requests
            front.hurry()
        stops.append(loop.create_task(front.stop(settings.drain_timeout_s)))

    def on_state(state: BackendState) -> None:
        if state is BackendState.FAILED and not failed.done():
            failed.set_result(None)

    backend.on_state_change(on_state)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    await front.start()
    if stops or front.stopping:
        await front.wait()
        return 0
    starting = asyncio.ensure_future(backend.start())
    ending = asyncio.ensure_future(front.wait())
    await asyncio.wait((starting, ending), return_when=asyncio.FIRST_COMPLETED)
    problem = starting.exception() if starting.done() and not starting.cancelled() else None
    if problem is None:
        await asyncio.wait((ending, failed), return_when=asyncio.FIRST_COMPLETED)
        if not ending.done():  # failed for good: end the process, so that its supervisor can act
            await front.stop(0.0)
        await ending
        await asyncio.gather(starting, return_exceptions=True)
        return 1 if failed.done() else 0
    interrupted = front.stopping  # by a signal or Drain while the model was loading
    await front.stop(0.0)
    await ending
    if not isinstance(problem, BackendStartError):
        raise problem
    logger.log(logging.INFO if interrupted else logging.ERROR, "%s", problem)
    return 0 if interrupted else 1
