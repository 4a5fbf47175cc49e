from __future__ import annotations

import os
import socket
import struct

from hypothesis import given
from hypothesis import strategies as st
import pytest

from inference_service.engine_protocol import wire
from inference_service.engine_protocol.messages import (
    ChoiceOutput,
    EngineConfig,
    EngineFailure,
    EngineReady,
    EngineStats,
    FinishReason,
    PositionLogprobs,
    PromptSource,
)
from tests.engine_client.engine_front import open_descriptors, request_of


LOGPROBS = PositionLogprobs(token_id=7, logprob=-0.5, rank=1, top=((7, -0.5), (8, float("-inf"))))
COMMANDS: list[wire.Command] = [
    wire.Start(EngineConfig(model_dir="somewhere", num_kv_pages=3, cpu_threads=None)),
    wire.Add(request_of("a", 1, 2**40, images=[b"rgb", b"rgbrgb"]), 9),
    wire.Add(request_of("n", num_choices=4)),
    wire.Abort("a"),
    wire.Abort("a", 2),
    wire.Prepare(1, PromptSource(text="a", is_guarded=True), 9),
    wire.Forget(1),
]
EVENTS: list[wire.Event] = [
    wire.Loaded(
        EngineReady(
            device="cpu",
            dtype="float32",
            max_model_len=10,
            kv_pages_total=1,
            kv_page_tokens=16,
            kv_bytes_per_token=4,
            weight_bytes=2**40,
            parts=(("vision", 1),),
        )
    ),
    wire.LoadFailed("SpecError: ünknown"),
    wire.Outputs(
        (
            ChoiceOutput(request_id="a", choice_index=0, token_ids=(1,), logprobs=(LOGPROBS,)),
            ChoiceOutput(
                request_id="b", choice_index=1, prompt_logprobs=(LOGPROBS,), num_cached_tokens=0
            ),
            ChoiceOutput(
                request_id="c",
                choice_index=3,
                finish_reason=FinishReason.ERROR,
                failure=EngineFailure(
                    reason="CONTEXT_LENGTH_EXCEEDED",
                    message="too long",
                    metadata={"prompt_tokens": "9"},
                    retry_after_s=1.0,
                ),
            ),
        )
    ),
    wire.Heartbeat(EngineStats(running=1, steps=2**50), 3),
]


def frame(payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + payload


@pytest.mark.parametrize("command", COMMANDS, ids=lambda m: type(m).__name__)
def test_commands_survive_the_way(command):
    assert wire.command_reader().feed(wire.encode(command)) == [command]


@pytest.mark.parametrize("event", EVENTS, ids=lambda m: type(m).__name__)
def test_events_survive_the_way(event):
    assert wire.event_reader().feed(wire.encode(event)) == [event]


@given(cuts=st.lists(st.integers(0, 2000), max_size=20))
def test_frames_may_come_in_any_pieces(cuts):
    stream = b"".join(wire.encode(event) for event in EVENTS)
    reader, start, received = wire.event_reader(), 0, []
    for cut in [*sorted(cuts), len(stream)]:
        received += reader.feed(stream[start:cut])
        start = max(start, cut)
    assert received == EVENTS


@given(payload=st.binary(max_size=200))
def test_garbage_is_a_message_or_a_wire_error(payload):
    for reader in (wire.command_reader(), wire.event_reader()):
        try:
            reader.feed(frame(payload))
        except wire.WireError:
            continue


@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
def test_one_wrong_byte_is_never_another_exception(position, value):
    stream = bytearray().join(wire.encode(command) for command in COMMANDS)
    stream[position % len(stream)] = value
    try:
        wire.command_reader().feed(bytes(stream))
    except wire.WireError:
        return


@pytest.mark.parametrize(
    "payload",
    [b"", b"\x80", b"\x81\xa4type\xa7unknown", b"\xc1", bytes(wire.encode(EVENTS[0])[4:-1])],
    ids=["empty", "no tag", "unknown tag", "never used byte", "cut off"],
)
def test_malformed_payloads_are_refused(payload):
    with pytest.raises(wire.WireError):
        wire.event_reader().feed(frame(payload))


def test_an_event_is_no_command():
    with pytest.raises(wire.WireError):
        wire.command_reader().feed(wire.encode(EVENTS[0]))


def test_a_long_frame_is_refused_by_its_header():
    with pytest.raises(wire.WireError, match="too long"):
        wire.event_reader().feed(struct.pack(">I", wire.MAX_FRAME_BYTES + 1))


def test_a_long_message_is_refused_before_it_is_sent():
    with pytest.raises(wire.WireError, match="does not fit"):
        wire.encode(wire.LoadFailed("x" * (wire.MAX_FRAME_BYTES + 1)))


def test_pixels_survive_the_way_and_cannot_be_written():
    before = open_descriptors()
    fd = wire.write_pixels([b"abc", memoryview(b"defg")[1:]])
    view = wire.map_pixels(fd, 6)
    assert bytes(view) == b"abcefg"
    assert view.readonly
    del view
    assert open_descriptors() == before


def test_a_small_memfd_is_refused():
    before = open_descriptors()
    with pytest.raises(wire.WireError, match="smaller"):
        wire.map_pixels(wire.write_pixels([b"abc"]), 4)
    assert open_descriptors() == before


def test_descriptors_come_in_the_order_of_their_frames():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for text in (b"first", b"second"):
            fd = wire.write_pixels([text])
            ours.sendall(wire.encode(wire.Abort("between")))
            socket.send_fds(ours, [wire.encode(wire.Add(request_of("a"), len(text)))], [fd])
            os.close(fd)
        ours.shutdown(socket.SHUT_WR)
        reader, commands, views = wire.command_reader(), [], []
        while True:
            data, fds, _, _ = socket.recv_fds(theirs, wire.READ_BYTES, 16)
            if not data:
                break
            commands += reader.feed(data)
            views += [bytes(wire.map_pixels(fd, os.fstat(fd).st_size)) for fd in fds]
    assert [type(command) for command in commands] == [wire.Abort, wire.Add] * 2
    assert views == [b"first", b"second"]
