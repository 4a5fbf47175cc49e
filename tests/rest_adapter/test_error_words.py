"""The service's errors in the words of the REST request: its field names, and every figure of the metadata."""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2
import grpc
import grpc.aio
import pytest

from qwenvl.errors import DOMAIN
from rest_adapter.errors import ApiError, from_rpc
from rest_adapter.openai.completions.schema import parse_completion
from rest_adapter.openai.completions.translate import FieldPaths


PARAMS = FieldPaths(
    parse_completion({"model": "m", "prompt": "x", "images": [{"url": "https://h/"}]})[0]
)


def translated(
    message: str,
    field: str,
    param_of: Callable[[str], str | None] = PARAMS.param_of,
    **metadata: str,
) -> ApiError:
    """What becomes of an error of the service with these details."""
    details = [
        error_details_pb2.ErrorInfo(reason="INVALID_ARGUMENT", domain=DOMAIN, metadata=metadata),
        error_details_pb2.BadRequest(
            field_violations=[error_details_pb2.BadRequest.FieldViolation(field=field)]
        ),
    ]
    packed = [AnyMessage() for _ in details]
    for target, detail in zip(packed, details, strict=True):
        target.Pack(detail)
    code = grpc.StatusCode.INVALID_ARGUMENT
    status = status_pb2.Status(code=code.value[0], message=message, details=packed)
    trailing = grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString()))
    error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details=message)
    return from_rpc(error, param_of)


@pytest.mark.parametrize(
    ("message", "field", "told", "param"),
    [
        ("stop.strings[1] has 300 bytes.", "spec.stop.strings", "stop[1] has 300 bytes.", "stop"),
        ("stop.strings has 65 entries.", "spec.stop.strings", "stop has 65 entries.", "stop"),
        ("strings is wrong.", "spec.stop.strings", "stop is wrong.", "stop"),
        ("stop.token_ids contains -1.", "spec.stop.token_ids", "stop_token_ids contains -1.", None),
        ("top_logprobs is 21.", "spec.logprobs.top_logprobs", "logprobs is 21.", "logprobs"),
        ("temperature is 3.", "spec.sampling.temperature", "temperature is 3.", "temperature"),
        ("text is empty.", "spec.text", "prompt is empty.", "prompt"),
        ("The text is odd.", "spec.text", "The text is odd.", "prompt"),
        ("texts are odd.", "spec.text", "texts are odd.", "prompt"),
    ],
)
def test_names(message: str, field: str, told: str, param: str | None) -> None:
    error = translated(message, field)
    assert error.message == told
    assert param is None or error.param == param


def test_an_index_is_told_once() -> None:
    """Whether the field that the caller knows has it, or the message alone."""
    for message, field, param, told in (
        (
            "options[1] is odd.",
            "spec.q[0].options[1]",
            "q[0].choices[1]",
            "q[0].choices[1] is odd.",
        ),
        ("options[1] is odd.", "spec.options[1]", "choices", "choices[1] is odd."),
        ("text is odd.", "spec.q[0].options[1].text", "q[0].choices[1].value", None),
    ):
        error = translated(message, field, {field: param}.get)
        assert error.message == (told or f"{param} is odd.")


def test_a_value_that_the_message_quotes_is_not_repeated() -> None:
    for name in ("中\0", "a'b", "\"'\n", "\\"):
        message = f"The model {name!r} is not served here."
        assert translated(message, "spec.model", model=name).message == message


def test_figures_that_only_the_metadata_has_are_appended() -> None:
    error = translated("Too big: 10 bytes.", "spec.text", bytes="10", max_bytes="7")
    assert error.message == "Too big: 10 bytes. (max_bytes: 7)"
