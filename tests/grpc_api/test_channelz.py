"""Channelz tells the operator about connections and calls, and nobody else."""

from __future__ import annotations

import contextlib
from pathlib import Path

import grpc
import grpc.aio
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
import pytest

from tests.grpc_api.asking import spec_of
from tests.grpc_api.conftest import OpenService, Service, channel_to
from tests.grpc_api.test_reflection import ask


NAME = "grpc.channelz.v1.Channelz"


def sockets_of(server: channelz_pb2.Server) -> set[int]:
    return {socket.socket_id for socket in server.listen_socket}


async def test_the_admin_address_counts_calls_and_names_peers(service: Service) -> None:
    await service.create(spec_of("hello"))
    async with channel_to(service.target("admin")) as channel:
        stub = channelz_pb2_grpc.ChannelzStub(channel)
        listed = await stub.GetServers(channelz_pb2.GetServersRequest(), timeout=20)
        servers = {server.ref.server_id: server for server in listed.server}
        assert sum(server.data.calls_succeeded for server in servers.values()) >= 1
        ports = set()
        for number in servers:
            request = channelz_pb2.GetServerSocketsRequest(server_id=number)
            for socket in (await stub.GetServerSockets(request, timeout=20)).socket_ref:
                asked = channelz_pb2.GetSocketRequest(socket_id=socket.socket_id)
                found = (await stub.GetSocket(asked, timeout=20)).socket
                ports.add(found.local.tcpip_address.port)
        assert set(service.front.ports.values()) <= ports
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetServer(channelz_pb2.GetServerRequest(server_id=10**9), timeout=20)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        response = await ask(channel, "v1", list_services="")
        assert NAME in {item.name for item in response.list_services_response.service}


async def test_a_page_has_few_sockets_whatever_is_asked_for(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inference_service.grpc_api.channelz.MAX_SOCKETS", 2)
    async with contextlib.AsyncExitStack() as stack:
        options = [("grpc.use_local_subchannel_pool", 1)]
        for _ in range(5):
            channel = grpc.aio.insecure_channel(service.target("admin"), options=options)
            await stack.enter_async_context(channel)
            await channel.channel_ready()
        stub = channelz_pb2_grpc.ChannelzStub(channel)
        sizes, found = [], set()
        for server in (await stub.GetServers(channelz_pb2.GetServersRequest(), timeout=20)).server:
            next_id, is_last = 0, False
            while not is_last:
                page = await stub.GetServerSockets(
                    channelz_pb2.GetServerSocketsRequest(
                        server_id=server.ref.server_id, start_socket_id=next_id, max_results=10**6
                    ),
                    timeout=20,
                )
                sizes.append(len(page.socket_ref))
                ids = [ref.socket_id for ref in page.socket_ref]
                found.update(ids)
                next_id, is_last = max(ids, default=0) + 1, page.end
        assert max(sizes) <= 2
        assert len(found) >= 5


async def test_the_main_address_has_no_channelz(service: Service) -> None:
    stub = channelz_pb2_grpc.ChannelzStub(service.channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetServers(channelz_pb2.GetServersRequest(), timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_it_needs_a_key(open_service: OpenService, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("key-one\n")
    service = await open_service(api_key_file=str(keys))
    async with channel_to(service.target("admin")) as channel:
        stub = channelz_pb2_grpc.ChannelzStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetServers(channelz_pb2.GetServersRequest(), timeout=20)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
