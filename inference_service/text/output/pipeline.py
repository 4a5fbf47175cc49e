"""The output pipeline of one answer: its stages in order."""

from __future__ import annotations

from collections.abc import Sequence

from inference_service.domain import ChatRequest, ImageInfo, Request, TextPart
from inference_service.model_spec import BoxNotation
from inference_service.text.output.boxes import BoxReader, tag_tokens
from inference_service.text.output.detokenize import Detokenizer
from inference_service.text.output.stage import Piece, Stage
from inference_service.text.output.stop import StopStringFilter
from inference_service.text.tokenizer import Tokenizer


class Pipeline:
    """Turns the tokens of one answer into its text and the data parsed from it."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        """Takes new stages in order; the first one decodes token ids to text."""
        self._stages = stages
        self._token_by_token = any(stage.may_end for stage in stages)

    def push(self, token_ids: tuple[int, ...], *, last: bool) -> Piece:
        """Takes the tokens of one engine output.

        Args:
            token_ids: In order, without an end token; may be empty.
            last: No tokens follow.

        Returns:
            The completed text and data; its `token_ids` are those given, up to the token that ended the answer.
        """
        if not self._token_by_token or len(token_ids) < 2:
            return self._through(Piece(token_ids=token_ids, last=last))
        total = Piece()
        for number, token_id in enumerate(token_ids, start=1):
            at_end = last and number == len(token_ids)
            total.extend(self._through(Piece(token_ids=(token_id,), last=at_end)))
            if total.last:
                break
        return total

    def _through(self, piece: Piece) -> Piece:
        for stage in self._stages:
            stage.push(piece)
        return piece


def build_pipeline(
    request: Request, tokenizer: Tokenizer, notation: BoxNotation, images: Sequence[ImageInfo]
) -> Pipeline:
    """Builds the pipeline for one answer of a request; arguments as `Answer`."""
    stages: list[Stage] = [
        Detokenizer(
            tokenizer,
            skip_special_tokens=not request.keep_special_tokens,
            shown=tag_tokens(notation) if request.grounding else (),
        )
    ]
    if request.stop_strings:
        stages.append(StopStringFilter(request.stop_strings, include=request.include_stop_string))
    if request.grounding:
        stages.append(BoxReader(notation, images, _beginning(request)))
    return Pipeline(stages)


def _beginning(request: Request) -> str:
    """The text of the message that the answer continues; empty if it is a new message."""
    if not isinstance(request, ChatRequest) or not request.continue_final_message:
        return ""
    return "".join(part.text for part in request.messages[-1].parts if isinstance(part, TextPart))
