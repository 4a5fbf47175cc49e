"""Serves grpc.reflection.v1 and v1alpha, so that tools need no `.proto` files.

grpcio-reflection has v1alpha alone. The messages of v1 are the same under another package name, so that one servicer
answers both.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from google.rpc import error_details_pb2, status_pb2
import grpc
import grpc.aio
from grpc_reflection.v1alpha import reflection, reflection_pb2


_V1ALPHA: Final = "grpc.reflection.v1alpha"
_V1: Final = "grpc.reflection.v1"
_SERVICE: Final = ".ServerReflection"
# Files whose messages tools look up to show the details of errors; importing them puts them into the pool.
_DETAILS: Final = (error_details_pb2.DESCRIPTOR, status_pb2.DESCRIPTOR)


def add_reflection(service_names: Iterable[str], server: grpc.aio.Server) -> None:
    """Adds both versions of the reflection service.

    Args:
        service_names: Full names of the other services.
        server: The server.
    """
    names = (*service_names, _V1 + _SERVICE, _V1ALPHA + _SERVICE)
    servicer = reflection.aio.ReflectionServicer(names, pool=_pool())
    behaviour = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    handlers = {"ServerReflectionInfo": behaviour}
    for version in (_V1, _V1ALPHA):
        handler = grpc.method_handlers_generic_handler(version + _SERVICE, handlers)
        server.add_generic_rpc_handlers((handler,))


def _pool() -> descriptor_pool.DescriptorPool:
    """The pool of all generated code, with the description of v1."""
    pool = descriptor_pool.Default()
    alpha = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(alpha)
    text = text_format.MessageToString(alpha).replace("v1alpha", "v1")
    pool.AddSerializedFile(
        text_format.Parse(text, descriptor_pb2.FileDescriptorProto()).SerializeToString()
    )
    return pool
