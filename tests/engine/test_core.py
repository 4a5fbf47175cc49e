"""The engine core on the tiny checkpoint: how sequences end, log probabilities, seeds, aborts, failures, refusals."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from inference_service.engine.runner import ModelRunner
from inference_service.engine.staging import Staging
from inference_service.engine_protocol.messages import FinishReason, ImageSpan, SamplingParams
from inference_service.errors import (
    ContextLengthError,
    ImageTooLargeError,
    InvalidArgumentError,
    RequestIdInUseError,
)
from inference_service.families.registry import FAMILIES
from tests.support.conversations import (
    GREEDY,
    Answer,
    Conversation,
    ask,
    conversation,
    drain,
    drain_choices,
)
from tests.support.tiny_qwen_vl import VOCAB_SIZE, image, reference_logits


IMAGE = image(3, 4, 11)
PROMPT = conversation(["Look: ", IMAGE, " 什么?"])
OTHER = conversation(["Look: ", image(3, 4, 12), " 什么?"])
TEXT = conversation(["Tell me a story."])


def reason_of(answer: Answer) -> str:
    """Why an answer failed."""
    failure = answer.outputs[-1].failure
    assert failure is not None
    return failure.reason


def finish(core, prompt: Conversation, **changes: Any) -> tuple[list[int], FinishReason | None]:
    core.add(prompt.request("x", replace(GREEDY, **changes)), prompt.pixels)
    answer = drain(core)["x"]
    return answer.token_ids, answer.finish_reason


# How sequences end


def test_max_tokens_ends_an_answer(make_core) -> None:
    tokens, reason = finish(make_core(), TEXT, max_tokens=3)
    assert (len(tokens), reason) == (3, FinishReason.LENGTH)


def test_an_end_token_ends_an_answer(make_core) -> None:
    core = make_core()
    answer, _ = finish(core, TEXT)
    third = answer[2]
    assert third not in answer[:2]
    assert finish(core, TEXT, eos_token_ids=(third,)) == (answer[:3], FinishReason.EOS)
    assert finish(core, TEXT, stop_token_ids=(third,)) == (answer[:3], FinishReason.STOP_TOKEN)
    assert finish(core, TEXT, eos_token_ids=(third,), ignore_eos=True)[0] == answer
    both = finish(
        core, TEXT, eos_token_ids=(third,), stop_token_ids=(third,), ignore_eos=True, max_tokens=3
    )
    assert both == (answer[:3], FinishReason.STOP_TOKEN)
    at_the_limit = finish(core, TEXT, eos_token_ids=(third,), max_tokens=3)
    assert at_the_limit == (answer[:3], FinishReason.EOS)


def test_min_tokens(make_core) -> None:
    core = make_core()
    answer, _ = finish(core, TEXT)
    tokens, _ = finish(core, TEXT, eos_token_ids=tuple(set(answer)), min_tokens=6)
    assert len(tokens) >= 6
    assert not set(tokens[:6]) & set(answer)


def test_context_length(make_core) -> None:
    num_tokens = len(PROMPT.token_ids)
    core = make_core(max_model_len=num_tokens + 5)
    assert core.ready.max_model_len == num_tokens + 5
    tokens, reason = finish(core, PROMPT, max_tokens=50)
    assert (len(tokens), reason) == (5, FinishReason.CONTEXT_LENGTH)
    assert finish(core, PROMPT, max_tokens=5)[1] is FinishReason.LENGTH


def test_a_sequence_may_fill_the_whole_cache(make_core) -> None:
    num_pages = -(-len(PROMPT.token_ids) // 4) + 2
    core = make_core(num_kv_pages=num_pages)
    assert core.ready.max_model_len == num_pages * 4
    tokens, reason = finish(core, PROMPT, max_tokens=500)
    assert reason is FinishReason.CONTEXT_LENGTH
    assert len(tokens) + len(PROMPT.token_ids) == num_pages * 4


# Log probabilities


@pytest.mark.parametrize(
    "settings",
    [{}, {"max_num_batched_tokens": 7}, {"num_kv_pages": 23, "max_num_batched_tokens": 30}],
)
def test_logprobs_are_those_of_transformers(make_core, reference, settings: dict) -> None:
    """Of the answer and of the prompt; chunks and preemption neither lose nor repeat one."""
    core = make_core(**settings)
    sampling = replace(
        GREEDY, temperature=1.0, repetition_penalty=1.5, logprobs=4, prompt_logprobs=2, top_k=5
    )
    for name, prompt in (("a", TEXT), ("b", PROMPT), ("c", OTHER)):
        core.add(prompt.request(name, replace(sampling, seed=ord(name))), prompt.pixels)
    answers = drain(core)
    for name, prompt in (("a", TEXT), ("b", PROMPT), ("c", OTHER)):
        answer = answers[name]
        ids = [*prompt.token_ids, *answer.token_ids]
        wanted = reference_logits(reference, ids, prompt.seen).double().log_softmax(-1)
        of_prompt = [entry for output in answer.outputs for entry in output.prompt_logprobs]
        of_answer = [entry for output in answer.outputs for entry in output.logprobs]
        entries = [*of_prompt, *of_answer]
        assert len(of_prompt) == len(prompt.token_ids) - 1
        assert [entry.token_id for entry in entries] == ids[1:]
        assert {len(entry.top) for entry in of_prompt} == {2}
        assert {len(entry.top) for entry in of_answer} == {4}
        for entry, row in zip(entries, wanted, strict=False):
            assert entry.logprob == pytest.approx(row[entry.token_id].item(), abs=2e-4)
            assert entry.rank == 1 + (row > row[entry.token_id]).sum().item()
            assert [token for token, _ in entry.top] == row.topk(len(entry.top)).indices.tolist()
        first_answer = next(i for i, output in enumerate(answer.outputs) if output.token_ids)
        assert not any(output.prompt_logprobs for output in answer.outputs[first_answer + 1 :])
    if "num_kv_pages" in settings:
        assert core.stats.preemptions > 0


def test_prompt_logprobs_use_no_prefix_hits(make_core) -> None:
    core = make_core()
    ask(core, [PROMPT])
    core.add(PROMPT.request("x", replace(GREEDY, prompt_logprobs=0)), PROMPT.pixels)
    answer = drain(core)["x"]
    assert answer.num_cached_tokens == 0
    assert (
        sum(len(output.prompt_logprobs) for output in answer.outputs) == len(PROMPT.token_ids) - 1
    )


def test_no_logprobs_unless_asked_for(make_core) -> None:
    core = make_core()
    core.add(PROMPT.request("x"), PROMPT.pixels)
    outputs = drain(core)["x"].outputs
    assert not any(output.logprobs or output.prompt_logprobs for output in outputs)


# Seeds


SAMPLED = SamplingParams(max_tokens=12, temperature=1.0, seed=5)


def test_a_seed_gives_the_same_answer_in_every_batch(make_core) -> None:
    alone = [ask(make_core(), [prompt], SAMPLED)[0] for prompt in (TEXT, PROMPT, OTHER)]
    core = make_core(max_num_batched_tokens=11)
    assert ask(core, (TEXT, PROMPT, OTHER), SAMPLED) == alone
    assert ask(core, (OTHER, PROMPT, TEXT), SAMPLED) == alone[::-1]
    tight = make_core(num_kv_pages=25)
    assert ask(tight, (TEXT, PROMPT, OTHER), SAMPLED) == alone
    assert tight.stats.preemptions > 0


def test_answers_of_one_request_differ(make_core) -> None:
    core = make_core()
    core.add(replace(PROMPT.request("x", SAMPLED), num_choices=4), PROMPT.pixels)
    answers = drain_choices(core)
    assert answers.keys() == {("x", choice) for choice in range(4)}
    assert len({tuple(answer.token_ids) for answer in answers.values()}) == 4
    assert core.stats.encoder_hits == 3, "the image is encoded once"


def test_choices_are_the_same_alone_and_in_a_request_for_more(make_core) -> None:
    """A choice's noise depends on its index, not on how many others are computed."""
    one, two, four = make_core(), make_core(), make_core(num_kv_pages=25)
    for core, number in ((one, 1), (two, 2), (four, 4)):
        core.add(replace(PROMPT.request("x", SAMPLED), num_choices=number), PROMPT.pixels)
    first, some, all_ = drain_choices(one), drain_choices(two), drain_choices(four)
    assert first["x", 0].token_ids == some["x", 0].token_ids == all_["x", 0].token_ids
    assert some["x", 1].token_ids == all_["x", 1].token_ids
    assert len(first) == 1
    assert len(all_) == 4


