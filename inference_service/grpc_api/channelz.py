"""Serves grpc.channelz.v1: the connections and calls of this process, in small pages."""

from __future__ import annotations

from typing import Final

import grpc.aio
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_channelz.v1.channelz import aio

from inference_service.grpc_api.call_context import Context


MAX_SOCKETS: Final = 100
"""Maximum sockets of a page, each of which takes some time of the event loop; callers ask for the next page."""


class _Channelz(aio.ChannelzServicer):  # type: ignore[misc]  # grpcio-channelz is untyped
    async def GetServerSockets(  # noqa: N802 - the proto's name
        self, request: channelz_pb2.GetServerSocketsRequest, context: Context
    ) -> channelz_pb2.GetServerSocketsResponse:
        """Some sockets of a server."""
        asked = request.max_results
        request.max_results = min(asked, MAX_SOCKETS) if asked > 0 else MAX_SOCKETS
        return await aio.ChannelzServicer.GetServerSockets(request, context)


def add_channelz(server: grpc.aio.Server) -> None:
    """Adds the service to a server."""
    channelz_pb2_grpc.add_ChannelzServicer_to_server(_Channelz(), server)
