"""The counter of fields reads a message as the parser does, so that nothing passes it uncounted."""

from collections.abc import Callable
import random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet
from hypothesis import given
from hypothesis import strategies as st
import pytest

from inference_service.errors import InvalidArgumentError
from inference_service.grpc_api import wire_fields
from inference_service.grpc_api.wire_fields import check_fields
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import completion_service_pb2 as completion_pb
from qwenvl.inference.v1 import decision_service_pb2 as decision_pb
from qwenvl.inference.v1 import message_pb2 as message_pb


CHAT: Any = chat_pb.CreateChatCompletionRequest.DESCRIPTOR
DECISIONS: Any = decision_pb.CreateDecisionsRequest.DESCRIPTOR
START, END = b"\x9b\x32", b"\x9c\x32"  # of a group that no message has


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


TURNS = field(1, b"\x12\x02\x08\x03" * (wire_fields.MAX_FIELDS + 1))
OVERLONG = b"\x0a\x0b" + b"\xff" * 11
"""A field whose bytes are no integer: whoever takes it for a message stops there."""


@pytest.mark.parametrize(
    "behind",
    [
        b"",
        START + OVERLONG + END,
        START + field(1, b"") + END,
        START + START + OVERLONG + END + END,
        START + b"\x0a\xff\xff\x03" + END,
        field(1, b"\x9b\x32" + OVERLONG + END),
    ],
    ids=["nothing", "an integer", "a field", "two groups", "a length", "a group inside"],
)
@pytest.mark.parametrize("turned", [False, True])
def test_nothing_behind_many_fields_keeps_them_from_being_counted(
    behind: bytes, *, turned: bool
) -> None:
    with pytest.raises((InvalidArgumentError, DecodeError)):
        check_fields(behind + TURNS if turned else TURNS + behind, CHAT)


def a_chat(draw: random.Random) -> Message:
    turn = message_pb.Message(
        role=message_pb.ROLE_USER, parts=[message_pb.Part(text="a")] * draw.randrange(3)
    )
    request = chat_pb.CreateChatCompletionRequest()
    request.spec.messages.extend([turn] * draw.randrange(4))
    request.spec.sampling.allowed_token_ids.extend(range(draw.randrange(200)))
    request.spec.stop.strings.extend(["b"] * draw.randrange(3))
    return request


def a_completion(draw: random.Random) -> Message:
    request = completion_pb.CreateCompletionRequest()
    request.spec.token_ids.ids.extend([1, 300] * draw.randrange(5))
    request.spec.sampling.bad_words.extend(["c"] * draw.randrange(3))
    return request


def some_decisions(draw: random.Random) -> Message:
    request = decision_pb.CreateDecisionsRequest()
    for _ in range(draw.randrange(4)):
        choice = request.spec.questions.add(name="d").choice
        for _ in range(draw.randrange(4)):
            choice.options.add(text="e")
    return request


def in_it(message: Message) -> int:
    """The fields of a parsed message and all inside, one for a list of numbers; of what is unknown, the outermost."""
    count = len(UnknownFieldSet(message))
    for kind, value in message.ListFields():
        values = value if kind.is_repeated else [value]
        if kind.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            count += sum(1 + in_it(one) for one in values)
        elif kind.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            count += len(values)
        else:
            count += 1
    return count


def counted(data: bytes, kind: Any) -> int:
    """The least limit that lets a message pass."""
    low, high = 0, len(data)
    while low < high:
        middle = (low + high) // 2
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(wire_fields, "MAX_FIELDS", middle)
            try:
                check_fields(data, kind)
            except InvalidArgumentError:
                low = middle + 1
            else:
                high = middle
    return low


@pytest.mark.parametrize("make", [a_chat, a_completion, some_decisions])
@given(seed=st.integers(0, 2**32), changes=st.integers(0, 4))
def test_what_the_parser_takes_has_no_more_fields_than_counted(
    make: Callable[[random.Random], Message], seed: int, changes: int
) -> None:
    draw = random.Random(seed)
    message = make(draw)
    data = bytearray(message.SerializeToString())
    for _ in range(changes):
        place = draw.randrange(len(data) + 1)
        data[place : place + draw.randrange(3)] = draw.choice(
            [
                START,
                END,
                OVERLONG,
                b"\xff",
                b"\x80\x00",
                b"\x0a",
                b"\x12\x02\x08\x03",
                b"\x0d",
                b"\x09",
            ]
        )
    try:
        parsed = type(message).FromString(bytes(data))
    except (DecodeError, UnicodeDecodeError):
        return
    try:
        got = counted(bytes(data), message.DESCRIPTOR)
    except DecodeError:
        assert changes, "of an honest client"
        return
    assert in_it(parsed) <= got


def test_the_error_names_where_most_fields_are() -> None:
    turns = field(2, b"\x08\x03")
    options = field(4, field(1, b"\x0a\x01a") * 300)
    with pytest.raises(InvalidArgumentError) as caught:
        check_fields(field(1, turns + field(3, options) * 400), DECISIONS)
    assert caught.value.field == "spec.questions"
