"""From the tokens of one sequence to the events of one answer.

Owns text, stop strings, log probabilities and the end of one answer.
"""

from __future__ import annotations

from collections.abc import Iterator

from inference_service.domain import (
    Delta,
    EndReason,
    Finished,
    ImageInfo,
    LogprobEntry,
    Request,
    StopTrigger,
    TokenLogprob,
)
from inference_service.engine_protocol.messages import ChoiceOutput, FinishReason, TokenLogprobs
from inference_service.model_spec import BoxNotation
from inference_service.text.output.boxes import groundings, tag_tokens
from inference_service.text.output.detokenize import Detokenizer
from inference_service.text.output.stop import StopStringFilter
from inference_service.text.tokenizer import Tokenizer


_END_REASONS = {
    FinishReason.EOS: EndReason.STOP,
    FinishReason.STOP_TOKEN: EndReason.STOP,
    FinishReason.LENGTH: EndReason.LENGTH,
    FinishReason.CONTEXT_LENGTH: EndReason.CONTEXT_LENGTH,
    FinishReason.ABORTED: EndReason.ABORTED,
}


class Answer:
    """One answer under way.

    Attributes:
        finished: No more outputs are wanted: the sequence ended, or a stop string was found.
        completion_tokens: Tokens of the answer so far, an end token included.
    """

    def __init__(
        self,
        index: int,
        request: Request,
        tokenizer: Tokenizer,
        notation: BoxNotation = BoxNotation.NONE,
        images: tuple[ImageInfo, ...] = (),
    ) -> None:
        """Begins an answer.

        Args:
            index: Which of the request's answers.
            request: What was asked.
            tokenizer: The model's.
            notation: How the model writes boxes, which are read if the request asks for them.
            images: Of the prompt, in order.
        """
        self.finished = False
        self.completion_tokens = 0
        self._index = index
        self._request = request
        self._tokenizer = tokenizer
        self._notation = notation
        self._images = images
        self._said: list[str] = []  # only where boxes are asked for
        self._detokenizer = Detokenizer(
            tokenizer,
            skip_special_tokens=not request.keep_special_tokens,
            shown=tag_tokens(notation) if request.grounding else (),
        )
        self._stops = StopStringFilter(request.stop_strings, include=request.include_stop_string)
        self._first_prompt_entry = request.prompt_logprobs is not None

    def push(self, output: ChoiceOutput) -> Iterator[Delta | Finished]:
        """Takes news of the sequence; `output.finish_reason` is not ERROR."""
        if entries := self._prompt_entries(output):
            yield Delta(choice_index=self._index, prompt_logprobs=entries)
        ends = output.finish_reason in (FinishReason.EOS, FinishReason.STOP_TOKEN)
        text, taken, matched = "", len(output.token_ids), None
        # Where stop strings are asked for, tokens are taken one by one: those behind a match were never said.
        step = 1 if self._request.stop_strings else max(1, len(output.token_ids))
        for start in range(0, len(output.token_ids), step):
            ids = output.token_ids[start : start + step]
            if ends and start + step >= len(output.token_ids):
                ids = ids[:-1]  # an end token is no text
            piece, matched = self._stops.push(self._detokenizer.push(ids))
            text += piece
            if matched is not None:
                taken = start + step
                break
        reason = output.finish_reason
        if matched is None and reason is not None:
            piece, matched = self._stops.push(self._detokenizer.finish())
            text += piece + ("" if matched is not None else self._stops.finish())
        self.completion_tokens += taken
        if self._request.grounding:
            self._said.append(text)
        if delta := self._delta(text, output, taken):
            yield delta
        if matched is not None:
            yield self._finish(EndReason.STOP, StopTrigger(stop_string=matched))
        elif reason is not None:
            yield self._finish(_END_REASONS[reason], _trigger(output))

    def _finish(self, reason: EndReason, trigger: StopTrigger) -> Finished:
        self.finished = True
        return Finished(
            choice_index=self._index,
            reason=reason,
            trigger=trigger,
            groundings=groundings("".join(self._said), self._notation, self._images),
        )

    def _delta(self, text: str, output: ChoiceOutput, taken: int) -> Delta | None:
        ids = output.token_ids[:taken] if self._request.return_token_ids else ()
        entries = tuple(self._entry(logprobs) for logprobs in output.logprobs[:taken])
        if not (text or ids or entries):
            return None
        return Delta(choice_index=self._index, text=text, token_ids=ids, logprobs=entries)

    def _prompt_entries(self, output: ChoiceOutput) -> tuple[LogprobEntry, ...]:
        """The engine begins at the second token; the first, which may be the only one, has no probability."""
        entries = tuple(self._entry(logprobs) for logprobs in output.prompt_logprobs)
        if self._index == 0 and self._first_prompt_entry:
            self._first_prompt_entry = False
            return (LogprobEntry(chosen=None), *entries)
        return entries

    def _entry(self, logprobs: TokenLogprobs) -> LogprobEntry:
        return LogprobEntry(
            chosen=self._token(logprobs.token_id, logprobs.logprob, logprobs.rank),
            top=tuple(
                self._token(token_id, logprob, rank)
                for rank, (token_id, logprob) in enumerate(logprobs.top, start=1)
            ),
        )

    def _token(self, token_id: int, logprob: float, rank: int) -> TokenLogprob:
        return TokenLogprob(
            token_id=token_id,
            text=self._tokenizer.token_text(token_id),
            data=self._tokenizer.token_bytes(token_id),
            logprob=logprob,
            rank=rank,
        )


def _trigger(output: ChoiceOutput) -> StopTrigger:
    if output.finish_reason is FinishReason.EOS:
        return StopTrigger(eos_token_id=output.token_ids[-1])
    if output.finish_reason is FinishReason.STOP_TOKEN:
        return StopTrigger(stop_token_id=output.token_ids[-1])
    return StopTrigger()
