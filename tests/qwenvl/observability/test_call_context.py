"""The context of a call: which ids it has, what is read from its headers, and what is logged about it."""

from __future__ import annotations

import asyncio
from contextvars import copy_context

from hypothesis import given
from hypothesis import strategies as st
import pytest

from qwenvl.observability import CallContext, TraceParent, current_call, enter_call, name_call


TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"


def test_both_ids_the_trace_and_a_short_digest_of_the_key_are_logged() -> None:
    headers = {
        "x-request-id": "of-the-gateway",
        "traceparent": TRACEPARENT,
        "authorization": "Bearer secret",
    }
    call = CallContext.from_headers(headers, request_id="mine", deadline=5.0)
    assert call.deadline == 5.0
    assert call.log_fields() == {
        "request_id": "mine",
        "client_request_id": "of-the-gateway",
        "trace_id": TRACE,
        "span_id": SPAN,
        "caller": call.caller[:12],
    }
    assert len(call.caller) == 64


def test_a_request_id_is_made_whatever_the_client_calls_the_request() -> None:
    headers = {"x-request-id": "of-the-gateway"}
    made = {CallContext.from_headers(headers).request_id for _ in range(3)}
    assert len(made) == 3
    assert "of-the-gateway" not in made


def test_callers_are_told_apart_by_their_keys() -> None:
    def caller(authorization: str) -> str:
        return CallContext.from_headers({"authorization": authorization}).caller

    assert caller("Bearer a") == caller("Bearer a") != caller("Bearer b")
    assert caller("bearer a") == caller("BEARER   a ") == caller("Bearer a")
    assert (
        CallContext.from_headers({}).caller == caller("") == caller("Bearer ") == caller("a") == ""
    )
    assert "caller" not in CallContext.from_headers({}).log_fields()


@pytest.mark.parametrize("value", ["", "a b", "é", "x\n", "x" * 129])
def test_a_malformed_id_is_ignored(value: str) -> None:
    assert CallContext.from_headers({"x-request-id": value}).client_request_id is None
    call = CallContext.from_headers({}, request_id=value)
    assert call.request_id.startswith("req-")

    def name() -> CallContext | None:
        enter_call(call)
        assert name_call(value) == (value or call.request_id)
        return current_call()

    assert copy_context().run(name) == call


def test_a_traceparent_is_read_and_rendered() -> None:
    trace = TraceParent.parse(TRACEPARENT)
    assert trace == TraceParent(TRACE, SPAN, "01")
    assert str(trace) == TRACEPARENT


def test_a_later_version_may_have_more_fields() -> None:
    assert TraceParent.parse(f"cc-{TRACE}-{SPAN}-01-what-comes") == TraceParent(TRACE, SPAN, "01")


@pytest.mark.parametrize(
    "value",
    [
        "",
        TRACEPARENT.upper(),
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"{TRACEPARENT}-more",
        f"cc-{TRACE}-{SPAN}-01.more",
        f" {TRACEPARENT}",
        f"{TRACEPARENT}\n",
        TRACEPARENT[:-1],
    ],
)
def test_a_malformed_traceparent_is_ignored(value: str) -> None:
    assert TraceParent.parse(value) is None
    assert CallContext.from_headers({"traceparent": value}).traceparent is None


@given(
    st.dictionaries(st.sampled_from(["x-request-id", "traceparent", "authorization"]), st.text())
)
def test_no_header_breaks_a_call(headers: dict[str, str]) -> None:
    CallContext.from_headers(headers).log_fields()


async def test_every_task_has_its_own_call() -> None:
    async def handle(name: str) -> str:
        enter_call(CallContext(request_id=name))
        await asyncio.sleep(0)
        call = current_call()
        assert call is not None
        return call.request_id

    assert [*await asyncio.gather(handle("a"), handle("b"))] == ["a", "b"]
    assert current_call() is None


async def test_a_request_may_be_named_after_its_headers() -> None:
    with pytest.raises(LookupError):
        name_call("early")
    enter_call(CallContext(request_id="made", client_request_id="client"))
    assert name_call("") == "made"
    assert name_call("named") == "named"
    assert current_call() == CallContext(request_id="named", client_request_id="client")
