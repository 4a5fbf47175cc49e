"""Answers that may have some tokens only, and others that must not contain some sequences, with the demo model.

What they must be is found with one token at a time and a bias for everything that is excluded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
import math
import re
from typing import Any

import pytest

from inference_service.constraint import Constraint, ConstraintKind
from inference_service.demo import MODEL_DIR
from inference_service.engine.core import EngineCore
from inference_service.engine.plan import Chunk
from inference_service.engine.runner import ModelRunner
from inference_service.engine_protocol.messages import (
    EngineConfig,
    EngineRequest,
    FinishReason,
    SamplingParams,
)
from inference_service.errors import InvalidArgumentError
from inference_service.text.tokenizer_json import JsonTokenizer
from tests.support.conversations import drain, drain_choices


VOCAB_SIZE = 1280
END = 1232
TOKENIZER = JsonTokenizer.from_dir(MODEL_DIR)
PROMPT = tuple(
    TOKENIZER.encode("<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n")
)
GREEDY = SamplingParams(max_tokens=10, temperature=0.0, eos_token_ids=(END,))
SAMPLED = replace(GREEDY, temperature=1.3, seed=5)
DIGITS = Constraint(kind=ConstraintKind.REGEX, text="[0-9]{4}")


@pytest.fixture(scope="module")
def core() -> EngineCore:
    return new_core()


def new_core(**changes: Any) -> EngineCore:
    settings: dict[str, Any] = {
        "page_size": 4,
        "num_kv_pages": 300,
        "cpu_threads": 1,
        "device": "cpu",
    }
    return EngineCore(EngineConfig(model_dir=str(MODEL_DIR), **(settings | changes)))


def bits_of(token_ids: Sequence[int], vocab_size: int = VOCAB_SIZE) -> bytes:
    number = sum(1 << token_id for token_id in set(token_ids))
    return number.to_bytes(4 * -(-vocab_size // 32), "little")


def request(name: str, sampling: SamplingParams, **changes: Any) -> EngineRequest:
    values: dict[str, Any] = {"prompt_token_ids": PROMPT} | changes
    return EngineRequest(request_id=name, sampling=sampling, **values)


def answer(core: EngineCore, sampling: SamplingParams, **changes: Any) -> list[int]:
    core.add(request("r", sampling, **changes), b"")
    return drain(core)["r"].token_ids


def contains(tokens: Sequence[int], part: Sequence[int]) -> bool:
    starts = range(len(tokens) - len(part) + 1)
    return any(list(tokens[start : start + len(part)]) == list(part) for start in starts)


def without(core: EngineCore, words: Sequence[Sequence[int]]) -> list[int]:
    """The greedy answer, token by token."""
    found: list[int] = []
    while len(found) < GREEDY.max_tokens and END not in found:
        bad = [word[-1] for word in words if [*found, word[-1]][-len(word) :] == list(word)]
        bias = tuple((token, -math.inf) for token in bad)
        asked = replace(GREEDY, max_tokens=1, logit_bias=bias)
        found += answer(core, asked, prompt_token_ids=(*PROMPT, *found))
    return found


def with_words(sampling: SamplingParams, words: Sequence[Sequence[int]]) -> SamplingParams:
    """As the front does it."""
    single = tuple((word[0], -math.inf) for word in words if len(word) == 1)
    longer = tuple(tuple(word) for word in words if len(word) > 1)
    return replace(sampling, logit_bias=single, bad_sequences=longer)


def test_only_allowed_tokens_are_sampled(core: EngineCore) -> None:
    """As if all others had a bias of minus infinity."""
    for sampling in (GREEDY, SAMPLED, replace(SAMPLED, top_k=3, repetition_penalty=1.2)):
        plain = answer(core, sampling)
        allowed = [token for token in range(0, VOCAB_SIZE, 3) if token not in plain]
        listed = answer(core, replace(sampling, allowed_tokens=bits_of(allowed)))
        others = set(range(VOCAB_SIZE)) - set(allowed)
        bias = tuple((token, -math.inf) for token in others)
        assert listed == answer(core, replace(sampling, logit_bias=bias))
        assert set(listed) <= set(allowed)
        assert len(listed) == sampling.max_tokens, "no token that ends an answer is allowed"


def test_an_answer_ends_by_an_allowed_end_token(core: EngineCore) -> None:
    only_end = replace(GREEDY, allowed_tokens=bits_of([END]))
    core.add(request("r", only_end), b"")
    ended = drain(core)["r"]
    assert (ended.token_ids, ended.finish_reason) == ([END], FinishReason.EOS)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_bad_words_are_avoided_token_by_token(core: EngineCore, length: int) -> None:
    """Again and again: each answer's own words are those of the next."""
    words: list[list[int]] = []
    for _ in range(4):
        found = answer(core, with_words(GREEDY, words))
        assert found == without(core, words)
        assert not any(contains(found, word) for word in words)
        assert len(found) > length
        words.append(found[1 : 1 + length])


def test_the_prompt_begins_no_word(core: EngineCore) -> None:
    first = answer(core, GREEDY)[0]
    assert answer(core, with_words(GREEDY, [[PROMPT[-1], first]]))[0] == first


