"""Long answers take memory by their length, not by its square."""

from __future__ import annotations

import subprocess
import sys

import pytest

from qwenvl.growing import GrowingTexts
from qwenvl.inference.v1 import generation_pb2 as generation_pb


PROGRAM = """
import resource
PIECE, NUMBER = "x" * 128, 3000
PIECES = (
    {"text": PIECE},
    {"reasoning": PIECE},
    {"tool_calls": [dict(index=0, **{ARGUMENTS: PIECE})]},
)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

collect(PIECES[0], 10)
before = peak()
for piece in PIECES:
    choice = collect(piece, NUMBER)
    call = choice.tool_calls[0].arguments_json if choice.tool_calls else ""
    assert len(choice.text + choice.reasoning + call) == NUMBER * len(PIECE)
print(peak() - before)
"""
SIDES = {
    "service": """
import asyncio
from types import SimpleNamespace
from inference_service.domain import Delta, Started, TokenUsage, ToolCallDelta
from inference_service.grpc_api.responses import gather
from inference_service.sampling import Sampling
ARGUMENTS = "arguments"
REQUEST = SimpleNamespace(model="m", logprobs=None, prompt_logprobs=None, n=1)

async def events(piece, number):
    sampling = dict(sampling=Sampling(max_tokens=1), stop_strings=(), stop_token_ids=(), include_stop_string=False)
    usage = TokenUsage(prompt_tokens=1, image_tokens=0)
    yield Started(request_id="r", created=0, n=1, usage=usage, images=(), **sampling)
    calls = tuple(ToolCallDelta(**call) for call in piece.get("tool_calls", ()))
    for _ in range(number):
        yield Delta(choice_index=0, **piece | {"tool_calls": calls})

def collect(piece, number):
    return asyncio.run(gather(events(piece, number), REQUEST)).choices[0]
""",
    "client": """
from qwenvl.answers import AnswerCollector
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
ARGUMENTS = "arguments_json"

def collect(piece, number):
    response = chat_pb.CreateChatCompletionResponse()
    collector = AnswerCollector(response)
    for _ in range(number):
        collector.add(chat_pb.StreamChatCompletionResponse(delta=piece))
    collector.end()
    return response.choices[0]
""",
}


@pytest.mark.parametrize("side", SIDES)
def test_a_long_answer_takes_memory_by_its_length(side: str) -> None:
    """A field that was set anew for each piece would hold 576 MB of each kind."""
    ran = subprocess.run(
        [sys.executable, "-c", SIDES[side] + PROGRAM],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < 64 * 2**20


def test_pieces_are_joined() -> None:
    texts = GrowingTexts(text=["a", "b"], reasoning=["c", "d"])
    texts.add_arguments(1, "{}")
    texts.add_arguments(0, "[")
    texts.add_arguments(0, "]")
    choice = generation_pb.Choice()
    for name in ("f", "g"):
        choice.tool_calls.add(name=name)
    texts.fill(choice)
    assert (choice.text, choice.reasoning) == ("ab", "cd")
    assert [call.arguments_json for call in choice.tool_calls] == ["[]", "{}"]
