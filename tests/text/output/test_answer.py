"""One answer from the engine's outputs to its events: how the engine cuts the tokens changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
import pytest

from inference_service.domain import (
    ChatMessage,
    ChatRequest,
    Delta,
    EndReason,
    Finished,
    Grounding,
    ImageInfo,
    ImagePart,
    LogprobEntry,
    Role,
    StopTrigger,
    TextCompletionRequest,
    TextPart,
)
from inference_service.engine_protocol.messages import ChoiceOutput, FinishReason, PositionLogprobs
from inference_service.model_spec import BoxNotation
from inference_service.text.output.answer import Answer
from inference_service.text.output.boxes import tag_tokens
from inference_service.text.tokenizer import Tokenizer
from tests.support.cuts import cut
from tests.support.qwen_text import SPECIAL, token_id
from tests.support.utf8 import shown


IMAGE = ImageInfo(
    original_width=100, original_height=200, processed_width=56, processed_height=112, tokens=8
)
TAGGED = "<|object_ref_start|>圆<|object_ref_end|><|box_start|>(100,200),(500,400)<|box_end|>"
JSON = '{"bbox_2d": [10, 20, 30, 40], "label": "🧿"}'
NOTATIONS = [BoxNotation.OBJECT_REF, BoxNotation.JSON_PER_MILLE, BoxNotation.NONE]
ENDS = {FinishReason.EOS: token_id("<|im_end|>"), FinishReason.STOP_TOKEN: 7}


@dataclass(kw_only=True)
class Seen:
    """All that the events of an answer say."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[LogprobEntry] = field(default_factory=list)
    prompt_logprobs: list[LogprobEntry] = field(default_factory=list)
    end: Finished | None = None
    completion_tokens: int = 0


def seen(answer: Answer, outputs: Sequence[ChoiceOutput]) -> Seen:
    """The events together; as the backend does, nothing is pushed behind the end."""
    total = Seen()
    for output in outputs:
        for event in answer.push(output):
            assert total.end is None
            match event:
                case Delta():
                    total.text += event.text
                    total.token_ids += event.token_ids
                    total.logprobs += event.logprobs
                    total.prompt_logprobs += event.prompt_logprobs
                case Finished():
                    total.end = event
        assert answer.finished == (total.end is not None)
        if answer.finished:
            break
    total.completion_tokens = answer.completion_tokens
    return total


def outputs_of(
    token_ids: Sequence[int], reason: FinishReason, lengths: Sequence[int], *, entries: bool
) -> list[ChoiceOutput]:
    """The engine's outputs, cut to the lengths; an end token always comes with its finish reason."""
    end = (ENDS[reason],) if reason in ENDS else ()
    outputs = []
    for number, part in enumerate(parts := [*cut(len(token_ids), lengths)], start=1):
        last = number == len(parts)
        ids = (*token_ids[part], *(end if last else ()))
        logprobs = tuple(PositionLogprobs(token_id=i, logprob=-1.0, rank=1) for i in ids)
        output = ChoiceOutput(
            request_id="r",
            choice_index=0,
            token_ids=ids,
            logprobs=logprobs if entries else (),
            finish_reason=reason if last else None,
        )
        outputs.append(output)
    return outputs


@st.composite
def answers(draw: st.DrawFn, tokenizer: Tokenizer) -> list[int]:
    """Token ids with text of many bytes a character, special tokens, boxes, and bytes that are no text."""
    parts = draw(
        st.lists(
            st.one_of(
                st.sampled_from([TAGGED, JSON]).map(tokenizer.encode),
                st.sampled_from(SPECIAL).map(tokenizer.encode),
                st.text(max_size=6).map(tokenizer.encode_plain),
                st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=4),
            ),
            max_size=8,
        )
    )
    return [token for part in parts for token in part]


def shown_text(
    tokenizer: Tokenizer, ids: list[int], request: TextCompletionRequest, notation: BoxNotation
) -> str:
    """The text of all tokens at once, without a stop string."""
    tags = tag_tokens(notation) if request.grounding else ()
    hidden = tokenizer.hidden_ids - {tokenizer.special_tokens.get(tag) for tag in tags}
    kept = (i for i in ids if request.keep_special_tokens or i not in hidden)
    return shown(b"".join(map(tokenizer.token_bytes, kept)))


