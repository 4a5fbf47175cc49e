"""The adapter's connection to the inference service, which follows its certificates when they are renewed."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Final

from qwenvl.aio import AsyncService
from qwenvl.certificates import (
    CertificateFiles,
    Certificates,
    WatchedCertificates,
    channel_credentials,
)
from rest_adapter.call_metrics import call_metrics
from rest_adapter.settings import AdapterSettings


_POLL_S: Final = 10.0


class ServiceConnection:
    """Has the current `AsyncService`. A channel keeps its certificates, so that new ones mean a new channel.

    Args:
        settings: The adapter's settings.

    Raises:
        CertificateError: The certificates cannot be used.
    """

    def __init__(self, settings: AdapterSettings) -> None:
        self._settings = settings
        self._watched = _watch(settings)
        self._service: AsyncService | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._old: list[AsyncService] = []

    @property
    def service(self) -> AsyncService:
        """The service; a call keeps the one with which it began."""
        assert self._service is not None
        return self._service

    def open(self) -> None:
        """Opens the channel; needs a running event loop."""
        self._service = self._make(None if self._watched is None else self._watched.current)
        if self._watched is not None:
            self._start(self._follow(self._watched))

    async def close(self) -> None:
        """Closes all channels."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for service in (*self._old, self.service):
            await service.close()

    def renew(self, certificates: Certificates) -> None:
        """Makes new calls with other certificates; running ones are finished."""
        self._start(self._retire(self.service))
        self._service = self._make(certificates)

    def _make(self, certificates: Certificates | None) -> AsyncService:
        return AsyncService(
            self._settings.grpc_target,
            credentials=None if certificates is None else channel_credentials(certificates),
            timeout_s=self._settings.request_timeout_s,
            interceptors=call_metrics(),
            separate_health=True,
        )

    async def _follow(self, watched: WatchedCertificates) -> None:
        while True:
            await asyncio.sleep(_POLL_S)
            if (found := await asyncio.to_thread(watched.changed)) is not None:
                self.renew(found)

    async def _retire(self, service: AsyncService) -> None:
        self._old.append(service)
        await asyncio.sleep(self._settings.request_timeout_s)  # no call takes longer
        self._old.remove(service)
        await service.close()

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _watch(settings: AdapterSettings) -> WatchedCertificates | None:
    if settings.grpc_ca_file is None:
        return None
    certificate, key = (
        None if path is None else Path(path)
        for path in (settings.grpc_client_cert_file, settings.grpc_client_key_file)
    )
    return WatchedCertificates(
        CertificateFiles(certificate=certificate, key=key, authority=Path(settings.grpc_ca_file))
    )
