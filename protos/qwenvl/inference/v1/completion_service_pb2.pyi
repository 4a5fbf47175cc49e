from qwenvl.inference.v1 import chat_service_pb2 as _chat_service_pb2
from qwenvl.inference.v1 import generation_pb2 as _generation_pb2
from qwenvl.inference.v1 import message_pb2 as _message_pb2
from qwenvl.inference.v1 import sampling_pb2 as _sampling_pb2
from qwenvl.inference.v1 import usage_pb2 as _usage_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CompletionSpec(_message.Message):
    __slots__ = ("model", "text", "token_ids", "images", "sampling", "stop", "logprobs", "response", "media", "n", "request_id", "cache_salt", "constraint", "priority")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    MEDIA_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    model: str
    text: str
    token_ids: TokenIds
    images: _containers.RepeatedCompositeFieldContainer[_message_pb2.Image]
    sampling: _sampling_pb2.SamplingOptions
    stop: _sampling_pb2.StopOptions
    logprobs: _sampling_pb2.LogprobOptions
    response: _generation_pb2.ResponseOptions
    media: _generation_pb2.MediaOptions
    n: int
    request_id: str
    cache_salt: str
    constraint: _sampling_pb2.Constraint
    priority: int
    def __init__(self, model: _Optional[str] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., images: _Optional[_Iterable[_Union[_message_pb2.Image, _Mapping]]] = ..., sampling: _Optional[_Union[_sampling_pb2.SamplingOptions, _Mapping]] = ..., stop: _Optional[_Union[_sampling_pb2.StopOptions, _Mapping]] = ..., logprobs: _Optional[_Union[_sampling_pb2.LogprobOptions, _Mapping]] = ..., response: _Optional[_Union[_generation_pb2.ResponseOptions, _Mapping]] = ..., media: _Optional[_Union[_generation_pb2.MediaOptions, _Mapping]] = ..., n: _Optional[int] = ..., request_id: _Optional[str] = ..., cache_salt: _Optional[str] = ..., constraint: _Optional[_Union[_sampling_pb2.Constraint, _Mapping]] = ..., priority: _Optional[int] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class CreateCompletionRequest(_message.Message):
    __slots__ = ("spec",)
    SPEC_FIELD_NUMBER: _ClassVar[int]
    spec: CompletionSpec
    def __init__(self, spec: _Optional[_Union[CompletionSpec, _Mapping]] = ...) -> None: ...

class CreateCompletionResponse(_message.Message):
    __slots__ = ("started", "choices", "usage")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    started: _generation_pb2.Started
    choices: _containers.RepeatedCompositeFieldContainer[_generation_pb2.Choice]
    usage: _usage_pb2.Usage
    def __init__(self, started: _Optional[_Union[_generation_pb2.Started, _Mapping]] = ..., choices: _Optional[_Iterable[_Union[_generation_pb2.Choice, _Mapping]]] = ..., usage: _Optional[_Union[_usage_pb2.Usage, _Mapping]] = ...) -> None: ...

class StreamCompletionRequest(_message.Message):
    __slots__ = ("spec",)
    SPEC_FIELD_NUMBER: _ClassVar[int]
    spec: CompletionSpec
    def __init__(self, spec: _Optional[_Union[CompletionSpec, _Mapping]] = ...) -> None: ...

class StreamCompletionResponse(_message.Message):
    __slots__ = ("started", "delta", "finished", "usage")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    started: _generation_pb2.Started
    delta: _generation_pb2.Delta
    finished: _generation_pb2.Finished
    usage: _usage_pb2.Usage
    def __init__(self, started: _Optional[_Union[_generation_pb2.Started, _Mapping]] = ..., delta: _Optional[_Union[_generation_pb2.Delta, _Mapping]] = ..., finished: _Optional[_Union[_generation_pb2.Finished, _Mapping]] = ..., usage: _Optional[_Union[_usage_pb2.Usage, _Mapping]] = ...) -> None: ...

class RenderCompletionRequest(_message.Message):
    __slots__ = ("spec", "return_token_strings")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    RETURN_TOKEN_STRINGS_FIELD_NUMBER: _ClassVar[int]
    spec: CompletionSpec
    return_token_strings: bool
    def __init__(self, spec: _Optional[_Union[CompletionSpec, _Mapping]] = ..., return_token_strings: _Optional[bool] = ...) -> None: ...

class RenderCompletionResponse(_message.Message):
    __slots__ = ("started", "placeholders", "token_strings", "max_context_tokens")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    PLACEHOLDERS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_STRINGS_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    started: _generation_pb2.Started
    placeholders: _containers.RepeatedCompositeFieldContainer[_chat_service_pb2.MediaPlaceholder]
    token_strings: _containers.RepeatedScalarFieldContainer[str]
    max_context_tokens: int
    def __init__(self, started: _Optional[_Union[_generation_pb2.Started, _Mapping]] = ..., placeholders: _Optional[_Iterable[_Union[_chat_service_pb2.MediaPlaceholder, _Mapping]]] = ..., token_strings: _Optional[_Iterable[str]] = ..., max_context_tokens: _Optional[int] = ...) -> None: ...
