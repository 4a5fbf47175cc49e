"""One sampling setting, stated once, is the same in the proto, in the domain and in JSON."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, get_type_hints

from google.protobuf.descriptor import FieldDescriptor
import pytest

from inference_service.backend.sampling import effective_options, engine_params, wanted_tokens
from inference_service.backend.token_lists import TokenLists
from inference_service.domain import ChatRequest
from inference_service.engine_protocol.messages import EngineRequest, SamplingParams
from inference_service.engine_protocol.wire import Add, command_reader, encode
from inference_service.sampling import LISTS, RANGES, SCALARS, Range, Sampling, SamplingOptions
from qwenvl.inference.v1.sampling_pb2 import SamplingOptions as ProtoOptions
from rest_adapter.openai.fields import AnswerRequest
from rest_adapter.proto_fields import SAMPLING_SCALARS


PROTO_TYPES = {
    FieldDescriptor.TYPE_DOUBLE: float,
    FieldDescriptor.TYPE_INT32: int,
    FieldDescriptor.TYPE_INT64: int,
    FieldDescriptor.TYPE_BOOL: bool,
}
ALL = {field.name for field in dataclasses.fields(Sampling)}


def test_the_proto_the_domain_and_json_have_the_same_settings() -> None:
    assert {field.name for field in ProtoOptions.DESCRIPTOR.fields} == ALL
    assert {field.name for field in dataclasses.fields(SamplingOptions)} == ALL
    assert {*SAMPLING_SCALARS, *LISTS} == ALL
    missing = ALL - AnswerRequest.model_fields.keys()
    assert not missing, "rest_adapter/openai/fields.py lacks a sampling setting"


def test_types_of_settings_agree() -> None:
    resolved, optional = get_type_hints(Sampling), get_type_hints(SamplingOptions)
    for name, kind in resolved.items():
        assert optional[name] == kind | None
    for name in SCALARS:
        field = ProtoOptions.DESCRIPTOR.fields_by_name[name]
        assert field.has_presence
        assert PROTO_TYPES[field.type] is resolved[name]


@pytest.mark.parametrize("name", SCALARS)
def test_every_number_has_a_range_and_its_default_is_within(name: str) -> None:
    default = getattr(Sampling(max_tokens=1), name)
    assert isinstance(default, bool) == (name not in RANGES)
    assert isinstance(default, bool) or default in RANGES[name]


def test_a_range_has_both_its_limits_and_never_nan() -> None:
    limits = Range(0, 2)
    assert all(value in limits for value in (0, 1, 2.0))
    assert not any(value in limits for value in (-1e-9, 2.01, math.inf, math.nan))


def test_what_is_said_wins_over_the_default() -> None:
    said = SamplingOptions(temperature=0.0, ignore_eos=True, max_tokens=3, logit_bias=((1, 2.0),))
    assert said.resolved() == Sampling(
        temperature=0.0, ignore_eos=True, max_tokens=3, logit_bias=((1, 2.0),)
    )


def test_the_engine_gets_the_lists_as_tokens() -> None:
    options = Sampling(
        max_tokens=3, logit_bias=((1, 2.0),), allowed_token_ids=(1, 9), bad_words=("a",)
    )
    request = ChatRequest(request_id="r", model="m", messages=())
    lists = TokenLists(allowed=b"\2\2\0\0", bad_tokens=(4,), bad_sequences=((5, 6),))
    params = engine_params(options, request, wanted=3, eos_token_ids=(), banned=(7,), lists=lists)
    assert params == SamplingParams(
        max_tokens=3,
        logit_bias=((1, 2.0), (7, -math.inf), (4, -math.inf)),
        allowed_tokens=b"\2\2\0\0",
        bad_sequences=((5, 6),),
    )
    engine_request = EngineRequest(request_id="r", prompt_token_ids=(1,), sampling=params)
    assert command_reader().feed(encode(Add(engine_request))) == [Add(engine_request)]


def test_the_engine_gets_every_setting() -> None:
    said: dict[str, Any] = {name: limits.maximum for name, limits in RANGES.items()}
    options = SamplingOptions(**said, ignore_eos=True, logit_bias=((1, 2.0),))
    request = ChatRequest(request_id="r", model="m", messages=(), sampling=options)
    sampling = effective_options(request, SamplingOptions(), prompt_tokens=1, max_model_len=2**32)
    params = engine_params(sampling, request, wanted=said["max_tokens"], eos_token_ids=())
    assert params == SamplingParams(**said, ignore_eos=True, logit_bias=((1, 2.0),))
    engine_request = EngineRequest(request_id="r", prompt_token_ids=(1,), sampling=params)
    [received] = command_reader().feed(encode(Add(engine_request)))
    assert received == Add(engine_request)


@pytest.mark.parametrize(
    ("asked", "default", "effective", "for_the_engine"),
    [
        (3, None, 3, 3),
        (10, None, 10, 10),  # exactly the room
        (11, None, 10, 11),
        (2**31 - 1, None, 10, 2**31 - 1),
        (None, None, 10, 11),
        (None, 3, 3, 3),
        (None, 99, 10, 99),
        (3, 99, 3, 3),
    ],
)
def test_the_engine_is_told_of_more_than_the_window_has_room_for(
    asked: int | None, default: int | None, effective: int, for_the_engine: int
) -> None:
    request = ChatRequest(
        request_id="r", model="m", messages=(), sampling=SamplingOptions(max_tokens=asked)
    )
    defaults = SamplingOptions(max_tokens=default)
    sampling = effective_options(request, defaults, prompt_tokens=90, max_model_len=100)
    assert sampling.max_tokens == effective
    wanted = wanted_tokens(request, defaults)
    params = engine_params(sampling, request, wanted=wanted, eos_token_ids=())
    assert params.max_tokens == for_the_engine
