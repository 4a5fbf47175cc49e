"""The requests in flight."""

from __future__ import annotations

import asyncio

import pytest

from inference_service.backend.admission import Admission, AdmittedRequest
from inference_service.errors import (
    AbortedError,
    DrainingError,
    QueueFullError,
    RequestIdInUseError,
)


def test_an_id_is_free_again_when_its_request_has_ended() -> None:
    admission = Admission(2)
    with admission.admit("a", "me"):
        with pytest.raises(RequestIdInUseError) as caught, admission.admit("a", "you"):
            pass
        assert caught.value.field == "spec.request_id"
        assert admission.in_flight == 1
    with admission.admit("a", "you"):
        assert admission.in_flight == 1


def test_the_queue_is_bounded_and_a_failed_request_leaves_it() -> None:
    admission = Admission(1)

    def fail_in_flight() -> None:
        with admission.admit("a", "me"):
            with pytest.raises(QueueFullError), admission.admit("b", "me"):
                pass
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_in_flight()
    assert admission.in_flight == 0


def test_only_the_caller_or_an_operator_aborts() -> None:
    admission = Admission(2)
    with admission.admit("a", "me") as mine, admission.admit("b", "me") as other:
        assert not admission.abort("a", "you")
        assert not mine.aborted
        assert admission.abort("a", "me")
        assert admission.abort("b", None)
        assert [mine.aborted, other.aborted] == [True, True]
    assert not admission.abort("a", "me")


async def test_closed_admission_lets_the_last_request_end() -> None:
    admission = Admission(2)
    with admission.admit("a", "me"):
        admission.close()
        with pytest.raises(DrainingError), admission.admit("b", "me"):
            pass
        waiting = asyncio.ensure_future(admission.wait_idle())
        await asyncio.sleep(0)
        assert not waiting.done()
    async with asyncio.timeout(10):
        await waiting


async def test_an_abort_ends_an_abortable_block_and_nothing_after_it() -> None:
    admission = Admission(1)
    with admission.admit("a", "me") as admitted:
        waiting = asyncio.ensure_future(_wait_abortably(admitted))
        await asyncio.sleep(0)
        assert admission.abort("a", "me")
        assert admission.abort("a", "me")
        async with asyncio.timeout(10):
            with pytest.raises(AbortedError):
                await waiting
    with admission.admit("a", "me") as admitted:
        async with admitted.abortable():
            pass
        assert admission.abort("a", "me")
        await asyncio.sleep(0)  # a cancellation would be raised here
        with pytest.raises(AbortedError):
            admitted.raise_if_aborted()


async def test_a_timeout_in_an_abortable_block_is_no_abort() -> None:
    admitted = AdmittedRequest("me")
    with pytest.raises(TimeoutError):
        async with admitted.abortable(), asyncio.timeout(0):
            await asyncio.sleep(10)


async def _wait_abortably(admitted: AdmittedRequest) -> None:
    async with admitted.abortable():
        await asyncio.Event().wait()
