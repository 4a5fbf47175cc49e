from qwenvl.inference.v1 import generation_pb2 as _generation_pb2
from qwenvl.inference.v1 import message_pb2 as _message_pb2
from qwenvl.inference.v1 import usage_pb2 as _usage_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CreateDecisionsRequest(_message.Message):
    __slots__ = ("spec",)
    SPEC_FIELD_NUMBER: _ClassVar[int]
    spec: DecisionSpec
    def __init__(self, spec: _Optional[_Union[DecisionSpec, _Mapping]] = ...) -> None: ...

class DecisionSpec(_message.Message):
    __slots__ = ("model", "messages", "questions", "media", "request_id", "cache_salt", "diagnostics", "prompt_format", "rotations")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    QUESTIONS_FIELD_NUMBER: _ClassVar[int]
    MEDIA_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    DIAGNOSTICS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FORMAT_FIELD_NUMBER: _ClassVar[int]
    ROTATIONS_FIELD_NUMBER: _ClassVar[int]
    model: str
    messages: _containers.RepeatedCompositeFieldContainer[_message_pb2.Message]
    questions: _containers.RepeatedCompositeFieldContainer[DecisionQuestion]
    media: _generation_pb2.MediaOptions
    request_id: str
    cache_salt: str
    diagnostics: bool
    prompt_format: int
    rotations: int
    def __init__(self, model: _Optional[str] = ..., messages: _Optional[_Iterable[_Union[_message_pb2.Message, _Mapping]]] = ..., questions: _Optional[_Iterable[_Union[DecisionQuestion, _Mapping]]] = ..., media: _Optional[_Union[_generation_pb2.MediaOptions, _Mapping]] = ..., request_id: _Optional[str] = ..., cache_salt: _Optional[str] = ..., diagnostics: _Optional[bool] = ..., prompt_format: _Optional[int] = ..., rotations: _Optional[int] = ...) -> None: ...

class DecisionQuestion(_message.Message):
    __slots__ = ("name", "instructions", "predicate", "choice", "score")
    NAME_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTIONS_FIELD_NUMBER: _ClassVar[int]
    PREDICATE_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    name: str
    instructions: _containers.RepeatedCompositeFieldContainer[_message_pb2.Part]
    predicate: PredicateQuestion
    choice: ChoiceQuestion
    score: ScoreQuestion
    def __init__(self, name: _Optional[str] = ..., instructions: _Optional[_Iterable[_Union[_message_pb2.Part, _Mapping]]] = ..., predicate: _Optional[_Union[PredicateQuestion, _Mapping]] = ..., choice: _Optional[_Union[ChoiceQuestion, _Mapping]] = ..., score: _Optional[_Union[ScoreQuestion, _Mapping]] = ...) -> None: ...

class PredicateQuestion(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DecisionOption(_message.Message):
    __slots__ = ("text", "flag", "description")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FLAG_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    text: str
    flag: bool
    description: str
    def __init__(self, text: _Optional[str] = ..., flag: _Optional[bool] = ..., description: _Optional[str] = ...) -> None: ...

class ChoiceQuestion(_message.Message):
    __slots__ = ("options",)
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    options: _containers.RepeatedCompositeFieldContainer[DecisionOption]
    def __init__(self, options: _Optional[_Iterable[_Union[DecisionOption, _Mapping]]] = ...) -> None: ...

class ScoreQuestion(_message.Message):
    __slots__ = ("levels",)
    LEVELS_FIELD_NUMBER: _ClassVar[int]
    levels: _containers.RepeatedCompositeFieldContainer[DecisionOption]
    def __init__(self, levels: _Optional[_Iterable[_Union[DecisionOption, _Mapping]]] = ...) -> None: ...

class CreateDecisionsResponse(_message.Message):
    __slots__ = ("request_id", "model", "created", "answers", "usage", "images", "prompt_format")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FORMAT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    created: int
    answers: _containers.RepeatedCompositeFieldContainer[DecisionAnswer]
    usage: _usage_pb2.Usage
    images: _containers.RepeatedCompositeFieldContainer[_usage_pb2.ProcessedImage]
    prompt_format: int
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., created: _Optional[int] = ..., answers: _Optional[_Iterable[_Union[DecisionAnswer, _Mapping]]] = ..., usage: _Optional[_Union[_usage_pb2.Usage, _Mapping]] = ..., images: _Optional[_Iterable[_Union[_usage_pb2.ProcessedImage, _Mapping]]] = ..., prompt_format: _Optional[int] = ...) -> None: ...

class DecisionAnswer(_message.Message):
    __slots__ = ("name", "predicate", "choice", "score", "refused", "label_mass", "top_is_label")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PREDICATE_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    LABEL_MASS_FIELD_NUMBER: _ClassVar[int]
    TOP_IS_LABEL_FIELD_NUMBER: _ClassVar[int]
    name: str
    predicate: PredicateAnswer
    choice: ChoiceAnswer
    score: ScoreAnswer
    refused: RefusedAnswer
    label_mass: float
    top_is_label: bool
    def __init__(self, name: _Optional[str] = ..., predicate: _Optional[_Union[PredicateAnswer, _Mapping]] = ..., choice: _Optional[_Union[ChoiceAnswer, _Mapping]] = ..., score: _Optional[_Union[ScoreAnswer, _Mapping]] = ..., refused: _Optional[_Union[RefusedAnswer, _Mapping]] = ..., label_mass: _Optional[float] = ..., top_is_label: _Optional[bool] = ...) -> None: ...

class RefusedAnswer(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PredicateAnswer(_message.Message):
    __slots__ = ("probability",)
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    probability: float
    def __init__(self, probability: _Optional[float] = ...) -> None: ...

class ChoiceAnswer(_message.Message):
    __slots__ = ("option_index", "confidence", "probabilities")
    OPTION_INDEX_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    option_index: int
    confidence: float
    probabilities: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, option_index: _Optional[int] = ..., confidence: _Optional[float] = ..., probabilities: _Optional[_Iterable[float]] = ...) -> None: ...

class ScoreAnswer(_message.Message):
    __slots__ = ("score", "confidence", "probabilities")
    SCORE_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    score: float
    confidence: float
    probabilities: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, score: _Optional[float] = ..., confidence: _Optional[float] = ..., probabilities: _Optional[_Iterable[float]] = ...) -> None: ...
