"""The gRPC services of `qwenvl.testing.FakeServer`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import grpc

from qwenvl.answers import AnswerCollector, ChatEvent, CompletionEvent
from qwenvl.errors import BY_REASON, DOMAIN
from qwenvl.fake.answers import CREATED, REQUEST_ID, events_of, usage_of
from qwenvl.fake.checks import Refused
from qwenvl.fake.model import FakeModel
from qwenvl.inference.v1 import admin_service_pb2 as admin_pb
from qwenvl.inference.v1 import admin_service_pb2_grpc as admin_grpc
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import completion_service_pb2_grpc as completion_grpc
from qwenvl.inference.v1 import model_service_pb2 as model_pb
from qwenvl.inference.v1 import model_service_pb2_grpc as model_grpc
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from qwenvl.limits import MAX_MESSAGE_BYTES
from qwenvl.rpc import NOT_REPEATED
from qwenvl.status_details import TRAILER, Details, write_details


class ChatServicer(chat_grpc.ChatServiceServicer):
    """Serves ChatService."""

    def __init__(self, model: FakeModel) -> None:
        self._model = model

    def CreateChatCompletion(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - the proto's name
        """Answers in one message."""
        collector = AnswerCollector(response := chat_pb.CreateChatCompletionResponse())
        for event in self.StreamChatCompletion(request, context):
            collector.add(event)
        collector.end()
        return response

    def StreamChatCompletion(  # noqa: N802
        self, request: Any, context: grpc.ServicerContext
    ) -> Iterator[ChatEvent]:
        """Streams every event of the answer."""
        with Refusing(self._model, context, request.spec.request_id):
            for fields in events_of(self._model, request.spec):
                yield ChatEvent(**fields)

    def CountTokens(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Counts the tokens of the prompt."""
        with Refusing(self._model, context, request.spec.request_id):
            self._model.receive(request.spec)
        return chat_pb.CountTokensResponse(usage=usage_of(request.spec, 0))


class CompletionServicer(completion_grpc.CompletionServiceServicer):
    """Serves CompletionService."""

    def __init__(self, model: FakeModel) -> None:
        self._model = model

    def CreateCompletion(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Answers in one message."""
        collector = AnswerCollector(response := completion_pb.CreateCompletionResponse())
        for event in self.StreamCompletion(request, context):
            collector.add(event)
        collector.end()
        return response

    def StreamCompletion(  # noqa: N802
        self, request: Any, context: grpc.ServicerContext
    ) -> Iterator[CompletionEvent]:
        """Streams every event of the answer."""
        with Refusing(self._model, context, request.spec.request_id):
            for fields in events_of(self._model, request.spec):
                yield CompletionEvent(**fields)


class ModelServicer(model_grpc.ModelServiceServicer):
    """Serves ModelService."""

    def __init__(self, model: FakeModel) -> None:
        self._model = model

    def ListModels(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """All served names."""
        del request
        with Refusing(self._model, context):
            models = [self._message(name) for name in self._model.names]
        return model_pb.ListModelsResponse(models=models)

    def GetModel(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """One served name."""
        with Refusing(self._model, context):
            name = request.name or self._model.names[0]
            self._model.canonical_name(name, "name")
        return model_pb.GetModelResponse(model=self._message(name))

    def _message(self, name: str) -> model_pb.Model:
        return model_pb.Model(
            name=name,
            canonical_name=self._model.names[0],
            created=CREATED,
            input_modalities=[usage_pb.MODALITY_TEXT, usage_pb.MODALITY_IMAGE],
            max_context_tokens=32_768,
        )


class AdminServicer(admin_grpc.AdminServiceServicer):
    """Serves what callers may ask of AdminService: no request is in flight."""

    def __init__(self, model: FakeModel) -> None:
        self._model = model

    def Abort(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """All ids are unknown."""
        with Refusing(self._model, context):
            return admin_pb.AbortResponse(unknown_request_ids=request.request_ids)

    def GetServerInfo(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """A service that is ready."""
        del request
        with Refusing(self._model, context):
            return admin_pb.GetServerInfoResponse(
                model=self._model.names[0],
                max_message_bytes=MAX_MESSAGE_BYTES,
                engine_state=admin_pb.ENGINE_STATE_READY,
                load=admin_pb.Load(),
            )

    def GetLoad(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        """Nothing is running."""
        del request
        with Refusing(self._model, context):
            return admin_pb.GetLoadResponse(load=admin_pb.Load())


class Refusing:
    """Checks the key of a call, and answers with a status where the body refuses it."""

    def __init__(
        self, model: FakeModel, context: grpc.ServicerContext, request_id: str = ""
    ) -> None:
        self._model = model
        self._context = context
        self._request_id = request_id or REQUEST_ID

    def __enter__(self) -> None:
        try:
            self._model.check_key(dict(self._context.invocation_metadata() or ()))
        except Refused as refused:
            _abort(self._context, refused, self._request_id)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Refused):
            _abort(self._context, error, self._request_id)


def _abort(context: grpc.ServicerContext, refused: Refused, request_id: str) -> NoReturn:
    mapping = BY_REASON[refused.reason]
    details = Details(
        reason=refused.reason,
        domain=DOMAIN,
        field=refused.field,
        retry_after_s=refused.retry_after_s,
        request_id=request_id,
    )
    number: int = mapping.grpc_code.value[0]
    status = write_details(number, refused.message, details)
    was_in_flight = refused.reason == "ENGINE_UNAVAILABLE"
    context.set_trailing_metadata(((TRAILER, status), *(NOT_REPEATED if was_in_flight else ())))
    context.abort(mapping.grpc_code, refused.message)
    raise AssertionError("abort has returned")