def test_positions_of_a_prompt_are_computed_once(make_core, monkeypatch) -> None:
    core = make_core()
    family, calls = FAMILIES["qwen3_vl"], []

    def spy(*inputs):
        calls.append(inputs)
        return family.positions(*inputs)

    monkeypatch.setitem(FAMILIES, family.name, replace(family, positions=spy))
    core.add(replace(PROMPT.request("x", SAMPLED), num_choices=4), PROMPT.pixels)
    drain_choices(core)
    assert len(calls) == 1
    assert not core._runner._prompts


def test_prompt_logprobs_come_with_the_first_choice_only(make_core) -> None:
    core = make_core()
    request = PROMPT.request("x", replace(SAMPLED, prompt_logprobs=0))
    core.add(replace(request, num_choices=3), PROMPT.pixels)
    answers = drain_choices(core)
    counts = [
        sum(len(output.prompt_logprobs) for output in answers["x", choice].outputs)
        for choice in range(3)
    ]
    assert counts == [len(PROMPT.token_ids) - 1, 0, 0]


def test_a_choice_that_is_aborted_frees_its_pages_while_the_others_go_on(make_core) -> None:
    core = make_core()
    core.add(replace(PROMPT.request("x", SAMPLED), num_choices=4), PROMPT.pixels)
    for _ in range(4):
        core.step()
    before = core.stats
    core.abort("x", 2)
    assert core.stats.kv_pages_used < before.kv_pages_used
    assert core.stats.running == 3
    assert {o.choice_index for o in core.step()} == {0, 1, 3}
    core.abort("x")
    assert not core.has_work
    assert core.stats.kv_pages_used == 0


