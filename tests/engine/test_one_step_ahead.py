"""Real models at both depths of the pipeline: the same answers, whatever comes in between."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
import itertools
from typing import Any

import pytest

from inference_service.constraint import Constraint, ConstraintKind
from inference_service.demo import MODEL_DIR
from inference_service.engine.core import EngineCore
from inference_service.engine.plan import Chunk
from inference_service.engine.runner import ModelRunner
from inference_service.engine_protocol.messages import (
    ChoiceOutput,
    EngineConfig,
    EngineRequest,
    FinishReason,
    Probe,
)
from inference_service.text.tokenizer_json import JsonTokenizer
from tests.support.conversations import GREEDY, Conversation, conversation, drain_choices
from tests.support.tiny_qwen_vl import image


SAMPLED = replace(GREEDY, temperature=1.0, seed=5)
PENALISED = replace(
    SAMPLED, top_k=40, top_p=0.9, repetition_penalty=1.2, frequency_penalty=0.4, min_tokens=4
)
PICTURE = conversation(["Look: ", image(3, 4, 11), " 什么?"])
TEXT = conversation(["Tell me a story about three rivers."])
PROBES = tuple(Probe(token_ids=tuple(text), candidate_ids=(7, 65)) for text in (b"Is it?", b""))

Told = dict[tuple[str, int], list[ChoiceOutput]]


def play(
    core: EngineCore,
    requests: Sequence[tuple[EngineRequest, bytes]],
    stops: Mapping[str, int],
    *,
    at_once: int = 3,
) -> Told:
    """All outputs. Requests come in groups; some are aborted after so many tokens, as the front stops at a string."""
    told: Told = defaultdict(list)
    queue = list(requests)
    while queue or core.has_work:
        for request, pixels in queue[:at_once]:
            core.add(request, pixels)
        del queue[:at_once]
        for _ in range(4):
            for output in core.step() if core.has_work else ():
                answer = told[output.request_id, output.choice_index]
                assert not answer or answer[-1].finish_reason is None, "an output after the end"
                answer.append(output)
                if sum(len(one.token_ids) for one in answer) == stops.get(output.request_id):
                    core.abort(output.request_id)
                    answer.append(ChoiceOutput.aborted(output.request_id, 0))
    assert core.stats.kv_pages_used == core.stats.running == core.stats.waiting == 0
    return told


def exact(told: Told) -> dict[tuple[str, int], tuple[Any, ...]]:
    """What must be equal to the last bit: tokens, ranks and ends, however they are grouped."""
    return {
        name: (
            [token for output in answer for token in output.token_ids],
            answer[-1].finish_reason,
            [
                (entry.token_id, entry.rank)
                for output in answer
                for entry in (*output.prompt_logprobs, *output.logprobs)
            ],
        )
        for name, answer in told.items()
    }


def logprobs_of(told: Told) -> list[float]:
    """All log probabilities, which depend on the batch in their last bits."""
    result: list[float] = []
    for _, answer in sorted(told.items()):
        for output in answer:
            entries = (*output.prompt_logprobs, *output.logprobs)
            result += [entry.logprob for entry in entries]
            result += output.probe.logprobs if output.probe else ()
    return result


def crowd() -> list[tuple[EngineRequest, bytes]]:
    def ask(name: str, prompt: Conversation, *given: Any, **changes: Any) -> Any:
        return prompt.request(name, *given, **changes), prompt.pixels

    told = replace(SAMPLED, logprobs=2, prompt_logprobs=1, seed=9)
    return [
        ask("greedy", TEXT, GREEDY),
        ask("choices", PICTURE, PENALISED, num_choices=3),
        ask("told", PICTURE, told),
        ask("stopped", TEXT, replace(SAMPLED, max_tokens=40, eos_token_ids=())),
        ask("one", TEXT, replace(SAMPLED, max_tokens=1)),
        ask("again", TEXT, replace(PENALISED, seed=6)),
        ask("judged", PICTURE, GREEDY, num_choices=2, probes=PROBES),
        ask("ends", TEXT, replace(SAMPLED, max_tokens=80, eos_token_ids=tuple(range(0, 600, 9)))),
        ask("last", PICTURE, GREEDY),
    ]


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """For each launched step, the number of its rows whose token was not known yet."""
    rows: list[int] = []
    real = ModelRunner.launch

    def launch(self: ModelRunner, chunks: Sequence[Chunk]) -> Any:
        rows.append(sum(chunk.sequence.num_pending for chunk in chunks))
        return real(self, chunks)

    monkeypatch.setattr(ModelRunner, "launch", launch)
    return rows


@pytest.mark.parametrize(
    "settings",
    [{}, {"max_num_batched_tokens": 11}, {"num_kv_pages": 30, "max_num_batched_tokens": 40}],
)
def test_both_depths_give_the_same_answers(
    make_core: Callable[..., EngineCore], ahead: list[int], settings: dict[str, int]
) -> None:
    stops = {"stopped": 7}
    synchronous = make_core(pipeline_depth=0, **settings)
    wanted = play(synchronous, crowd(), stops)
    assert not any(ahead)
    pipelined = make_core(pipeline_depth=1, **settings)
    told = play(pipelined, crowd(), stops)
    assert exact(told) == exact(wanted)
    assert logprobs_of(told) == pytest.approx(logprobs_of(wanted), abs=1e-4)
    assert sum(ahead) > 20
    assert told["stopped", 0][-1].finish_reason is FinishReason.ABORTED
    assert told["ends", 0][-1].finish_reason is FinishReason.EOS
    assert synchronous.stats.prefix_hits > 0
    assert pipelined.stats.prefix_hits > 0
    if "num_kv_pages" in settings:
        assert pipelined.stats.preemptions > 0


def test_a_prompt_that_begins_again_while_a_part_of_it_is_in_flight_is_told_once(
    make_core: Callable[..., EngineCore],
) -> None:
    """Preempted for another caller and admitted again before its last chunk was committed."""
    told = replace(GREEDY, logprobs=1, prompt_logprobs=1)
    answers = []
    for preempt_after in (None, 1, 2, 3):
        core = make_core(pipeline_depth=1, max_num_batched_tokens=7)
        core.add(TEXT.request("told", told), b"")
        answer: list[ChoiceOutput] = []
        for number in itertools.count():
            if number == preempt_after:
                (sequence,) = core._scheduler.running
                assert 0 < sequence.num_computed_tokens < sequence.num_prompt_tokens
                core._scheduler._batch.preempt(sequence)
            if not core.has_work:
                break
            answer += core.step()
        answers.append(exact({("told", 0): answer}))
    assert answers[1:] == answers[:1] * 3


def test_constrained_answers_wait_for_their_tokens_and_others_go_on(ahead: list[int]) -> None:
    """With the demo model, as constraints need a vocabulary."""
    tokenizer = JsonTokenizer.from_dir(MODEL_DIR)
    text = "<|im_start|>user\nWhat is this?<|im_end|>\n<|im_start|>assistant\n"
    digits = Constraint(kind=ConstraintKind.REGEX, text="[0-9]{9}")
    sampling = replace(SAMPLED, max_tokens=24, eos_token_ids=(1232, 1230))
    prompt = tuple(tokenizer.encode(text))
    requests = [
        EngineRequest(
            request_id=str(seed),
            prompt_token_ids=prompt,
            sampling=replace(sampling, seed=seed),
            constraint=digits if seed % 2 else None,
        )
        for seed in range(6)
    ]
    answers = []
    for depth in (0, 1):
        config = EngineConfig(
            model_dir=str(MODEL_DIR), page_size=4, num_kv_pages=50, cpu_threads=1, device="cpu"
        )
        core = EngineCore(replace(config, pipeline_depth=depth))
        for request in requests:
            core.add(request, b"")
        answers.append(drain_choices(core))
    tokens = [{name: one.token_ids for name, one in of.items()} for of in answers]
    assert tokens[0] == tokens[1]
    assert any(ahead)
    for seed in (1, 3, 5):
        assert tokenizer.decode(tokens[1][str(seed), 0]).isdigit()


def test_the_depth_follows_the_device_and_the_setting(make_core: Callable[..., EngineCore]) -> None:
    assert make_core()._pipeline.depth == 0, "nothing runs beside a CPU"
    assert make_core(pipeline_depth=1)._pipeline.depth == 1
