"""Whole answers with reasoning and calls, from tokens to events: how the tokens are cut changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import pytest

from inference_service.domain import (
    ChatMessage,
    ChatRequest,
    Delta,
    EndReason,
    Role,
    TextPart,
    Tool,
    ToolChoice,
    ToolMode,
)
from inference_service.engine_protocol.messages import ChoiceOutput, FinishReason
from inference_service.model_spec import ToolNotation
from inference_service.text.output.answer import Answer
from inference_service.text.output.reasoning import ReasoningStart
from inference_service.text.tokenizer import Tokenizer
from tests.support.cuts import cut
from tests.support.qwen_text import token_id


HERMES = '<tool_call>\n{"name": "now", "arguments": {"zone": "東京"}}\n</tool_call>'
XML = "<tool_call>\n<function=now>\n<parameter=zone>\n東京\n</parameter>\n</function>\n</tool_call>"
END = token_id("<|im_end|>")
PIECES = st.lists(
    st.one_of(
        st.sampled_from([HERMES, XML, HERMES[:40], XML[:30], HERMES.replace("now", "later")]),
        st.sampled_from(["<think>", "</think>", "\n\n", "\n", " ", "So.", "stop", "<tool_call>"]),
        st.text(max_size=4),
    ),
    max_size=8,
)


@dataclass(kw_only=True)
class Seen:
    """What the events of an answer say, without the ids of calls."""

    text: str = ""
    reasoning: str = ""
    calls: list[list[str]] = field(default_factory=list)
    reason: EndReason | None = None
    completion_tokens: int = 0
    reasoning_tokens: int = 0


def seen(answer: Answer, outputs: Sequence[ChoiceOutput]) -> Seen:
    total = Seen()
    for output in outputs:
        for event in answer.push(output):
            if isinstance(event, Delta):
                total.text += event.text
                total.reasoning += event.reasoning
                for call in event.tool_calls:
                    if call.id:
                        total.calls.append([call.name, ""])
                    assert call.index == len(total.calls) - 1
                    total.calls[-1][1] += call.arguments
            else:
                total.reason = event.reason
        if answer.finished:
            break
    total.completion_tokens = answer.completion_tokens
    total.reasoning_tokens = answer.reasoning_tokens
    return total


def outputs_of(
    token_ids: Sequence[int], lengths: Sequence[int], reason: FinishReason
) -> list[ChoiceOutput]:
    parts = list(cut(len(token_ids), lengths))
    end = (END,) if reason is FinishReason.EOS else ()
    outputs = []
    for number, part in enumerate(parts, start=1):
        last = number == len(parts)
        ids = (*token_ids[part], *(end if last else ()))
        finish = reason if last else None
        outputs.append(
            ChoiceOutput(request_id="r", choice_index=0, token_ids=ids, finish_reason=finish)
        )
    return outputs


@pytest.mark.parametrize("notation", [ToolNotation.HERMES, ToolNotation.XML])
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=PIECES,
    lengths=st.lists(st.integers(0, 9), max_size=40),
    start=st.sampled_from(ReasoningStart),
    reason=st.sampled_from([FinishReason.EOS, FinishReason.LENGTH]),
    stops=st.sampled_from([(), ("stop",), ("\n\n",), ("</think>",)]),
    parallel=st.booleans(),
    mode=st.sampled_from([ToolMode.AUTO, ToolMode.REQUIRED]),
)
def test_cutting_changes_nothing(
    tokenizer: Tokenizer,
    notation: ToolNotation,
    *,
    pieces: list[str],
    lengths: list[int],
    start: ReasoningStart,
    reason: FinishReason,
    stops: tuple[str, ...],
    parallel: bool,
    mode: ToolMode,
) -> None:
    ids = [token for piece in pieces for token in tokenizer.encode(piece)]
    request = ChatRequest(
        request_id="r",
        model="m",
        messages=(ChatMessage(role=Role.USER, parts=(TextPart(text="x"),)),),
        tools=(Tool(name="now"),),
        tool_choice=ToolChoice(mode=mode, parallel=parallel),
        stop_strings=stops,
    )

    def answer() -> Answer:
        return Answer(0, request, tokenizer, tools=notation, reasoning=start)

    once = seen(answer(), outputs_of(ids, [], reason))
    several = seen(answer(), outputs_of(ids, lengths, reason))
    single = seen(answer(), outputs_of(ids, [1] * len(ids), reason))
    assert several == once
    assert single == once
    assert once.reasoning_tokens <= once.completion_tokens
    assert bool(once.reasoning_tokens) or not once.reasoning
    if once.reason is EndReason.TOOL_CALLS:
        assert once.calls
    if start in (ReasoningStart.TEXT, ReasoningStart.CLOSED):
        assert not once.reasoning
