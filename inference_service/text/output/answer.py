"""Turns the engine's outputs for one answer into events: text, log probabilities, finish reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import dataclasses

from inference_service.domain import (
    Delta,
    EndReason,
    Finished,
    Grounding,
    ImageInfo,
    LogprobEntry,
    Request,
    StopTrigger,
    ToolCallDelta,
)
from inference_service.engine_protocol.messages import ChoiceOutput, FinishReason, PositionLogprobs
from inference_service.model_spec import BoxNotation, ToolNotation
from inference_service.text.output.logprobs import logprob_entry
from inference_service.text.output.pipeline import build_pipeline
from inference_service.text.output.reasoning import ReasoningStart
from inference_service.text.output.stage import Piece
from inference_service.text.tokenizer import Tokenizer


_END_REASONS = {
    FinishReason.EOS: EndReason.STOP,
    FinishReason.STOP_TOKEN: EndReason.STOP,
    FinishReason.LENGTH: EndReason.LENGTH,
    FinishReason.CONTEXT_LENGTH: EndReason.CONTEXT_LENGTH,
    FinishReason.ABORTED: EndReason.ABORTED,
}
_BY_TOKEN = (FinishReason.EOS, FinishReason.STOP_TOKEN)
"""Ends by a token that is no part of the text."""


class Answer:
    """One answer in progress.

    Attributes:
        finished: The answer is complete: the sequence ended, or a stop string was found.
        completion_tokens: Tokens of the answer so far, an end token included.
        reasoning_tokens: Those of its reasoning.
        unread: Parses its boxes, once it is finished, if `push` has not.
    """

    def __init__(
        self,
        index: int,
        request: Request,
        tokenizer: Tokenizer,
        notation: BoxNotation = BoxNotation.NONE,
        images: tuple[ImageInfo, ...] = (),
        *,
        tools: ToolNotation = ToolNotation.NONE,
        reasoning: ReasoningStart = ReasoningStart.TEXT,
    ) -> None:
        """Starts an answer.

        Args:
            index: Index of the answer in the request.
            request: The request.
            tokenizer: The model's tokenizer.
            notation: How the model writes boxes; they are read if the request asks for them.
            images: Images of the prompt, in order.
            tools: How the model writes tool calls; they are read if the request has tools.
            reasoning: Whether the answer begins with reasoning.
        """
        self.finished = False
        self.completion_tokens = self.reasoning_tokens = 0
        self.unread: Callable[[], tuple[Grounding, ...]] | None = None
        self._index = index
        self._request = request
        self._tokenizer = tokenizer
        self._pipeline = build_pipeline(
            request, tokenizer, notation, images, tools=tools, reasoning=reasoning
        )
        self._first_prompt_entry = request.prompt_logprobs is not None

    @property
    def characters_read(self) -> int:
        """How many characters of the answer so far are read for boxes when it ends, which takes microseconds each."""
        return self._pipeline.characters_read

    def push(self, output: ChoiceOutput, *, reads_boxes: bool = True) -> Iterator[Delta | Finished]:
        """Takes an output of the engine.

        Args:
            output: Its `finish_reason` is not ERROR.
            reads_boxes: Whether boxes are parsed when the answer ends; else `unread` does.
        """
        if entries := self._prompt_entries(output):
            yield Delta(choice_index=self._index, prompt_logprobs=entries)
        ends_with_token = output.finish_reason in _BY_TOKEN
        text_ids = output.token_ids[:-1] if ends_with_token else output.token_ids
        piece = self._pipeline.push(
            text_ids,
            last=output.finish_reason is not None,
            is_cut=output.finish_reason not in (None, FinishReason.EOS),
            reads_boxes=reads_boxes,
        )
        taken = len(output.token_ids if piece.trigger is None else piece.token_ids)
        self.completion_tokens += taken
        self.reasoning_tokens = piece.reasoning_tokens
        if delta := self._delta(piece, output, taken):
            yield delta
        if piece.trigger is not None:
            yield self._finish(EndReason.STOP, piece.trigger, piece)
        elif output.finish_reason is not None:
            yield self._finish(_END_REASONS[output.finish_reason], _trigger(output), piece)

    def _finish(self, reason: EndReason, trigger: StopTrigger, piece: Piece) -> Finished:
        self.finished, self.unread = True, piece.unread
        if reason is EndReason.STOP and piece.calls_tools:
            reason = EndReason.TOOL_CALLS
        return Finished(
            choice_index=self._index,
            reason=reason,
            trigger=trigger,
            groundings=piece.groundings,
        )

    def _delta(self, piece: Piece, output: ChoiceOutput, taken: int) -> Delta | None:
        ids = output.token_ids[:taken] if self._request.return_token_ids else ()
        entries = self._entries(output.logprobs[:taken])
        if entries and piece.trigger is None and output.finish_reason in _BY_TOKEN:
            entries = (*entries[:-1], dataclasses.replace(entries[-1], is_end=True))
        calls = _joined(piece.tool_calls)
        if not (piece.text or piece.reasoning or calls or ids or entries):
            return None
        return Delta(
            choice_index=self._index,
            text=piece.text,
            reasoning=piece.reasoning,
            tool_calls=calls,
            token_ids=ids,
            logprobs=entries,
        )

    def _prompt_entries(self, output: ChoiceOutput) -> tuple[LogprobEntry, ...]:
        """The entries of the prompt; the first token, which the engine leaves out, has no probability."""
        entries = self._entries(output.prompt_logprobs)
        if self._index == 0 and self._first_prompt_entry:
            self._first_prompt_entry = False
            return (LogprobEntry(chosen=None), *entries)
        return entries

    def _entries(self, logprobs: Sequence[PositionLogprobs]) -> tuple[LogprobEntry, ...]:
        return tuple(logprob_entry(self._tokenizer, one) for one in logprobs)


def _joined(deltas: Sequence[ToolCallDelta]) -> tuple[ToolCallDelta, ...]:
    """The pieces of calls, with neighbouring ones of the same call as one."""
    joined: list[ToolCallDelta] = []
    for delta in deltas:
        if joined and joined[-1].index == delta.index:
            arguments = joined[-1].arguments + delta.arguments
            joined[-1] = dataclasses.replace(joined[-1], arguments=arguments)
        else:
            joined.append(delta)
    return tuple(joined)


def _trigger(output: ChoiceOutput) -> StopTrigger:
    if output.finish_reason is FinishReason.EOS:
        return StopTrigger(eos_token_id=output.token_ids[-1])
    if output.finish_reason is FinishReason.STOP_TOKEN:
        return StopTrigger(stop_token_id=output.token_ids[-1])
    return StopTrigger()
