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

class ChatCompletionSpec(_message.Message):
    __slots__ = ("model", "messages", "sampling", "stop", "logprobs", "constraint", "tools", "tool_choice", "response", "template", "media", "n", "request_id", "cache_salt", "priority")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    CONSTRAINT_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    TOOL_CHOICE_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    MEDIA_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    model: str
    messages: _containers.RepeatedCompositeFieldContainer[_message_pb2.Message]
    sampling: _sampling_pb2.SamplingOptions
    stop: _sampling_pb2.StopOptions
    logprobs: _sampling_pb2.LogprobOptions
    constraint: _sampling_pb2.Constraint
    tools: _containers.RepeatedCompositeFieldContainer[_message_pb2.Tool]
    tool_choice: _message_pb2.ToolChoice
    response: _generation_pb2.ResponseOptions
    template: TemplateOptions
    media: _generation_pb2.MediaOptions
    n: int
    request_id: str
    cache_salt: str
    priority: int
    def __init__(self, model: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[_message_pb2.Message, _Mapping]]] = ..., sampling: _Optional[_Union[_sampling_pb2.SamplingOptions, _Mapping]] = ..., stop: _Optional[_Union[_sampling_pb2.StopOptions, _Mapping]] = ..., logprobs: _Optional[_Union[_sampling_pb2.LogprobOptions, _Mapping]] = ..., constraint: _Optional[_Union[_sampling_pb2.Constraint, _Mapping]] = ..., tools: _Optional[_Iterable[_Union[_message_pb2.Tool, _Mapping]]] = ..., tool_choice: _Optional[_Union[_message_pb2.ToolChoice, _Mapping]] = ..., response: _Optional[_Union[_generation_pb2.ResponseOptions, _Mapping]] = ..., template: _Optional[_Union[TemplateOptions, _Mapping]] = ..., media: _Optional[_Union[_generation_pb2.MediaOptions, _Mapping]] = ..., n: _Optional[int] = ..., request_id: _Optional[str] = ..., cache_salt: _Optional[str] = ..., priority: _Optional[int] = ...) -> None: ...

class TemplateOptions(_message.Message):
    __slots__ = ("add_generation_prompt", "continue_final_message", "enable_thinking", "reasoning_effort", "prefer_thinking")
    ADD_GENERATION_PROMPT_FIELD_NUMBER: _ClassVar[int]
    CONTINUE_FINAL_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ENABLE_THINKING_FIELD_NUMBER: _ClassVar[int]
    REASONING_EFFORT_FIELD_NUMBER: _ClassVar[int]
    PREFER_THINKING_FIELD_NUMBER: _ClassVar[int]
    add_generation_prompt: bool
    continue_final_message: bool
    enable_thinking: bool
    reasoning_effort: str
    prefer_thinking: bool
    def __init__(self, add_generation_prompt: _Optional[bool] = ..., continue_final_message: _Optional[bool] = ..., enable_thinking: _Optional[bool] = ..., reasoning_effort: _Optional[str] = ..., prefer_thinking: _Optional[bool] = ...) -> None: ...

class CreateChatCompletionRequest(_message.Message):
    __slots__ = ("spec",)
    SPEC_FIELD_NUMBER: _ClassVar[int]
    spec: ChatCompletionSpec
    def __init__(self, spec: _Optional[_Union[ChatCompletionSpec, _Mapping]] = ...) -> None: ...

class CreateChatCompletionResponse(_message.Message):
    __slots__ = ("started", "choices", "usage")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    CHOICES_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    started: _generation_pb2.Started
    choices: _containers.RepeatedCompositeFieldContainer[_generation_pb2.Choice]
    usage: _usage_pb2.Usage
    def __init__(self, started: _Optional[_Union[_generation_pb2.Started, _Mapping]] = ..., choices: _Optional[_Iterable[_Union[_generation_pb2.Choice, _Mapping]]] = ..., usage: _Optional[_Union[_usage_pb2.Usage, _Mapping]] = ...) -> None: ...

class StreamChatCompletionRequest(_message.Message):
    __slots__ = ("spec",)
    SPEC_FIELD_NUMBER: _ClassVar[int]
    spec: ChatCompletionSpec
    def __init__(self, spec: _Optional[_Union[ChatCompletionSpec, _Mapping]] = ...) -> None: ...

class StreamChatCompletionResponse(_message.Message):
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

class CountTokensRequest(_message.Message):
    __slots__ = ("spec",)
    SPEC_FIELD_NUMBER: _ClassVar[int]
    spec: ChatCompletionSpec
    def __init__(self, spec: _Optional[_Union[ChatCompletionSpec, _Mapping]] = ...) -> None: ...

class CountTokensResponse(_message.Message):
    __slots__ = ("usage", "images", "prompt_token_ids")
    USAGE_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    usage: _usage_pb2.Usage
    images: _containers.RepeatedCompositeFieldContainer[_usage_pb2.ProcessedImage]
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, usage: _Optional[_Union[_usage_pb2.Usage, _Mapping]] = ..., images: _Optional[_Iterable[_Union[_usage_pb2.ProcessedImage, _Mapping]]] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class RenderChatCompletionRequest(_message.Message):
    __slots__ = ("spec", "return_token_strings")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    RETURN_TOKEN_STRINGS_FIELD_NUMBER: _ClassVar[int]
    spec: ChatCompletionSpec
    return_token_strings: bool
    def __init__(self, spec: _Optional[_Union[ChatCompletionSpec, _Mapping]] = ..., return_token_strings: _Optional[bool] = ...) -> None: ...

class RenderChatCompletionResponse(_message.Message):
    __slots__ = ("started", "placeholders", "token_strings", "max_context_tokens", "begins_with_reasoning")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    PLACEHOLDERS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_STRINGS_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BEGINS_WITH_REASONING_FIELD_NUMBER: _ClassVar[int]
    started: _generation_pb2.Started
    placeholders: _containers.RepeatedCompositeFieldContainer[MediaPlaceholder]
    token_strings: _containers.RepeatedScalarFieldContainer[str]
    max_context_tokens: int
    begins_with_reasoning: bool
    def __init__(self, started: _Optional[_Union[_generation_pb2.Started, _Mapping]] = ..., placeholders: _Optional[_Iterable[_Union[MediaPlaceholder, _Mapping]]] = ..., token_strings: _Optional[_Iterable[str]] = ..., max_context_tokens: _Optional[int] = ..., begins_with_reasoning: _Optional[bool] = ...) -> None: ...

class MediaPlaceholder(_message.Message):
    __slots__ = ("offset", "length", "key")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    offset: int
    length: int
    key: bytes
    def __init__(self, offset: _Optional[int] = ..., length: _Optional[int] = ..., key: _Optional[bytes] = ...) -> None: ...
