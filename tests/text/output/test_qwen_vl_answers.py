"""What a caller reads of Qwen-VL's tokens is what the original's `chat()` made of them."""

from __future__ import annotations

from typing import Any

import pytest

from inference_service.domain import Delta, EndReason, Finished, TextCompletionRequest
from inference_service.engine_protocol.messages import ChoiceOutput, FinishReason
from inference_service.families.qwen_vl.text import load_tokenizer
from inference_service.text.output.answer import Answer
from inference_service.text.tokenizer import Tokenizer
from tests.support.qwen_vl_v1 import GOLDEN, golden


END_TOKENS = {"chatml": (151643, 151644, 151645), "raw": (151643,)}
CASES = golden("chat_context.json")["decode_tokens"]
RAW_STOP_WORD = "Human:"
OTHERWISE = {
    "Cut by max_new_tokens": "Cut by max_new_tokens here",
    "composed query shifts the cut": "decomposed query shifts the cut",
    "a time\n garbage": "a time",
}
"""Where the original lost the last token, cut at the wrong place, and read on behind <|endoftext|>."""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(GOLDEN)


def answer_of(
    tokenizer: Tokenizer, token_ids: list[int], ends: tuple[int, ...], **fields: Any
) -> tuple[str, EndReason]:
    """Token by token, as the engine gives them: nothing comes behind an end token."""
    answer = Answer(
        0, TextCompletionRequest(request_id="r", model="m", prompt="x", **fields), tokenizer
    )
    events: list[Delta | Finished] = []
    for number, token_id in enumerate(token_ids, 1):
        reason = FinishReason.EOS if token_id in ends else None
        if reason is None and number == len(token_ids):
            reason = FinishReason.LENGTH
        output = ChoiceOutput(
            request_id="r", choice_index=0, token_ids=(token_id,), logprobs=(), finish_reason=reason
        )
        events += answer.push(output)
        if answer.finished:
            break
    *deltas, finished = events
    assert isinstance(finished, Finished)
    return "".join(delta.text for delta in deltas if isinstance(delta, Delta)), finished.reason


@pytest.mark.parametrize("case", [c for c in CASES if c["generated"]], ids=lambda c: c["response"])
def test_answers_have_the_text_of_the_original(tokenizer, case):
    """But for white space around them, which is the model's own here."""
    ends = END_TOKENS[case["format"]]
    text, reason = answer_of(tokenizer, case["generated"], ends)
    ended = any(token_id in ends for token_id in case["generated"])
    assert reason is (EndReason.STOP if ended else EndReason.LENGTH)
    assert text.strip() == OTHERWISE.get(case["response"], case["response"])


def test_the_stop_word_of_text_completions(tokenizer):
    """The original's `chat()` of a base model stopped at this word; here a request names it."""
    assert [tokenizer.encode(RAW_STOP_WORD), [151643]] == golden("chat_context.json")["stop_words"][
        "raw"
    ]
    said = tokenizer.encode("A dog.\nHuman: what?")
    found = answer_of(tokenizer, said, END_TOKENS["raw"], stop_strings=(RAW_STOP_WORD,))
    assert found == ("A dog.\n", EndReason.STOP)
    assert answer_of(tokenizer, said, END_TOKENS["raw"])[0].endswith("Human: what?")
