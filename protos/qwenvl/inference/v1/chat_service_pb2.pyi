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
    __slots__ = ("model", "messages", "sampling", "stop", "logprobs", "constraint", "tools", "tool_choice", "response", "template", "media", "n", "request_id", "cache_salt")
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
    model: str
    messages: _containers.RepeatedCompositeFieldContainer[_message_pb2.Message]
    sampling: _sampling_pb2.SamplingOptions
    stop: _sampling_pb2.StopOptions
    logprobs: _sampling_pb2.LogprobOptions
    constraint: _sampling_pb2.Constraint
    tools: _containers.RepeatedCompositeFieldContainer[_message_pb2.Tool]
    tool_choice: _message_pb2.ToolChoice
    response: ResponseOptions
    template: TemplateOptions
    media: MediaOptions
    n: int
    request_id: str
    cache_salt: str
    def __init__(self, model: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[_message_pb2.Message, _Mapping]]] = ..., sampling: _Optional[_Union[_sampling_pb2.SamplingOptions, _Mapping]] = ..., stop: _Optional[_Union[_sampling_pb2.StopOptions, _Mapping]] = ..., logprobs: _Optional[_Union[_sampling_pb2.LogprobOptions, _Mapping]] = ..., constraint: _Optional[_Union[_sampling_pb2.Constraint, _Mapping]] = ..., tools: _Optional[_Iterable[_Union[_message_pb2.Tool, _Mapping]]] = ..., tool_choice: _Optional[_Union[_message_pb2.ToolChoice, _Mapping]] = ..., response: _Optional[_Union[ResponseOptions, _Mapping]] = ..., template: _Optional[_Union[TemplateOptions, _Mapping]] = ..., media: _Optional[_Union[MediaOptions, _Mapping]] = ..., n: _Optional[int] = ..., request_id: _Optional[str] = ..., cache_salt: _Optional[str] = ...) -> None: ...

class ResponseOptions(_message.Message):
    __slots__ = ("token_ids", "prompt_token_ids", "grounding", "keep_special_tokens", "prompt_text")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    GROUNDING_FIELD_NUMBER: _ClassVar[int]
    KEEP_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TEXT_FIELD_NUMBER: _ClassVar[int]
    token_ids: bool
    prompt_token_ids: bool
    grounding: bool
    keep_special_tokens: bool
    prompt_text: bool
    def __init__(self, token_ids: _Optional[bool] = ..., prompt_token_ids: _Optional[bool] = ..., grounding: _Optional[bool] = ..., keep_special_tokens: _Optional[bool] = ..., prompt_text: _Optional[bool] = ...) -> None: ...

class TemplateOptions(_message.Message):
    __slots__ = ("add_generation_prompt", "continue_final_message", "enable_thinking")
    ADD_GENERATION_PROMPT_FIELD_NUMBER: _ClassVar[int]
    CONTINUE_FINAL_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ENABLE_THINKING_FIELD_NUMBER: _ClassVar[int]
    add_generation_prompt: bool
    continue_final_message: bool
    enable_thinking: bool
    def __init__(self, add_generation_prompt: _Optional[bool] = ..., continue_final_message: _Optional[bool] = ..., enable_thinking: _Optional[bool] = ...) -> None: ...

