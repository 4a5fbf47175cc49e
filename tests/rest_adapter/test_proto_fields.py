"""Copying JSON to the proto: what is set, and that no sampling setting of the proto can be forgotten."""

from __future__ import annotations

from pydantic import create_model
import pytest

from qwenvl.inference.v1 import sampling_pb2 as sampling_pb
from rest_adapter.json_model import JsonModel
from rest_adapter.openai.fields import AnswerRequest
from rest_adapter.proto_fields import SAMPLING_SCALARS, require_sampling_fields, set_fields


def test_only_fields_that_are_set_are_copied() -> None:
    options = sampling_pb.SamplingOptions()
    request = AnswerRequest(model="m", temperature=0.0, ignore_eos=False)
    set_fields(options, request, SAMPLING_SCALARS)
    assert [field.name for field, _ in options.ListFields()] == ["temperature", "ignore_eos"]


def test_a_forgotten_sampling_setting_is_an_error_at_start_up() -> None:
    names = {*SAMPLING_SCALARS, "logit_bias", "allowed_token_ids", "bad_words"} - {"min_p"}
    model = create_model("Forgetful", __base__=JsonModel, **dict.fromkeys(names, (int, 0)))  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"Forgetful lacks .*: min_p$"):
        require_sampling_fields(model)
