"""Results of tools go to their calls by id: in any order, over several turns; what belongs to no call is refused."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
import pytest

from inference_service.errors import InvalidArgumentError
from inference_service.grpc_api.request_messages import chat_messages
from inference_service.grpc_api.tool_results import messages_in_order
from qwenvl.inference.v1 import message_pb2 as message_pb
from tests.grpc_api.asking import image_part, user
from tests.support.images import draw


def calls(*ids: str) -> message_pb.Message:
    made = [message_pb.ToolCall(id=one, name="look") for one in ids]
    return message_pb.Message(role=message_pb.ROLE_ASSISTANT, tool_calls=made)


def result(call_id: str = "", text: str = "") -> message_pb.Message:
    parts = [message_pb.Part(text=text)]
    return message_pb.Message(role=message_pb.ROLE_TOOL, tool_call_id=call_id, parts=parts)


def said(text: str = "Hm.") -> message_pb.Message:
    parts = [message_pb.Part(text=text)]
    return message_pb.Message(role=message_pb.ROLE_ASSISTANT, parts=parts)


ORDERS: dict[str, tuple[list[message_pb.Message], list[int]]] = {
    "in order": ([user("x"), calls("a", "b"), result("a"), result("b")], [0, 1, 2, 3]),
    "as they were done": ([user("x"), calls("a", "b"), result("b"), result("a")], [0, 1, 3, 2]),
    "of three": (
        [calls("a", "b", "c"), result("c"), result("a"), result("b"), user("y")],
        [0, 2, 3, 1, 4],
    ),
    "around a message": ([calls("a", "b"), result("b"), user("y"), result("a")], [0, 3, 2, 1]),
    "several turns, each with its own order": (
        [
            *(calls("a", "b"), result("b"), result("a"), said()),
            *(calls("c", "d"), result("d"), result("c")),
        ],
        [0, 2, 1, 3, 4, 6, 5],
    ),
    "the same ids in a later turn": (
        [calls("a", "b"), result("a"), result("b"), calls("a", "b"), result("b"), result("a")],
        [0, 1, 2, 3, 5, 4],
    ),
    "one turn of two answers": (
        [calls("a"), said(), calls("b"), result("b"), result("a")],
        [0, 1, 2, 4, 3],
    ),
    "late, of an earlier turn": (
        [calls("a"), user("y"), calls("b"), result("b"), result("a")],
        [0, 1, 2, 3, 4],
    ),
    "without ids": ([calls("a", "b"), result(text="1"), result(text="2")], [0, 1, 2]),
    "of calls without ids": ([calls("", ""), result(), result()], [0, 1, 2]),
    "some without an id": ([calls("a", "b", "c"), result(), result("a"), result()], [0, 2, 1, 3]),
    "one with another id, of one call": ([calls("a"), result("b")], [0, 1]),
    "calls at the end": ([user("x"), calls("a", "b")], [0, 1]),
    "no tools": ([user("x"), said(), user("y")], [0, 1, 2]),
}


@pytest.mark.parametrize("case", ORDERS)
def test_results_are_in_the_order_of_the_calls(case: str) -> None:
    messages, order = ORDERS[case]
    assert messages_in_order(messages) == order


REFUSED: dict[str, tuple[list[message_pb.Message], str]] = {
    "an id of no call": (
        [calls("a", "b"), result("a"), result("c")],
        "spec.messages[2].tool_call_id",
    ),
    "an id of a later call": ([result("a"), calls("a")], "spec.messages[0].tool_call_id"),
    "no call at all": ([user("x"), result()], "spec.messages[1].role"),
    "one result too many": ([calls("a"), result("a"), result()], "spec.messages[2].role"),
    "one call and two other ids": (
        [calls("a"), result("b"), result("c")],
        "spec.messages[2].tool_call_id",
    ),
    "two results of a call": (
        [calls("a", "b"), result("a"), result("a")],
        "spec.messages[2].tool_call_id",
    ),
    "a second result, later": (
        [calls("a"), result("a"), user("y"), result("a")],
        "spec.messages[3].tool_call_id",
    ),
    "one id twice": ([user("x"), calls("a", "b", "a")], "spec.messages[1].tool_calls[2].id"),
    "one id twice in two answers": (
        [calls("a"), calls("a"), result("a")],
        "spec.messages[1].tool_calls[0].id",
    ),
    "a call without a result": ([calls("a", "b"), result("b")], "spec.messages[0].tool_calls[0]"),
    "calls before a message": ([calls("a"), user("y")], "spec.messages[0].tool_calls[0]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_belongs_to_nothing_is_refused(case: str) -> None:
    messages, field = REFUSED[case]
    with pytest.raises(InvalidArgumentError) as caught:
        messages_in_order(messages)
    assert caught.value.field == field


@given(
    turns=st.lists(
        st.integers(1, 5).flatmap(lambda n: st.permutations(range(n))), min_size=1, max_size=4
    ),
    talks=st.booleans(),
)
def test_any_order_of_results_is_that_of_the_calls(turns: list[list[int]], *, talks: bool) -> None:
    messages, wanted = [], []
    for turn in turns:
        messages += [calls(*(f"call_{number}" for number in range(len(turn))))]
        messages += [result(f"call_{number}", f"result {number}") for number in turn]
        messages += [user("Go on.")] * talks
        wanted += [f"result {number}" for number in range(len(turn))]
    converted: Any = chat_messages(messages)
    assert [one.parts[0].text for one in converted if one.role.value == "tool"] == wanted


def test_images_and_errors_keep_the_index_of_the_caller() -> None:
    png = draw("red", "circle").png
    messages = [calls("a", "b"), result("b"), result("a")]
    messages[1].parts.append(image_part(png))
    messages[2].parts.append(image_part(png))
    fields = [part.field for one in chat_messages(messages) for part in one.parts[1:]]  # type: ignore[union-attr]
    assert fields == ["spec.messages[2].parts[1].image", "spec.messages[1].parts[1].image"]
    messages[1].parts[1].image.uuid = "x" * 257
    with pytest.raises(InvalidArgumentError) as caught:
        chat_messages(messages)
    assert caught.value.field == "spec.messages[1].parts[1].image.uuid"
