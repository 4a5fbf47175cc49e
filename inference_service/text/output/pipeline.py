"""The output pipeline of one answer: its stages in order."""

from __future__ import annotations

from collections.abc import Sequence

from inference_service.domain import ChatRequest, ImageInfo, Request, TextPart, Tool, ToolMode
from inference_service.model_spec import BoxNotation, ToolNotation
from inference_service.text.output.boxes import BoxReader, tag_tokens
from inference_service.text.output.detokenize import Detokenizer
from inference_service.text.output.reasoning import (
    CLOSE_TAG,
    OPEN_TAG,
    ReasoningSplitter,
    ReasoningStart,
)
from inference_service.text.output.stage import Piece, Stage
from inference_service.text.output.stop import StopStringFilter
from inference_service.text.output.tool_calls import TAG_TOKENS, ToolCallSplitter, call_beginnings
from inference_service.text.tokenizer import Tokenizer


class Pipeline:
    """Turns the tokens of one answer into its text and the data parsed from it."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        """Takes new stages in order; the first one decodes token ids to text."""
        self._stages = stages
        self._token_by_token = any(stage.may_end or stage.counts_tokens for stage in stages)
        self._boxes = [stage for stage in stages if isinstance(stage, BoxReader)]

    @property
    def characters_read(self) -> int:
        """How many characters of the answer so far are read for boxes when it ends."""
        return sum(boxes.characters for boxes in self._boxes)

    def push(
        self,
        token_ids: tuple[int, ...],
        *,
        last: bool,
        is_cut: bool = False,
        reads_boxes: bool = True,
    ) -> Piece:
        """Takes the tokens of one engine output.

        Args:
            token_ids: In order, without an end token; may be empty.
            last: No tokens follow.
            is_cut: They would, had the model ended the answer.
            reads_boxes: Whether boxes are parsed when the answer ends, or later.

        Returns:
            The completed text and data; its `token_ids` are those given, up to the token that ended the answer.
        """
        if not self._token_by_token or len(token_ids) < 2:
            return self._through(
                Piece(token_ids=token_ids, last=last, is_cut=is_cut, reads_boxes=reads_boxes)
            )
        total = Piece()
        for number, token_id in enumerate(token_ids, start=1):
            at_end = last and number == len(token_ids)
            one = Piece(
                token_ids=(token_id,),
                last=at_end,
                is_cut=is_cut and at_end,
                reads_boxes=reads_boxes,
            )
            total.extend(self._through(one))
            if total.last:
                break
        return total

    def _through(self, piece: Piece) -> Piece:
        for stage in self._stages:
            stage.push(piece)
        return piece


def build_pipeline(
    request: Request,
    tokenizer: Tokenizer,
    notation: BoxNotation,
    images: Sequence[ImageInfo],
    *,
    tools: ToolNotation = ToolNotation.NONE,
    reasoning: ReasoningStart = ReasoningStart.TEXT,
) -> Pipeline:
    """Builds the pipeline for one answer of a request; arguments as `Answer`."""
    parsed = _parsed_tools(request) if tools is not ToolNotation.NONE else ()
    reasons = reasoning is not ReasoningStart.TEXT
    close_id = tokenizer.added_tokens.get(CLOSE_TAG) if reasons else None
    shown = (
        *((OPEN_TAG, CLOSE_TAG) if reasons else ()),
        *(TAG_TOKENS if parsed else ()),
        *(tag_tokens(notation) if request.grounding else ()),
    )
    stages: list[Stage] = [
        Detokenizer(
            tokenizer,
            skip_special_tokens=not request.keep_special_tokens,
            shown=shown,
            marked=close_id,
        )
    ]
    if request.stop_strings:
        stages.append(StopStringFilter(request.stop_strings, include=request.include_stop_string))
    if reasons:
        stages.append(ReasoningSplitter(reasoning, close_id, call_beginnings(tools, parsed)))
    if parsed:
        stages.append(
            ToolCallSplitter(
                tools,
                parsed,
                only_one=not _may_call_again(request),
                only_calls=_must_call(request),
            )
        )
    if request.grounding:
        stages.append(BoxReader(notation, images, _beginning(request)))
    return Pipeline(stages)


def _parsed_tools(request: Request) -> tuple[Tool, ...]:
    """The tools whose calls are read from the answer."""
    if not isinstance(request, ChatRequest) or request.tool_choice.mode is ToolMode.NONE:
        return ()
    return request.tools


def _may_call_again(request: Request) -> bool:
    return not isinstance(request, ChatRequest) or request.tool_choice.parallel


def _must_call(request: Request) -> bool:
    return isinstance(request, ChatRequest) and request.tool_choice.mode is ToolMode.REQUIRED


def _beginning(request: Request) -> str:
    """The text of the message that the answer continues; empty if it is a new message."""
    if not isinstance(request, ChatRequest) or not request.continue_final_message:
        return ""
    return "".join(part.text for part in request.messages[-1].parts if isinstance(part, TextPart))
