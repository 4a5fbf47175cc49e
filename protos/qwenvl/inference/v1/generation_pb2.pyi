from qwenvl.inference.v1 import message_pb2 as _message_pb2
from qwenvl.inference.v1 import sampling_pb2 as _sampling_pb2
from qwenvl.inference.v1 import usage_pb2 as _usage_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ResponseOptions(_message.Message):
    __slots__ = ("token_ids", "prompt_token_ids", "grounding", "keep_special_tokens", "prompt_text", "return_token_ids", "return_prompt_token_ids", "return_prompt_text")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    GROUNDING_FIELD_NUMBER: _ClassVar[int]
    KEEP_SPECIAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TEXT_FIELD_NUMBER: _ClassVar[int]
    RETURN_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    RETURN_PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    RETURN_PROMPT_TEXT_FIELD_NUMBER: _ClassVar[int]
    token_ids: bool
    prompt_token_ids: bool
    grounding: bool
    keep_special_tokens: bool
    prompt_text: bool
    return_token_ids: bool
    return_prompt_token_ids: bool
    return_prompt_text: bool
    def __init__(self, token_ids: _Optional[bool] = ..., prompt_token_ids: _Optional[bool] = ..., grounding: _Optional[bool] = ..., keep_special_tokens: _Optional[bool] = ..., prompt_text: _Optional[bool] = ..., return_token_ids: _Optional[bool] = ..., return_prompt_token_ids: _Optional[bool] = ..., return_prompt_text: _Optional[bool] = ...) -> None: ...

class MediaOptions(_message.Message):
    __slots__ = ("min_pixels", "max_pixels", "oversized")
    MIN_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MAX_PIXELS_FIELD_NUMBER: _ClassVar[int]
    OVERSIZED_FIELD_NUMBER: _ClassVar[int]
    min_pixels: int
    max_pixels: int
    oversized: _message_pb2.OversizedImage
    def __init__(self, min_pixels: _Optional[int] = ..., max_pixels: _Optional[int] = ..., oversized: _Optional[_Union[_message_pb2.OversizedImage, str]] = ...) -> None: ...

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