def test_choices_and_others_in_the_batch_have_lists_of_their_own(core: EngineCore) -> None:
    some, more = range(0, 900, 7), range(1, 900, 7)
    asked = {
        "plain": request("plain", SAMPLED),
        "some": request("some", replace(SAMPLED, allowed_tokens=bits_of(some)), num_choices=3),
        "more": request("more", replace(GREEDY, allowed_tokens=bits_of(more))),
        "words": request("words", with_words(GREEDY, [[5], answer(core, GREEDY)[:2]])),
        "form": request("form", SAMPLED, constraint=DIGITS),
    }
    for one in asked.values():
        core.add(one, b"")
    together = {name: found.token_ids for name, found in drain_choices(core).items()}
    for name, one in asked.items():
        core.add(one, b"")
        alone = {name: found.token_ids for name, found in drain_choices(core).items()}
        assert alone == {key: found for key, found in together.items() if key[0] == name}
    assert len({tuple(together["some", index]) for index in range(3)}) == 3
    assert all(set(together["some", index]) <= set(some) for index in range(3))
    assert set(together["more", 0]) <= set(more)


def test_a_form_and_a_list_hold_together(core: EngineCore) -> None:
    """Where the form permits nothing of the list, such as the end, it wins."""
    even = [TOKENIZER.encode(digit)[0] for digit in "02468"]
    asked = replace(SAMPLED, allowed_tokens=bits_of(even))
    for seed in range(5):
        found = answer(core, replace(asked, seed=seed), constraint=DIGITS)
        assert re.fullmatch("[02468]{4}", TOKENIZER.decode(found))
        assert found[-1] == END
    letters = replace(SAMPLED, allowed_tokens=bits_of([TOKENIZER.encode("a")[0]]))
    assert re.fullmatch("[0-9]{4}", TOKENIZER.decode(answer(core, letters, constraint=DIGITS)))


def test_a_form_and_a_list_win_over_bad_words(core: EngineCore) -> None:
    digits = [TOKENIZER.encode(digit) for digit in "0123456789"]
    found = answer(core, with_words(SAMPLED, digits), constraint=DIGITS)
    assert re.fullmatch("[0-9]{4}", TOKENIZER.decode(found))
    one = digits[1]
    twice = replace(with_words(GREEDY, [one * 2]), allowed_tokens=bits_of(one))
    assert answer(core, twice) == one * GREEDY.max_tokens


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """For each request, how often a step was launched before its last token was known."""
    rows: dict[str, int] = {}
    real = ModelRunner.launch

    def launch(self: ModelRunner, chunks: Sequence[Chunk]) -> Any:
        for chunk in chunks:
            name = chunk.sequence.request.request_id
            rows[name] = rows.get(name, 0) + chunk.sequence.num_pending
        return real(self, chunks)

    monkeypatch.setattr(ModelRunner, "launch", launch)
    return rows


def test_both_depths_give_the_same_answers(ahead: dict[str, int]) -> None:
    """Only where the next token depends on the last one on the host, a sequence waits for it."""
    word = tuple(TOKENIZER.encode("demo"))
    asked = [
        request("plain", SAMPLED),
        request("listed", replace(SAMPLED, allowed_tokens=bits_of(range(0, 1200, 5)))),
        request("single", with_words(GREEDY, [[word[0]]])),
        request("longer", with_words(GREEDY, [[*PROMPT[:1], word[0]], [7, 8, 9]])),
    ]
    found = []
    for depth in (0, 1):
        core = new_core(pipeline_depth=depth)
        ahead.clear()
        for one in asked:
            core.add(one, b"")
        found.append({name: one.token_ids for name, one in drain_choices(core).items()})
    assert found[0] == found[1]
    assert min(ahead["plain"], ahead["listed"], ahead["single"]) > 0
    assert ahead["longer"] == 0


def test_preemption_forgets_no_word() -> None:
    core = new_core()
    plain = answer(core, replace(GREEDY, max_tokens=40, ignore_eos=True))
    asked = with_words(replace(GREEDY, max_tokens=40, ignore_eos=True), [plain[3:5], plain[20:22]])
    wanted = answer(core, asked)
    tight = new_core(num_kv_pages=36)
    for name in "abc":
        tight.add(request(name, asked, cache_salt=name.encode()), b"")
    answers = drain(tight)
    assert tight.stats.preemptions > 0
    assert [answers[name].token_ids for name in "abc"] == [wanted] * 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"allowed_tokens": b"\0" * 160},
        {"allowed_tokens": b"\xff" * 159},
        {"allowed_tokens": b"\xff" * 164},
        {"bad_sequences": ((5,),)},
        {"bad_sequences": ((),)},
        {"bad_sequences": ((5, VOCAB_SIZE),)},
        {"bad_sequences": ((-1, 5),)},
    ],
)
def test_lists_that_do_not_fit_the_model_are_refused(
    core: EngineCore, wrong: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgumentError):
        core.add(request("r", replace(GREEDY, **wrong)), b"")
    assert not core.has_work