def test_a_choice_that_ends_early_does_not_end_the_others(make_core) -> None:
    core = make_core()
    core.add(replace(PROMPT.request("probe", SAMPLED), num_choices=4), PROMPT.pixels)
    probe = drain_choices(core)
    stop = probe["probe", 1].token_ids[3]
    sampling = replace(SAMPLED, stop_token_ids=(stop,))
    core.add(replace(PROMPT.request("x", sampling), num_choices=4), PROMPT.pixels)
    answers = drain_choices(core)
    for choice in range(4):
        full = probe["probe", choice].token_ids
        end = full.index(stop) + 1 if stop in full else len(full)
        assert answers["x", choice].token_ids == full[:end]
    assert answers["x", 1].finish_reason is FinishReason.STOP_TOKEN


def test_a_request_without_choices_is_refused(make_core) -> None:
    with pytest.raises(InvalidArgumentError, match="choice"):
        make_core().add(replace(TEXT.request("x"), num_choices=0), b"")


def test_seeds_differ(make_core) -> None:
    core = make_core()
    answers = [ask(core, [TEXT], SAMPLED, seed=seed)[0] for seed in range(4)]
    assert len({tuple(answer) for answer in answers}) == 4


# Caches


def test_cached_tokens_are_told_once(make_core) -> None:
    core = make_core()
    core.add(PROMPT.request("x"), PROMPT.pixels)
    assert drain(core)["x"].num_cached_tokens == 0
    core.add(PROMPT.request("x"), PROMPT.pixels)
    assert drain(core)["x"].num_cached_tokens == (len(PROMPT.token_ids) - 1) // 4 * 4


def written(
    core, prompt: Conversation, sampling: SamplingParams = GREEDY, **options: Any
) -> list[int]:
    """What each choice of a request with a prompt adds to the prefix cache."""
    count = options.get("num_choices", 1)
    core.add(prompt.request("x", sampling, **options), prompt.pixels)
    outputs = drain_choices(core)
    return [outputs["x", index].num_cache_write_tokens for index in range(count)]


@pytest.mark.parametrize("length", range(1, 14))
def test_every_full_page_of_a_prompt_is_found_or_written(make_core, length: int) -> None:
    """Pages have four tokens; those of answers do not count."""
    core = make_core(max_num_batched_tokens=5)
    core.add(Conversation(tuple(range(65, 65 + length)), (), ()).request("x"), b"")
    assert drain(core)["x"].num_cache_write_tokens == length // 4 * 4
    longer = Conversation(tuple(range(65, 65 + length + 6)), (), ())
    core.add(longer.request("x"), b"")
    output = drain(core)["x"]
    assert output.num_cached_tokens is not None
    assert output.num_cached_tokens + output.num_cache_write_tokens == (length + 6) // 4 * 4
    assert written(core, longer) == [0]


