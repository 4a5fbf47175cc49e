from qwenvl.inference.v1 import usage_pb2 as _usage_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CoordinateConvention(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    COORDINATE_CONVENTION_UNSPECIFIED: _ClassVar[CoordinateConvention]
    COORDINATE_CONVENTION_PER_MILLE: _ClassVar[CoordinateConvention]
    COORDINATE_CONVENTION_PROCESSED_PIXELS: _ClassVar[CoordinateConvention]
COORDINATE_CONVENTION_UNSPECIFIED: CoordinateConvention
COORDINATE_CONVENTION_PER_MILLE: CoordinateConvention
COORDINATE_CONVENTION_PROCESSED_PIXELS: CoordinateConvention

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class GetModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: Model
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "canonical_name", "family", "created", "input_modalities", "max_context_tokens", "image_limits", "coordinate_convention", "url_schemes", "features", "parts", "parameter_count", "memory", "revision")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CANONICAL_NAME_FIELD_NUMBER: _ClassVar[int]
    FAMILY_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    INPUT_MODALITIES_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_LIMITS_FIELD_NUMBER: _ClassVar[int]
    COORDINATE_CONVENTION_FIELD_NUMBER: _ClassVar[int]
    URL_SCHEMES_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_COUNT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    name: str
    canonical_name: str
    family: str
    created: int
    input_modalities: _containers.RepeatedScalarFieldContainer[_usage_pb2.Modality]
    max_context_tokens: int
    image_limits: ImageLimits
    coordinate_convention: CoordinateConvention
    url_schemes: _containers.RepeatedScalarFieldContainer[str]
    features: _containers.RepeatedScalarFieldContainer[str]
    parts: _containers.RepeatedCompositeFieldContainer[ModulePart]
    parameter_count: int
    memory: MemoryNeed
    revision: str
    def __init__(self, name: _Optional[str] = ..., canonical_name: _Optional[str] = ..., family: _Optional[str] = ..., created: _Optional[int] = ..., input_modalities: _Optional[_Iterable[_Union[_usage_pb2.Modality, str]]] = ..., max_context_tokens: _Optional[int] = ..., image_limits: _Optional[_Union[ImageLimits, _Mapping]] = ..., coordinate_convention: _Optional[_Union[CoordinateConvention, str]] = ..., url_schemes: _Optional[_Iterable[str]] = ..., features: _Optional[_Iterable[str]] = ..., parts: _Optional[_Iterable[_Union[ModulePart, _Mapping]]] = ..., parameter_count: _Optional[int] = ..., memory: _Optional[_Union[MemoryNeed, _Mapping]] = ..., revision: _Optional[str] = ...) -> None: ...

class ImageLimits(_message.Message):
    __slots__ = ("max_images", "pixel_step", "min_pixels", "max_pixels", "max_decoded_pixels", "exif_transposed")
    MAX_IMAGES_FIELD_NUMBER: _ClassVar[int]
    PIXEL_STEP_FIELD_NUMBER: _ClassVar[int]
    MIN_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MAX_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MAX_DECODED_PIXELS_FIELD_NUMBER: _ClassVar[int]
    EXIF_TRANSPOSED_FIELD_NUMBER: _ClassVar[int]
    max_images: int
    pixel_step: int
    min_pixels: int
    max_pixels: int
    max_decoded_pixels: int
    exif_transposed: bool
    def __init__(self, max_images: _Optional[int] = ..., pixel_step: _Optional[int] = ..., min_pixels: _Optional[int] = ..., max_pixels: _Optional[int] = ..., max_decoded_pixels: _Optional[int] = ..., exif_transposed: _Optional[bool] = ...) -> None: ...

class ModulePart(_message.Message):
    __slots__ = ("name", "parameter_count")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_COUNT_FIELD_NUMBER: _ClassVar[int]
    name: str
    parameter_count: int
    def __init__(self, name: _Optional[str] = ..., parameter_count: _Optional[int] = ...) -> None: ...

class MemoryNeed(_message.Message):
    __slots__ = ("weight_bytes", "kv_bytes_per_token", "kv_cache_bytes")
    WEIGHT_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_BYTES_FIELD_NUMBER: _ClassVar[int]
    weight_bytes: int
    kv_bytes_per_token: int
    kv_cache_bytes: int
    def __init__(self, weight_bytes: _Optional[int] = ..., kv_bytes_per_token: _Optional[int] = ..., kv_cache_bytes: _Optional[int] = ...) -> None: ...