class MediaOptions(_message.Message):
    __slots__ = ("min_pixels", "max_pixels")
    MIN_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MAX_PIXELS_FIELD_NUMBER: _ClassVar[int]
    min_pixels: int
    max_pixels: int
    def __init__(self, min_pixels: _Optional[int] = ..., max_pixels: _Optional[int] = ...) -> None: ...

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
    started: Started
    choices: _containers.RepeatedCompositeFieldContainer[Choice]
    usage: _usage_pb2.Usage
    def __init__(self, started: _Optional[_Union[Started, _Mapping]] = ..., choices: _Optional[_Iterable[_Union[Choice, _Mapping]]] = ..., usage: _Optional[_Union[_usage_pb2.Usage, _Mapping]] = ...) -> None: ...

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
    started: Started
    delta: Delta
    finished: Finished
    usage: _usage_pb2.Usage
    def __init__(self, started: _Optional[_Union[Started, _Mapping]] = ..., delta: _Optional[_Union[Delta, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., usage: _Optional[_Union[_usage_pb2.Usage, _Mapping]] = ...) -> None: ...

class Started(_message.Message):
    __slots__ = ("request_id", "model", "created", "effective_settings", "prompt_usage", "images", "prompt_token_ids", "prompt_logprobs", "prompt_text")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    EFFECTIVE_SETTINGS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_USAGE_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TEXT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    created: int
    effective_settings: EffectiveSettings
    prompt_usage: _usage_pb2.Usage
    images: _containers.RepeatedCompositeFieldContainer[_usage_pb2.ProcessedImage]
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    prompt_logprobs: _containers.RepeatedCompositeFieldContainer[_usage_pb2.LogprobEntry]
    prompt_text: str
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., created: _Optional[int] = ..., effective_settings: _Optional[_Union[EffectiveSettings, _Mapping]] = ..., prompt_usage: _Optional[_Union[_usage_pb2.Usage, _Mapping]] = ..., images: _Optional[_Iterable[_Union[_usage_pb2.ProcessedImage, _Mapping]]] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., prompt_logprobs: _Optional[_Iterable[_Union[_usage_pb2.LogprobEntry, _Mapping]]] = ..., prompt_text: _Optional[str] = ...) -> None: ...

class EffectiveSettings(_message.Message):
    __slots__ = ("sampling", "stop", "n")
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    sampling: _sampling_pb2.SamplingOptions
    stop: _sampling_pb2.StopOptions
    n: int
    def __init__(self, sampling: _Optional[_Union[_sampling_pb2.SamplingOptions, _Mapping]] = ..., stop: _Optional[_Union[_sampling_pb2.StopOptions, _Mapping]] = ..., n: _Optional[int] = ...) -> None: ...

class Delta(_message.Message):
    __slots__ = ("choice_index", "text", "reasoning", "tool_calls", "logprobs", "token_ids", "prompt_logprobs")
    CHOICE_INDEX_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    REASONING_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    choice_index: int
    text: str
    reasoning: str
    tool_calls: _containers.RepeatedCompositeFieldContainer[ToolCallDelta]
    logprobs: _containers.RepeatedCompositeFieldContainer[_usage_pb2.LogprobEntry]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    prompt_logprobs: _containers.RepeatedCompositeFieldContainer[_usage_pb2.LogprobEntry]
    def __init__(self, choice_index: _Optional[int] = ..., text: _Optional[str] = ..., reasoning: _Optional[str] = ..., tool_calls: _Optional[_Iterable[_Union[ToolCallDelta, _Mapping]]] = ..., logprobs: _Optional[_Iterable[_Union[_usage_pb2.LogprobEntry, _Mapping]]] = ..., token_ids: _Optional[_Iterable[int]] = ..., prompt_logprobs: _Optional[_Iterable[_Union[_usage_pb2.LogprobEntry, _Mapping]]] = ...) -> None: ...

class ToolCallDelta(_message.Message):
    __slots__ = ("index", "id", "name", "arguments_json")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_JSON_FIELD_NUMBER: _ClassVar[int]
    index: int
    id: str
    name: str
    arguments_json: str
    def __init__(self, index: _Optional[int] = ..., id: _Optional[str] = ..., name: _Optional[str] = ..., arguments_json: _Optional[str] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("choice_index", "reason", "stop_detail", "groundings")
    CHOICE_INDEX_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    STOP_DETAIL_FIELD_NUMBER: _ClassVar[int]
    GROUNDINGS_FIELD_NUMBER: _ClassVar[int]
    choice_index: int
    reason: _usage_pb2.FinishReason
    stop_detail: _usage_pb2.StopDetail
    groundings: _containers.RepeatedCompositeFieldContainer[_usage_pb2.Grounding]
    def __init__(self, choice_index: _Optional[int] = ..., reason: _Optional[_Union[_usage_pb2.FinishReason, str]] = ..., stop_detail: _Optional[_Union[_usage_pb2.StopDetail, _Mapping]] = ..., groundings: _Optional[_Iterable[_Union[_usage_pb2.Grounding, _Mapping]]] = ...) -> None: ...

class Choice(_message.Message):
    __slots__ = ("index", "text", "reasoning", "tool_calls", "finish_reason", "stop_detail", "logprobs", "token_ids", "groundings")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    REASONING_FIELD_NUMBER: _ClassVar[int]
    TOOL_CALLS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    STOP_DETAIL_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    GROUNDINGS_FIELD_NUMBER: _ClassVar[int]
    index: int
    text: str
    reasoning: str
    tool_calls: _containers.RepeatedCompositeFieldContainer[_message_pb2.ToolCall]
    finish_reason: _usage_pb2.FinishReason
    stop_detail: _usage_pb2.StopDetail
    logprobs: _containers.RepeatedCompositeFieldContainer[_usage_pb2.LogprobEntry]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    groundings: _containers.RepeatedCompositeFieldContainer[_usage_pb2.Grounding]
    def __init__(self, index: _Optional[int] = ..., text: _Optional[str] = ..., reasoning: _Optional[str] = ..., tool_calls: _Optional[_Iterable[_Union[_message_pb2.ToolCall, _Mapping]]] = ..., finish_reason: _Optional[_Union[_usage_pb2.FinishReason, str]] = ..., stop_detail: _Optional[_Union[_usage_pb2.StopDetail, _Mapping]] = ..., logprobs: _Optional[_Iterable[_Union[_usage_pb2.LogprobEntry, _Mapping]]] = ..., token_ids: _Optional[_Iterable[int]] = ..., groundings: _Optional[_Iterable[_Union[_usage_pb2.Grounding, _Mapping]]] = ...) -> None: ...

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
