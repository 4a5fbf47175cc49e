"""The error table holds in both directions and covers every error the service can raise."""

from __future__ import annotations

import re

import grpc
import pytest

from inference_service import errors
from qwenvl.errors import BY_REASON, mapping_for


def all_service_errors() -> list[type[errors.ServiceError]]:
    found: list[type[errors.ServiceError]] = []
    todo = [errors.ServiceError]
    while todo:
        current = todo.pop()
        found.append(current)
        todo.extend(current.__subclasses__())
    return found


@pytest.mark.parametrize("error", all_service_errors(), ids=lambda e: e.__name__)
def test_every_service_error_has_a_row(error: type[errors.ServiceError]) -> None:
    assert error.reason in BY_REASON


def test_every_row_is_raised_by_somebody() -> None:
    raised = {error.reason for error in all_service_errors()}
    # Only the transport makes this one.
    assert BY_REASON.keys() - raised == {"MESSAGE_TOO_LARGE"}


@pytest.mark.parametrize("reason", sorted(BY_REASON))
def test_rows_are_well_formed(reason: str) -> None:
    row = BY_REASON[reason]
    assert re.fullmatch(r"[A-Z][A-Z0-9_]{0,62}", row.reason)  # AIP-193
    assert 400 <= row.http_status <= 599
    assert row.openai_type in {"invalid_request_error", "rate_limit_error", "server_error"}
    assert (row.openai_type == "server_error") == (row.http_status >= 500)
    assert mapping_for(row.grpc_code, reason) is row


@pytest.mark.parametrize("code", list(grpc.StatusCode), ids=lambda c: c.name)
def test_a_status_without_reason_maps_to_a_row_of_the_same_kind(code: grpc.StatusCode) -> None:
    row = mapping_for(code)
    client_side = {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.ABORTED,
    }
    assert (row.http_status < 500) == (code in client_side)


def test_an_unknown_reason_falls_back_to_the_code() -> None:
    assert mapping_for(grpc.StatusCode.NOT_FOUND, "FROM_A_NEWER_SERVER").http_status == 404
