"""Probes: log probabilities of given tokens behind a prompt, without sampling."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from inference_service.engine_protocol.messages import (
    EngineRequest,
    FinishReason,
    Probe,
    ProbeResult,
)
from inference_service.errors import ContextLengthError, InvalidArgumentError
from tests.support.conversations import GREEDY, Answer, Conversation, conversation, drain_choices
from tests.support.tiny_qwen_vl import VOCAB_SIZE, image, reference_logits


SEEN = image(3, 4, 11)
EVIDENCE = conversation(
    ["Look: ", SEEN, " and read this, which is longer than a page of the cache."]
)
OTHER = conversation(["Tell me a story."])
PROBES = tuple(
    Probe(token_ids=tuple(text.encode()), candidate_ids=candidates)
    for text, candidates in (
        ("Is it red?", (7, 65, 66)),
        ("", (66,)),
        ("How many are there in all? 图里有几个?", tuple(range(40))),
        ("!", (VOCAB_SIZE - 1, 0)),
        ("Is it red?", (7,)),
    )
)


def request_of(
    probes: tuple[Probe, ...], prompt: Conversation = EVIDENCE, name: str = "x"
) -> EngineRequest:
    return prompt.request(name, GREEDY, num_choices=len(probes), probes=probes)


def results_of(core, probes: tuple[Probe, ...] = PROBES) -> list[ProbeResult]:
    core.add(request_of(probes), EVIDENCE.pixels)
    answers = drain_choices(core)
    return [result_of(answers["x", index]) for index in range(len(probes))]


def result_of(answer: Answer) -> ProbeResult:
    [output] = answer.outputs
    assert output.finish_reason is FinishReason.LENGTH
    assert (output.token_ids, output.failure) == ((), None)
    assert output.timings is not None
    assert output.probe is not None
    return output.probe


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_num_batched_tokens": 7},
        {"max_num_seqs": 2},
        {"enable_prefix_caching": False},
    ],
)
def test_logprobs_are_those_of_transformers(make_core, reference, settings: dict) -> None:
    results = results_of(make_core(**settings))

    for probe, result in zip(PROBES, results, strict=True):
        ids = [*EVIDENCE.token_ids, *probe.token_ids]
        wanted = reference_logits(reference, ids, EVIDENCE.seen)[-1].double().log_softmax(-1)
        found = torch.tensor(result.logprobs, dtype=torch.float64)
        assert torch.allclose(found, wanted[list(probe.candidate_ids)], atol=1e-4, rtol=0)
        assert result.top_id == wanted.argmax().item()


def test_the_shape_of_the_batch_does_not_matter(make_core) -> None:
    together = results_of(make_core())
    alone = [results_of(make_core(), (probe,))[0] for probe in PROBES]
    core = make_core(max_num_batched_tokens=40)
    core.add(OTHER.request("other", replace(GREEDY, max_tokens=30)), OTHER.pixels)
    core.step()
    core.add(request_of(PROBES), EVIDENCE.pixels)
    answers = drain_choices(core)
    beside = [result_of(answers["x", index]) for index in range(len(PROBES))]

    for one, two, three in zip(together, alone, beside, strict=True):
        assert one.logprobs == pytest.approx(two.logprobs, abs=1e-4)
        assert one.logprobs == pytest.approx(three.logprobs, abs=1e-4)
    assert answers["other", 0].finish_reason is FinishReason.LENGTH


def test_sampling_settings_do_not_matter(make_core) -> None:
    core = make_core()
    shaped = replace(
        GREEDY, temperature=1.5, logit_bias=((7, 50.0),), repetition_penalty=2.0, top_k=1
    )
    core.add(EVIDENCE.request("x", shaped, num_choices=len(PROBES), probes=PROBES), EVIDENCE.pixels)
    answers = drain_choices(core)
    found = [result_of(answers["x", index]).logprobs for index in range(len(PROBES))]
    assert found == [pytest.approx(r.logprobs, abs=1e-4) for r in results_of(make_core())]


def test_one_image_is_encoded_once(make_core) -> None:
    core = make_core()
    core.add(request_of(PROBES[:1], name="first"), EVIDENCE.pixels)
    drain_choices(core)
    core.add(request_of(PROBES * 5, name="rest"), EVIDENCE.pixels)
    answers = drain_choices(core)

    stats = core.stats
    assert stats.encoder_queries - stats.encoder_hits == 1
    whole_pages = len(EVIDENCE.token_ids) // 4 * 4
    cached = [answers["rest", index].num_cached_tokens for index in range(5 * len(PROBES))]
    assert all(tokens is not None and tokens >= whole_pages - 4 for tokens in cached)


def test_all_at_once_encode_one_image_once(make_core) -> None:
    core = make_core()
    results_of(core)
    assert core.stats.encoder_queries - core.stats.encoder_hits == 1


def test_nothing_of_a_probe_remains(make_core) -> None:
    core = make_core()
    core.add(request_of(PROBES), EVIDENCE.pixels)
    core.abort("x", 2)
    core.step()
    core.abort("x")
    assert not core.has_work
    assert core.stats.kv_pages_used == 0
    assert len(results_of(core)) == len(PROBES)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_choices": 2}, "num_choices is 2"),
        ({"probes": (Probe(token_ids=(), candidate_ids=()),)}, "no candidates"),
        ({"probes": (Probe(token_ids=(), candidate_ids=(VOCAB_SIZE,)),)}, "Token ids"),
        ({"probes": (Probe(token_ids=(-1,), candidate_ids=(1,)),)}, "Token ids"),
    ],
)
def test_invalid_probes_are_refused(make_core, changes: dict, words: str) -> None:
    core = make_core()
    with pytest.raises(InvalidArgumentError, match=words):
        core.add(replace(request_of(PROBES[:1]), **changes), EVIDENCE.pixels)
    assert not core.has_work


def test_the_longest_probe_must_fit(make_core) -> None:
    longest = max(len(probe.token_ids) for probe in PROBES)
    core = make_core(max_model_len=len(EVIDENCE.token_ids) + longest)
    with pytest.raises(ContextLengthError):
        core.add(request_of(PROBES), EVIDENCE.pixels)
    core = make_core(max_model_len=len(EVIDENCE.token_ids) + longest + 1)
    assert len(results_of(core)) == len(PROBES)