def test_a_page_is_written_by_one_choice(make_core) -> None:
    core, whole = make_core(), len(PROMPT.token_ids) // 4 * 4
    assert written(core, PROMPT, num_choices=3) == [whole, 0, 0]
    assert written(core, PROMPT, num_choices=2) == [0, 0]
    assert written(core, PROMPT, cache_salt=b"tenant") == [whole]
    assert written(make_core(enable_prefix_caching=False), PROMPT) == [0]


def test_a_prompt_with_log_probabilities_is_computed_and_not_written_again(make_core) -> None:
    core, sampling = make_core(max_num_batched_tokens=4), replace(GREEDY, prompt_logprobs=1)
    assert written(core, TEXT, sampling) == [len(TEXT.token_ids) // 4 * 4]
    assert written(core, TEXT, sampling) == [0]


def test_the_next_turn_hits_the_answer_before(make_core) -> None:
    core = make_core()
    answer = ask(core, [TEXT])[0]
    follow_up = Conversation((*TEXT.token_ids, *answer, 65, 66, 67), (), ())
    core.add(follow_up.request("x"), b"")
    assert drain(core)["x"].num_cached_tokens == (len(TEXT.token_ids) + len(answer) - 1) // 4 * 4


def test_salts_share_nothing(make_core) -> None:
    core = make_core()
    ask(core, [TEXT])
    core.add(TEXT.request("x", cache_salt=b"tenant"), b"")
    assert drain(core)["x"].num_cached_tokens == 0


def test_caching_can_be_switched_off(make_core) -> None:
    core = make_core(enable_prefix_caching=False)
    ask(core, [TEXT])
    ask(core, [TEXT])
    assert core.stats.prefix_hits == core.stats.kv_pages_cached == 0


def test_cached_images_hold_no_memory_but_their_own(make_core) -> None:
    core = make_core()
    ask(core, [PROMPT, OTHER])
    for prompt in (PROMPT, OTHER):
        embedding = core._runner._encoder_cache.get(prompt.images[0].key)
        assert embedding.untyped_storage().nbytes() == embedding.nbytes


# Aborts


def test_abort_takes_effect_before_the_next_step(make_core) -> None:
    core = make_core()
    alone = ask(make_core(), [TEXT])[0]
    core.add(PROMPT.request("gone"), PROMPT.pixels)
    core.add(TEXT.request("stays"), b"")
    core.step()
    core.step()
    used = core.stats.kv_pages_used
    core.abort("gone")
    assert core.stats.running == 1
    assert core.stats.kv_pages_used < used
    answer = drain(core)
    assert "gone" not in answer
    assert answer["stays"].token_ids == alone[2:]


def test_abort_of_a_waiting_sequence(make_core) -> None:
    core = make_core(max_num_seqs=1)
    core.add(TEXT.request("runs"), b"")
    core.add(PROMPT.request("waits"), PROMPT.pixels)
    core.step()
    assert (core.stats.running, core.stats.waiting) == (1, 1)
    core.abort("waits")
    assert core.stats.waiting == 0
    assert set(drain(core)) == {"runs"}


def test_abort_of_the_last_sequence_leaves_an_idle_core(make_core) -> None:
    core = make_core(max_num_batched_tokens=5)
    core.add(PROMPT.request("x"), PROMPT.pixels)
    for _ in range(3):
        core.step()
    core.abort("x")
    core.abort("x")
    core.abort("never heard of")
    assert not core.has_work
    assert core.stats.kv_pages_used == 0
    assert core.step() == []
    core.add(PROMPT.request("x"), PROMPT.pixels)
    assert drain(core)["x"].token_ids == ask(make_core(), [PROMPT])[0]


# Failures


def test_out_of_memory_ends_the_newest_request_only(
    make_core, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = ask(make_core(), [TEXT, PROMPT])
    real, calls = ModelRunner.launch, []

    def launch(self: ModelRunner, chunks):
        calls.append(len(chunks))
        if len(calls) == 1:
            raise torch.OutOfMemoryError("no memory")
        return real(self, chunks)

    monkeypatch.setattr(ModelRunner, "launch", launch)
    core = make_core()
    for name, prompt in (("0", TEXT), ("1", PROMPT), ("2", OTHER)):
        core.add(prompt.request(name), prompt.pixels)
    answers = drain(core)
    assert [answers["0"].token_ids, answers["1"].token_ids] == alone
    assert answers["2"].finish_reason is FinishReason.ERROR
    assert reason_of(answers["2"]) == "GPU_OUT_OF_MEMORY"


def test_out_of_memory_while_encoding_is_tried_again_by_the_others(
    make_core, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = ask(make_core(), [PROMPT])
    real, calls = ModelRunner.encode, []

    def encode(self: ModelRunner, images):
        calls.append(len(images))
        if len(calls) == 1:
            raise torch.OutOfMemoryError("no memory")
        yield from real(self, images)

    monkeypatch.setattr(ModelRunner, "encode", encode)
    core = make_core()
    core.add(PROMPT.request("0"), PROMPT.pixels)
    core.add(PROMPT.request("1"), PROMPT.pixels)
    answers = drain(core)
    assert answers["0"].token_ids == alone[0]
    assert reason_of(answers["1"]) == "GPU_OUT_OF_MEMORY"


def test_an_image_that_breaks_the_encoder_ends_its_own_request(
    make_core, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = ask(make_core(), [TEXT, PROMPT])
    real = ModelRunner.encode

    def encode(self: ModelRunner, images):
        if any(image.key == OTHER.images[0].key for image, _ in images):
            raise RuntimeError("an image from hell")
        yield from real(self, images)

    monkeypatch.setattr(ModelRunner, "encode", encode)
    core = make_core()
    for name, prompt in (("0", TEXT), ("broken", OTHER), ("1", PROMPT), ("broken too", OTHER)):
        core.add(prompt.request(name), prompt.pixels)
    answers = drain(core)
    assert [answers["0"].token_ids, answers["1"].token_ids] == alone
    for name in ("broken", "broken too"):
        assert answers[name].token_ids == []
        assert reason_of(answers[name]) == "INTERNAL"
    monkeypatch.undo()
    assert ask(core, [OTHER]) == ask(make_core(), [OTHER]), "nothing half-done stays in the caches"


def test_other_errors_are_raised(make_core, monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(self: ModelRunner, chunks):
        raise RuntimeError("a defect")

    monkeypatch.setattr(ModelRunner, "launch", launch)
    core = make_core()
    core.add(TEXT.request("x"), b"")
    with pytest.raises(RuntimeError, match="a defect"):
        core.step()


# Refusals


def test_prompts_that_can_never_fit(make_core) -> None:
    core = make_core(num_kv_pages=5)
    with pytest.raises(ContextLengthError):
        core.add(PROMPT.request("x"), PROMPT.pixels)
    core = make_core(encoder_cache_tokens=11)
    with pytest.raises(ImageTooLargeError):
        core.add(PROMPT.request("x"), PROMPT.pixels)
    assert not core.has_work


def test_ids_are_unique_in_flight(make_core) -> None:
    core = make_core()
    core.add(TEXT.request("x"), b"")
    with pytest.raises(RequestIdInUseError):
        core.add(PROMPT.request("x"), PROMPT.pixels)
    assert drain(core)["x"].token_ids == ask(core, [TEXT])[0]


SPAN = PROMPT.images[0]


@pytest.mark.parametrize(
    "request_",
    [
        replace(TEXT.request("x"), prompt_token_ids=()),
        replace(TEXT.request("x"), prompt_token_ids=(1, VOCAB_SIZE)),
        replace(TEXT.request("x"), prompt_token_ids=(1, -1)),
        TEXT.request("x", replace(GREEDY, logit_bias=((VOCAB_SIZE, 1.0),))),
        TEXT.request("x", replace(GREEDY, stop_token_ids=(VOCAB_SIZE,))),
        replace(PROMPT.request("x"), images=(replace(SPAN, pixel_offset=1),)),
        replace(PROMPT.request("x"), images=(replace(SPAN, start=len(PROMPT.token_ids) - 3),)),
        replace(PROMPT.request("x"), images=(replace(SPAN, num_tokens=SPAN.num_tokens - 1),)),
        replace(PROMPT.request("x"), images=(replace(SPAN, grid=(2, 6, 4)),)),
        replace(PROMPT.request("x"), images=(replace(SPAN, height=SPAN.width, width=SPAN.height),)),
        replace(PROMPT.request("x"), images=(SPAN, SPAN)),
        replace(PROMPT.request("x"), images=(replace(SPAN, frames=2),)),
        replace(PROMPT.request("x"), images=(replace(SPAN, frames=0),)),
    ],
)
def test_requests_that_contradict_themselves(make_core, request_) -> None:
    core = make_core()
    with pytest.raises(InvalidArgumentError):
        core.add(request_, PROMPT.pixels)
    assert not core.has_work


def test_overlapping_images_are_refused(make_core) -> None:
    spans: tuple[ImageSpan, ...] = (SPAN, replace(SPAN, start=SPAN.start + 1))
    with pytest.raises(InvalidArgumentError):
        make_core().add(replace(PROMPT.request("x"), images=spans), PROMPT.pixels)


# Start


def test_ready_reports_the_loaded_model(make_core) -> None:
    ready = make_core().ready
    assert (ready.device, ready.dtype) == ("cpu", "float32")
    assert (ready.kv_pages_total, ready.kv_page_tokens) == (600, 4)
    assert ready.max_model_len == 2400
    assert ready.weight_bytes == 4 * sum(count for _, count in ready.parts)
    assert ready.kv_bytes_per_token == 3 * 2 * 2 * 16 * 4


def test_the_cache_follows_the_memory(make_core) -> None:
    core = make_core(num_kv_pages=None, cpu_kv_cache_bytes=10 * 4 * 768 + 5)
    assert core.ready.kv_pages_total == 10
    assert core.ready.max_model_len == 40
    core = make_core(num_kv_pages=None, max_model_len=40, max_num_seqs=2)
    assert core.ready.kv_pages_total == 20, "no more than can ever be used"
    with pytest.raises(ValueError, match="no memory"):
        make_core(num_kv_pages=None, cpu_kv_cache_bytes=10)


def test_settings_that_the_model_cannot_follow(make_core) -> None:
    with pytest.raises(ValueError, match="context window"):
        make_core(max_model_len=5000)
    with pytest.raises(ValueError, match="dtype"):
        make_core(dtype="int3")


def test_bfloat16_is_served(make_core) -> None:
    core = make_core(dtype="bfloat16")
    assert core.ready.dtype == "bfloat16"
    assert len(ask(core, [PROMPT])[0]) == GREEDY.max_tokens


# Launch and collect


def test_nothing_is_committed_before_a_step_is_collected(make_core) -> None:
    core = make_core()
    core.add(PROMPT.request("x", replace(GREEDY, logprobs=2, prompt_logprobs=1)), PROMPT.pixels)
    pipeline = core._pipeline
    pipeline.launch(core._scheduler.schedule())
    [sequence] = core._scheduler.of_request("x")
    assert sequence.num_answer_tokens == sequence.num_published_pages == 0
    assert sequence.num_pending == 1
    [output] = pipeline.collect()
    assert sequence.num_published_pages == len(PROMPT.token_ids) // 4
    assert list(output.token_ids) == sequence.token_ids[len(PROMPT.token_ids) :]
    assert output.logprobs[0].token_id == output.token_ids[0]
    assert len(output.prompt_logprobs) == len(PROMPT.token_ids) - 1


def test_two_steps_in_a_row_are_packed_in_different_buffers(
    make_core, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = []
    real = Staging.send

    def send(self: Staging, arrays):
        tensors = real(self, arrays)
        addresses.append(tensors[0].data_ptr())
        return tensors

    monkeypatch.setattr(Staging, "send", send)
    ask(make_core(), [TEXT])
    assert len(set(addresses)) == 2
    assert all(one != other for one, other in pairwise(addresses))


def test_out_of_memory_while_reading_ends_the_newest_request_only(
    make_core, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = ask(make_core(), [TEXT])
    real, calls = ModelRunner.collect, []

    def collect(self: ModelRunner, launched):
        calls.append(launched)
        if len(calls) == 1:
            raise MemoryError
        return real(self, launched)

    monkeypatch.setattr(ModelRunner, "collect", collect)
    core = make_core()
    core.add(TEXT.request("0"), b"")
    core.add(PROMPT.request("1"), PROMPT.pixels)
    answers = drain(core)
    assert answers["0"].token_ids == alone[0]
    assert reason_of(answers["1"]) == "GPU_OUT_OF_MEMORY"
