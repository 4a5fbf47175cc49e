"""What is held back for tags: the same as by plain comparisons, in few steps, and no more than a little white space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import json
import string

from hypothesis import given
from hypothesis import strategies as st
import pytest

from inference_service.domain import Tool
from inference_service.model_spec import ToolNotation
from inference_service.text.output.held import MAX_SPACE, Tags
from inference_service.text.output.reasoning import ReasoningSplitter, ReasoningStart
from inference_service.text.output.stage import Piece
from inference_service.text.output.stop import StopStringFilter
from inference_service.text.output.tool_calls import ToolCallSplitter
from inference_service.text.output.xml_call import XmlReader
from tests.support.line_counts import lines_of


WORDS = st.text("ab", min_size=1, max_size=6)


def plain_beginning(text: str, tags: Sequence[str]) -> int:
    lengths = range(len(text), 0, -1)
    suffixes = (text[-length:] for length in lengths)
    return next(
        (
            len(one)
            for one in suffixes
            if any(tag.startswith(one) and len(tag) > len(one) for tag in tags)
        ),
        0,
    )


def plain_complete(text: str, tags: Sequence[str]) -> tuple[int, int] | None:
    found = [(at + len(tag), at) for tag in tags if (at := text.find(tag)) >= 0]
    if not found:
        return None
    end, start = min(found)
    return start, end


@given(st.lists(WORDS, max_size=6), st.text("abc", max_size=12))
def test_the_same_as_plainly(tags: list[str], text: str) -> None:
    assert Tags(tags).possible_beginning(text) == plain_beginning(text, tags)
    assert Tags(tags).first_complete(text) == plain_complete(text, tags)


def test_many_long_stop_strings_take_few_steps() -> None:
    """64 of 256 characters, of which no end of the text is a beginning: each was compared at each length."""
    letters = string.ascii_letters + string.digits + "-_"
    strings = ["a" * 200 + letter + "a" * 55 for letter in letters[1:]]
    stops = StopStringFilter([*strings, "b" * 100 + "a" * 156], include=False)
    pieces = [Piece(text=text) for text in ("a" * 128, "a" * 71 + "b", "c") * 10]

    def push() -> None:
        for piece in pieces:
            stops.push(piece)

    assert lines_of(push) < 20 * 10 * 4 * 256


def tool_stage(notation: ToolNotation) -> ToolCallSplitter:
    return ToolCallSplitter(notation, [Tool(name="f", description="", parameters="{}")])


STAGES: dict[str, tuple[Callable[[], ReasoningSplitter | ToolCallSplitter], str]] = {
    "text before calls": (lambda: tool_stage(ToolNotation.HERMES), "text"),
    "behind a call": (
        lambda: tool_stage(ToolNotation.HERMES),
        '<tool_call>{"name": "f", "arguments": {}}',
    ),
    "in a call": (lambda: tool_stage(ToolNotation.XML), "<tool_call>"),
    "behind a value": (
        lambda: tool_stage(ToolNotation.XML),
        "<tool_call><function=f><parameter=a>1</parameter>",
    ),
    "behind a function": (
        lambda: tool_stage(ToolNotation.XML),
        "<tool_call><function=f><parameter=a>1</parameter></function>",
    ),
    "a long name": (lambda: tool_stage(ToolNotation.XML), "<tool_call><function="),
    "reasoning": (lambda: ReasoningSplitter(ReasoningStart.OPEN, None), "thoughts"),
    "before reasoning": (lambda: ReasoningSplitter(ReasoningStart.OPTIONAL, None), ""),
    "behind reasoning": (lambda: ReasoningSplitter(ReasoningStart.OPEN, None), "a</think>"),
}


def held(stage: ReasoningSplitter | ToolCallSplitter) -> int:
    """The longest text that is read again at the next piece."""
    reader = getattr(stage, "_reader", None)
    texts = [stage._held, getattr(reader, "_held", "")]
    if isinstance(reader, XmlReader):
        texts.append(reader._text[max(reader._searched, reader._at) :])
    return max(map(len, texts))


@pytest.mark.parametrize("case", STAGES)
def test_white_space_without_end_is_not_held(case: str) -> None:
    new, begin = STAGES[case]
    stage = new()
    stage.push(Piece(text=begin))
    space = "x" if case == "a long name" else "\n"
    for _ in range(100):
        stage.push(Piece(text=space * 128))
        assert held(stage) <= MAX_SPACE + 256
    last = Piece(text="end", last=True)
    stage.push(last)
    assert last.text.endswith("end") or last.reasoning.endswith("end") or case == "behind a value"


def test_a_long_value_is_not_copied_at_each_token() -> None:
    stage = tool_stage(ToolNotation.XML)
    stage.push(Piece(text="<tool_call><function=f><parameter=a>"))
    for _ in range(100):
        stage.push(Piece(text="value</param" * 10))
        assert isinstance(stage._reader, XmlReader)
        assert len(stage._reader._text) < 200
        assert max(map(len, stage._unread)) < 200
    last = Piece(text="</parameter></function></tool_call>", last=True)
    stage.push(last)
    assert last.tool_calls[0].arguments == json.dumps({"a": "value</param" * 1000})


def test_tags_of_no_calls_are_not_read_without_end() -> None:
    """A call that is broken at its end contains what may begin others: behind each the text would be read again."""
    stage = tool_stage(ToolNotation.HERMES)
    inner = "<tool_call>" * 2000
    stage.push(Piece(text=f'<tool_call>["{inner}'))
    ended = Piece(text='" broken', last=True)

    def finish() -> None:
        stage.push(ended)

    assert lines_of(finish) < 10_000
    assert ended.text == f'<tool_call>["{inner}" broken'
    assert not ended.tool_calls


def test_a_call_behind_broken_ones_is_read() -> None:
    stage = tool_stage(ToolNotation.HERMES)
    piece = Piece(text="<tool_call>?" * 20 + '<tool_call>{"name": "f", "arguments": {}}', last=True)
    stage.push(piece)
    assert [call.name for call in piece.tool_calls] == ["f"]
