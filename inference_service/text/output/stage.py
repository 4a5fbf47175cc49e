"""The interface of a stage of the output pipeline, and the piece that stages pass on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from inference_service.domain import Grounding, StopTrigger, ToolCallDelta


@dataclass(slots=True, kw_only=True)
class Piece:
    """A piece of one answer in the pipeline; stages change it in place, as there is one per token.

    Attributes:
        token_ids: The tokens of the piece.
        text: The text after the stages so far, in whole characters.
        marks: Where in `text` the token stands that ends the reasoning: its text alone may be a quotation.
        reasoning: The reasoning, which is no longer part of `text`.
        reasoning_tokens: Tokens of the reasoning in all pieces so far.
        tool_calls: Pieces of tool calls, which are no longer part of `text`.
        calls_tools: The answer so far has tool calls, and each is complete.
        reads_boxes: Whether boxes are parsed when the answer ends, or later.
        groundings: Boxes parsed from the answer, in order.
        unread: Parses them later, if that is wanted and the answer has ended.
        trigger: The reason if a stage, not the engine, ended the answer.
        last: No piece follows: stages release all text that they hold back.
        is_cut: The model has not ended the answer: a limit, a stop string or a stop token of the request has.
    """

    token_ids: tuple[int, ...] = ()
    text: str = ""
    marks: tuple[int, ...] = ()
    reasoning: str = ""
    reasoning_tokens: int = 0
    tool_calls: tuple[ToolCallDelta, ...] = ()
    calls_tools: bool = False
    reads_boxes: bool = True
    groundings: tuple[Grounding, ...] = ()
    unread: Callable[[], tuple[Grounding, ...]] | None = None
    trigger: StopTrigger | None = None
    last: bool = False
    is_cut: bool = False

    def extend(self, later: Piece) -> None:
        """Appends the next piece."""
        self.token_ids += later.token_ids
        self.marks += tuple(len(self.text) + index for index in later.marks)
        self.text += later.text
        self.reasoning += later.reasoning
        self.reasoning_tokens = later.reasoning_tokens
        self.tool_calls += later.tool_calls
        self.calls_tools = later.calls_tools
        self.groundings += later.groundings
        self.unread = later.unread
        self.trigger = later.trigger
        self.last = later.last
        self.is_cut = later.is_cut


class Stage(Protocol):
    """One step of the pipeline, with the state of one answer.

    The concatenated results do not depend on how an answer is split into pieces.
    """

    @property
    def may_end(self) -> bool:
        """The stage may end the answer. Its pieces have one token each: tokens after the end are not in the answer."""

    @property
    def counts_tokens(self) -> bool:
        """The stage counts the tokens of a part of the text. Its pieces have one token each."""

    def push(self, piece: Piece) -> None:
        """Changes a piece to its completed part, and holds back the rest for the next one.

        To end the answer, a stage sets `trigger` and `last`. Nothing is pushed after a last piece.
        """