def assert_text_and_end(
    got: Seen, request: TextCompletionRequest, text: str, reason: FinishReason
) -> None:
    """The stop string that is complete first ends the answer, else what the engine says."""
    assert got.end is not None
    ends = [(at + len(one), at, one) for one in request.stop_strings if (at := text.find(one)) >= 0]
    if ends:
        end, start, wanted = min(ends)
        assert got.text == text[: end if request.include_stop_string else start]
        assert got.end.trigger == StopTrigger(stop_string=wanted)
        assert got.end.reason is EndReason.STOP
    else:
        assert got.text == text
        assert got.end.trigger.stop_string is None
        assert (got.end.reason is EndReason.STOP) == (reason in ENDS)
        if reason in ENDS:
            assert got.token_ids[-1] == ENDS[reason]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_cutting_changes_nothing(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(answers(tokenizer), "tokens")
    text = tokenizer.decode(ids, skip_special_tokens=False)
    stop_string = st.text(min_size=1, max_size=3)
    if text:
        start, length = st.integers(0, len(text) - 1), st.integers(1, 5)
        stop_string |= st.builds(lambda at, length: text[at : at + length], start, length)
        stop_string |= length.map(lambda length: text[-length:] + "~")  # only begun at the end
    request = TextCompletionRequest(
        request_id="r",
        model="m",
        prompt="x",
        stop_strings=tuple(data.draw(st.lists(stop_string, max_size=3), "stop strings")),
        include_stop_string=data.draw(st.booleans(), "include"),
        keep_special_tokens=data.draw(st.booleans(), "keep special tokens"),
        grounding=data.draw(st.booleans(), "grounding"),
        return_token_ids=True,
        prompt_logprobs=0,
    )
    notation = data.draw(st.sampled_from(NOTATIONS), "notation")
    reason = data.draw(st.sampled_from([r for r in FinishReason if r is not FinishReason.ERROR]))
    entries = data.draw(st.booleans(), "log probabilities")
    lengths = data.draw(st.lists(st.integers(0, 4), max_size=20), "lengths")

    def run(lengths: Sequence[int]) -> Seen:
        answer = Answer(0, request, tokenizer, notation, (IMAGE,))
        return seen(answer, outputs_of(ids, reason, lengths, entries=entries))

    whole = run([])
    assert_text_and_end(whole, request, shown_text(tokenizer, ids, request, notation), reason)
    assert run(lengths) == whole
    assert run([1] * len(ids)) == whole
    assert whole.completion_tokens == len(whole.token_ids)
    assert len(whole.logprobs) == (whole.completion_tokens if entries else 0)
    assert whole.end is not None
    trigger = whole.end.trigger
    by_token = trigger.eos_token_id is not None or trigger.stop_token_id is not None
    ends = [entry.is_end for entry in whole.logprobs]
    assert ends == [*[False] * (len(ends) - 1), by_token][: len(ends)]
    assert whole.prompt_logprobs == [LogprobEntry(chosen=None)]


def ended(tokenizer: Tokenizer, text: str, reason: FinishReason, **fields: Any) -> Seen:
    request = TextCompletionRequest(
        request_id="r", model="m", prompt="x", return_token_ids=True, **fields
    )
    answer = Answer(0, request, tokenizer, BoxNotation.OBJECT_REF, (IMAGE,))
    return seen(answer, outputs_of(tokenizer.encode(text), reason, [], entries=False))


def test_tokens_behind_a_stop_string_were_never_said(tokenizer: Tokenizer) -> None:
    got = ended(tokenizer, "a.b.c", FinishReason.EOS, stop_strings=(".",))
    assert (got.text, got.token_ids) == ("a", tokenizer.encode("a."))
    assert got.completion_tokens == 2
    assert got.end == Finished(
        choice_index=0, reason=EndReason.STOP, trigger=StopTrigger(stop_string=".")
    )


def test_an_end_token_counts_and_is_no_text(tokenizer: Tokenizer) -> None:
    for reason, token in ENDS.items():
        got = ended(tokenizer, "ab", reason, keep_special_tokens=True, stop_strings=("bc",))
        assert (got.text, got.token_ids[-1]) == ("ab", token)
        assert got.completion_tokens == len(got.token_ids) == len(tokenizer.encode("ab")) + 1
        assert got.end is not None
        trigger = got.end.trigger
        assert [trigger.eos_token_id, trigger.stop_token_id].count(token) == 1
        assert (trigger.eos_token_id == token) == (reason is FinishReason.EOS)
        assert got.end.reason is EndReason.STOP


def test_boxes_are_read_from_the_text_before_the_stop_string(tokenizer: Tokenizer) -> None:
    text = f"{TAGGED}.{TAGGED}"
    got = ended(tokenizer, text, FinishReason.LENGTH, stop_strings=(".",), grounding=True)
    assert got.end is not None
    assert [box.label for box in got.end.groundings] == ["圆"]
    assert got.text == TAGGED


def test_tags_are_shown_where_boxes_are_asked_for(tokenizer: Tokenizer) -> None:
    said = "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(0,0),(500,500)<|box_end|>"
    output = ChoiceOutput(
        request_id="x",
        choice_index=0,
        token_ids=(*tokenizer.encode(said + "<|im_end|>"),),
        finish_reason=FinishReason.EOS,
    )
    image = ImageInfo(
        original_width=20, original_height=10, processed_width=8, processed_height=8, tokens=1
    )

    def answer(**fields: Any) -> tuple[str, list[str]]:
        request = ChatRequest(request_id="x", model="x", messages=(), **fields)
        one = Answer(0, request, tokenizer, BoxNotation.OBJECT_REF, (image,))
        events = list(one.push(output))
        assert isinstance(events[-1], Finished)
        boxes = [f"{g.label} {g.x_max:g} {g.y_max:g}" for g in events[-1].groundings]
        return "".join(e.text for e in events[:-1] if isinstance(e, Delta)), boxes

    assert answer(grounding=True) == (said, ["cat 10 5"])
    assert answer() == ("cat(0,0),(500,500)", [])
    assert answer(keep_special_tokens=True) == (said, [])


def test_an_answer_that_continues_a_message_has_the_box_begun_there(tokenizer: Tokenizer) -> None:
    beginning, said = '[{"bbox_2d": [100, 50', '0, 200, 750], "label": "cat"}]'
    parts = (TextPart(text=beginning[:7]), ImagePart(), TextPart(text=beginning[7:]))
    messages = (ChatMessage(role=Role.ASSISTANT, parts=parts),)
    output = ChoiceOutput(
        request_id="x",
        choice_index=0,
        token_ids=(*tokenizer.encode(said + "<|im_end|>"),),
        finish_reason=FinishReason.EOS,
    )

    def boxes(**fields: Any) -> list[tuple[str, float, float]]:
        request = ChatRequest(
            request_id="x", model="x", messages=messages, grounding=True, **fields
        )
        answer = Answer(0, request, tokenizer, BoxNotation.JSON_PER_MILLE, (IMAGE,))
        end = seen(answer, [output]).end
        assert end is not None
        return [(box.label, box.x_min, box.y_max) for box in end.groundings]

    assert boxes(continue_final_message=True, add_generation_prompt=False) == [("cat", 10.0, 150.0)]
    assert boxes() == []


def test_what_is_read_for_boxes_is_known_before_the_end(tokenizer: Tokenizer) -> None:
    message = ChatMessage(role=Role.ASSISTANT, parts=(TextPart(text="x" * 50),))
    going = ChoiceOutput(request_id="x", choice_index=0, token_ids=(*tokenizer.encode("abc"),))

    def counted(images: tuple[ImageInfo, ...] = (IMAGE,), **fields: Any) -> list[int]:
        request = ChatRequest(request_id="x", model="x", messages=(message,), **fields)
        answer = Answer(0, request, tokenizer, BoxNotation.JSON_PER_MILLE, images)
        before = answer.characters_read
        list(answer.push(going))
        return [before, answer.characters_read]

    begun: dict[str, Any] = {"continue_final_message": True, "add_generation_prompt": False}
    assert counted(grounding=True) == [0, 3]
    assert counted(grounding=True, **begun) == [50, 53]
    assert counted(grounding=True, stop_strings=("z",), **begun) == [50, 53]
    assert counted((), grounding=True, **begun) == [0, 0]
    assert counted(**begun) == [0, 0]


@pytest.mark.parametrize("stop_strings", [(), ("c",)])
def test_boxes_may_be_read_later(tokenizer: Tokenizer, stop_strings: tuple[str, ...]) -> None:
    text = '[{"bbox_2d": [0, 0, 500, 500], "label": "b"}] c'
    request = ChatRequest(
        request_id="x", model="x", messages=(), grounding=True, stop_strings=stop_strings
    )
    found: list[Grounding] = []
    for reads_boxes in (True, False):
        answer = Answer(0, request, tokenizer, BoxNotation.JSON_PER_MILLE, (IMAGE,))
        for one in tokenizer.encode(text):
            assert answer.unread is None
            output = ChoiceOutput(request_id="x", choice_index=0, token_ids=(one,))
            list(answer.push(output, reads_boxes=reads_boxes))
        if not answer.finished:
            end = ChoiceOutput(request_id="x", choice_index=0, finish_reason=FinishReason.LENGTH)
            *_, finished = answer.push(end, reads_boxes=reads_boxes)
            assert isinstance(finished, Finished)
            assert bool(finished.groundings) is reads_boxes
        assert (answer.unread is None) is reads_boxes
        if answer.unread is not None:
            found += answer.unread()
    assert [box.label for box in found] == ["b"]
