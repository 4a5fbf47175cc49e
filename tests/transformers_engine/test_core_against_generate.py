"""The process of the transformers backend answers as the library's own `generate`, whoever else is being answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
import itertools
import math
from pathlib import Path
from typing import Any
from weakref import ref

from llguidance import LLMatcher
import numpy as np
from PIL import Image
import pytest
import torch

from inference_service.constraint import Constraint, ConstraintKind
from inference_service.engine import constrained
from inference_service.engine.constraint_state import ConstraintState
from inference_service.engine_protocol.messages import (
    ChoiceOutput,
    EngineConfig,
    EngineRequest,
    FinishReason,
    Probe,
    PromptMedia,
    PromptSource,
    SamplingParams,
)
from inference_service.errors import (
    ContextLengthError,
    InvalidArgumentError,
    UnsupportedParameterError,
)
from inference_service.text.guard import SpecialTokenGuard
from inference_service.transformers_engine import library
from inference_service.transformers_engine.core import TransformersCore
from inference_service.transformers_engine.loading import load_core
from inference_service.transformers_engine.prompts import PreparedPrompt
from tests.support.any_models import FAMILIES, VOCAB_SIZE, build, token_id
from tests.support.library_checkpoints import reference_ids, reference_model


# GLM-4V's processor converts numbers of torch with NumPy, in a manner that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
MAX_TOKENS = 6
ENDS = (token_id("<|im_end|>"), token_id("<|endoftext|>"))
# One family in every run, the others in `make test-full`.
SOME = [FAMILIES[0], *(pytest.param(family, marks=pytest.mark.full) for family in FAMILIES[1:])]

Content = Sequence[str | tuple[int, int]]
"""Texts, and sizes (height, width) of images."""
TALKS: Sequence[Sequence[Content]] = [
    [["hello"]],
    [["What colour is the star?", (40, 64)]],
    [[(64, 32), "and", (33, 47), "Describe both."]],
    [[(32, 32), (32, 64), (48, 48), "请描述这些图片。"]],
    [["你好，世界！"], ["left"], ["它是什么颜色？"]],
    [["look:", (64, 64)], ["a red circle"], ["Is it green? ", (40, 40)]],
    [[(32, 96)]],
    [["def area(width, height):\n    return 12345"]],
]


@dataclass(frozen=True)
class Asked:
    """A prompt as text with its images."""

    text: str
    images: tuple[np.ndarray, ...]

    @property
    def pixels(self) -> bytes:
        return b"".join(image.tobytes() for image in self.images)

    @property
    def source(self) -> PromptSource:
        media, offset = [], 0
        for image in self.images:
            digest = sha256(repr(image.shape).encode() + image.tobytes()).digest()
            height, width = image.shape[:2]
            media.append(
                PromptMedia(height=height, width=width, pixel_offset=offset, digest=digest)
            )
            offset += image.nbytes
        return PromptSource(text=self.text, media=tuple(media), is_guarded=True)


@pytest.fixture(scope="module", params=SOME)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def processor(directory: Path) -> Any:
    return library.load_processor(directory, library.load_config(directory))


@pytest.fixture(scope="module")
def asked(processor: Any) -> list[Asked]:
    """Every talk of `TALKS`, rendered by transformers."""
    drawn = np.random.default_rng(7)
    found = []
    for talk in TALKS:
        images: list[np.ndarray] = []
        messages = []
        for index, content in enumerate(talk):
            parts = []
            for part in content:
                if isinstance(part, str):
                    parts.append({"type": "text", "text": part})
                else:
                    parts.append({"type": "image"})
                    images.append(drawn.integers(0, 256, (*part, 3), dtype=np.uint8))
            messages.append({"role": ("user", "assistant")[index % 2], "content": parts})
        text = processor.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        found.append(Asked(text, tuple(images)))
    return found


@pytest.fixture(scope="module")
def model(directory: Path) -> Any:
    return reference_model(directory)


@pytest.fixture(scope="module")
def expected(model: Any, processor: Any, asked: list[Asked]) -> list[list[int]]:
    found = []
    for one in asked:
        images = [Image.fromarray(image) for image in one.images]
        inputs = processor(text=[one.text], images=images or None, return_tensors="pt")
        found.append(reference_ids(model, inputs, MAX_TOKENS))
    return found


@pytest.fixture(scope="module")
def core(directory: Path) -> TransformersCore:
    return load_core(
        EngineConfig(model_dir=str(directory), device="cpu", max_num_seqs=8, cpu_threads=1)
    )


def request_of(core: TransformersCore, one: Asked, name: str, **options: Any) -> EngineRequest:
    layout = core.prepare(one.source, one.pixels)
    settings: dict[str, Any] = {
        "max_tokens": MAX_TOKENS,
        "temperature": 0.0,
        "eos_token_ids": ENDS,
    } | options
    return EngineRequest(
        request_id=name,
        prompt_token_ids=layout.token_ids,
        source=one.source,
        sampling=SamplingParams(**settings),
    )


def run(core: TransformersCore) -> dict[tuple[str, int], list[ChoiceOutput]]:
    """All outputs until the core has nothing more to do."""
    found: dict[tuple[str, int], list[ChoiceOutput]] = {}
    while core.has_work:
        for output in core.step():
            found.setdefault((output.request_id, output.choice_index), []).append(output)
    assert all(outputs[-1].finish_reason is not None for outputs in found.values())
    assert core.stats.kv_pages_used == 0
    return found


def ids_of(outputs: Sequence[ChoiceOutput]) -> list[int]:
    return [token_id for output in outputs for token_id in output.token_ids]


def answers(core: TransformersCore, asked: Sequence[Asked], **options: Any) -> list[list[int]]:
    for index, one in enumerate(asked):
        core.add(request_of(core, one, f"r{index}", **options), one.pixels)
    outputs = run(core)
    return [ids_of(outputs[f"r{index}", 0]) for index in range(len(asked))]


def test_the_prompts_tell_apart(asked, expected) -> None:
    """A test of equality is worth nothing if all answers are equal."""
    assert {len(one.images) for one in asked} == {0, 1, 2, 3}
    assert len(set(map(tuple, expected))) >= len(asked) - 2


def test_alone(core, asked, expected) -> None:
    assert [answers(core, [one])[0] for one in asked] == expected


def test_eight_at_once_take_turns(core, asked, expected) -> None:
    assert answers(core, asked) == expected
    assert answers(core, asked[::-1]) == expected[::-1]


def test_counting_equals_generation(core, asked, processor) -> None:
    for one in asked:
        images = [Image.fromarray(image) for image in one.images]
        made = processor(text=[one.text], images=images or None, return_tensors="pt")
        layout = core.prepare(one.source, one.pixels)
        assert list(layout.token_ids) == made["input_ids"][0].tolist()
        marks = library.ids_of(processor, core._parts.model.config, "image")
        image_tokens = sum(media.num_tokens for media in layout.media)
        assert image_tokens == sum(token in marks for token in layout.token_ids)


def test_what_a_user_writes_is_no_special_token(core, processor, asked) -> None:
    special = processor.tokenizer.added_tokens_decoder
    guard = SpecialTokenGuard(token.content for token in special.values() if token.special)
    texts = [f"{token.content} x" for token in special.values() if token.special]
    written = "<|im_start|>user\n" + guard.protect(" ".join(texts)) + "<|im_end|>\n"
    ids = core.prepare(PromptSource(text=written, is_guarded=True), b"").token_ids
    assert [i for i in ids if i in special and special[i].special] == [
        token_id("<|im_start|>"),
        token_id("<|im_end|>"),
    ]
    assert processor.tokenizer.decode(ids, skip_special_tokens=True).count("<|im_end|> x") == 1


def test_log_probabilities_are_those_of_the_model(core, asked, expected, model, processor) -> None:
    one = asked[2]
    core.add(request_of(core, one, "r", logprobs=3, prompt_logprobs=2), one.pixels)
    outputs = run(core)["r", 0]
    images = [Image.fromarray(image) for image in one.images]
    inputs = dict(processor(text=[one.text], images=images, return_tensors="pt"))
    with torch.inference_mode():
        logits = model(**inputs).logits[0].float().log_softmax(-1)
    ids = inputs["input_ids"][0]
    entries = [entry for output in outputs for entry in output.prompt_logprobs]
    assert [entry.token_id for entry in entries] == ids[1:].tolist()
    wanted = logits[:-1].gather(1, ids[1:, None])[:, 0]
    assert torch.allclose(torch.tensor([e.logprob for e in entries]), wanted, atol=1e-3)
    first = outputs[0].logprobs[0]
    assert first.token_id == expected[2][0]
    assert first.rank == 1
    assert first.logprob == pytest.approx(float(logits[-1].max()), abs=1e-3)
    assert len(first.top) == 3
    assert ids_of(outputs) == expected[2]


def test_seeded_choices_do_not_depend_on_others(core, asked) -> None:
    options = {"temperature": 1.0, "top_p": 0.9, "min_p": 0.01, "seed": 5}
    alone = [answers(core, [one], **options)[0] for one in asked[:3]]
    assert answers(core, asked[:3], **options) == alone
    one = asked[1]
    core.add(replace(request_of(core, one, "n", **options), num_choices=3), one.pixels)
    outputs = run(core)
    assert ids_of(outputs["n", 0]) == alone[1]
    assert len({tuple(ids_of(outputs["n", index])) for index in range(3)}) == 3


def test_bad_words_and_allowed_tokens_as_in_the_library(
    core, asked, expected, model, processor
) -> None:
    """Words of one token, and of several; the others are forbidden by a function."""
    one, answer = asked[4], expected[4]
    inputs = processor(text=[one.text], return_tensors="pt")
    words = [[answer[0]], answer[2:4], [7, 8, 9]]
    wanted = reference_ids(model, inputs, MAX_TOKENS, bad_words_ids=words)
    bias = ((answer[0], -math.inf),)
    sequences = tuple(tuple(word) for word in words[1:])
    assert answers(core, [one], logit_bias=bias, bad_sequences=sequences) == [wanted]
    assert wanted != answer
    allowed = [token for token in range(VOCAB_SIZE) if token % 3 and token != answer[0]]
    wanted = reference_ids(
        model, inputs, MAX_TOKENS, prefix_allowed_tokens_fn=lambda batch, ids: allowed
    )
    bits = sum(1 << token for token in allowed)
    size = 4 * -(-VOCAB_SIZE // 32)
    assert answers(core, [one], allowed_tokens=bits.to_bytes(size, "little")) == [wanted]
    wrong = request_of(core, one, "r", allowed_tokens=b"\xff")
    with pytest.raises(InvalidArgumentError):
        core.add(wrong, one.pixels)


def test_repetition_penalty_as_in_the_library(core, asked, expected, model, processor) -> None:
    texts = [asked[index] for index in (0, 4, 7)]
    wanted = []
    for one in texts:
        inputs = processor(text=[one.text], return_tensors="pt")
        wanted.append(reference_ids(model, inputs, MAX_TOKENS, repetition_penalty=0.3))
    assert answers(core, texts, repetition_penalty=0.3) == wanted
    assert wanted != [expected[index] for index in (0, 4, 7)]


def test_bias_stop_tokens_and_lengths(core, asked, expected) -> None:
    one, ids = asked[0], expected[0]
    assert answers(core, [one], logit_bias=((77, 1e4),), max_tokens=3) == [[77, 77, 77]]
    stop = ids[1]
    core.add(request_of(core, one, "r", stop_token_ids=(stop,)), b"")
    outputs = run(core)["r", 0]
    assert ids_of(outputs) == ids[: ids.index(stop) + 1]
    assert outputs[-1].finish_reason is FinishReason.STOP_TOKEN


def test_a_constraint_is_kept(core, asked, processor) -> None:
    choices = Constraint(kind=ConstraintKind.CHOICES, values=("left", "right side"))
    request = replace(request_of(core, asked[0], "r", max_tokens=40), constraint=choices)
    core.add(request, b"")
    outputs = run(core)["r", 0]
    text = processor.tokenizer.decode(ids_of(outputs), skip_special_tokens=True)
    assert text in ("left", "right side")
    assert outputs[-1].finish_reason is FinishReason.EOS


def test_a_constraint_that_takes_too_much_time_ends_its_answer_alone(
    core, asked, expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that counts masks and tokens: 0.1 s each."""

    def begun(compiled: LLMatcher, after: int | None) -> ConstraintState:
        return ConstraintState(compiled, after, itertools.count(step=0.1).__next__)

    monkeypatch.setattr(constrained, "ConstraintState", begun)
    endless = Constraint(kind=ConstraintKind.REGEX, text="[a-z]{400}")
    core.add(replace(request_of(core, asked[0], "slow", max_tokens=40), constraint=endless), b"")
    core.add(request_of(core, asked[0], "r"), b"")
    outputs = run(core)
    failure = outputs["slow", 0][-1].failure
    assert failure is not None
    assert failure.reason == "CONSTRAINT_FAILED"
    assert 1 < len(ids_of(outputs["slow", 0])) < 10
    assert ids_of(outputs["r", 0]) == expected[0]
    assert not core.has_work


def test_a_probe_is_judged(core, asked, model, processor) -> None:
    one = asked[1]
    request = replace(
        request_of(core, one, "r"),
        num_choices=2,
        probes=(
            Probe(token_ids=(), candidate_ids=(5, 9)),
            Probe(token_ids=(11, 12), candidate_ids=(5,)),
        ),
    )
    core.add(request, one.pixels)
    outputs = run(core)
    inputs = processor(
        text=[one.text], images=[Image.fromarray(one.images[0])], return_tensors="pt"
    )
    with torch.inference_mode():
        last = model(**inputs).logits[0, -1].log_softmax(-1)
    found = outputs["r", 0][0].probe
    assert found is not None
    assert found.logprobs == pytest.approx([float(last[5]), float(last[9])], abs=1e-3)
    assert outputs["r", 1][0].probe is not None


def test_an_abort_applies_before_the_next_step(core, asked, expected) -> None:
    for name, one in (("gone", asked[5]), ("stays", asked[1])):
        core.add(request_of(core, one, name), one.pixels)
    seen = [core.step() for _ in range(4)]
    assert {output.request_id for outputs in seen for output in outputs} == {"gone", "stays"}
    core.abort("gone")
    outputs = run(core)
    assert {name for name, _ in outputs} == {"stays"}
    before = [o for outputs in seen for o in outputs if o.request_id == "stays"]
    assert ids_of([*before, *outputs["stays", 0]]) == expected[1]


def test_a_request_that_cannot_begin_fails_alone(core, asked, expected, monkeypatch) -> None:
    """Its processor may have made something else than the model takes, or nothing of its pixels."""
    prompts = core._parts.prompts
    prepare = prompts.prepare
    for name, one in (("before", asked[1]), ("bad", asked[0]), ("after", asked[4])):
        core.add(request_of(core, one, name), one.pixels)
    core.add(request_of(core, asked[2], "other"), asked[2].pixels[1:])
    wrong = replace(request_of(core, asked[0], "wrong"), prompt_token_ids=(1, 2))
    core.add(wrong, b"")

    def made(source: PromptSource, pixels: bytes) -> PreparedPrompt:
        prepared = prepare(source, pixels)
        is_bad = source == asked[0].source
        return replace(prepared, inputs={}) if is_bad else prepared

    monkeypatch.setattr(prompts, "prepare", made)
    outputs = run(core)
    for name, reason in {"bad": "INTERNAL", "other": "INVALID", "wrong": "INVALID"}.items():
        assert outputs[name, 0][-1].finish_reason is FinishReason.ERROR
        failure = outputs[name, 0][-1].failure
        assert failure is not None
        assert reason in failure.reason
    assert ids_of(outputs["before", 0]) == expected[1]
    assert ids_of(outputs["after", 0]) == expected[4]


def test_a_prompt_without_memory_fails_alone(core, asked, expected, monkeypatch) -> None:
    """Others go on; it is to be tried again only if others had a part of the memory."""
    model = core._parts.model
    prefill = model._prefill

    def lacking(ids: Any, *options: Any) -> Any:
        if ids.shape[1] == len(large.prompt_token_ids):
            raise torch.OutOfMemoryError("too large")
        return prefill(ids, *options)

    large = request_of(core, asked[3], "large")
    monkeypatch.setattr(model, "_prefill", lacking)
    for others in ([], [asked[1]]):
        for one in others:
            core.add(request_of(core, one, "before"), one.pixels)
        core.add(large, asked[3].pixels)
        outputs = run(core)
        failure = outputs["large", 0][-1].failure
        assert failure is not None
        assert failure.reason == "GPU_OUT_OF_MEMORY"
        assert (failure.retry_after_s is None) is (not others)
    assert ids_of(outputs["before", 0]) == expected[1]


def test_requests_that_wait_keep_only_their_pixels(core, asked, expected, monkeypatch) -> None:
    """A processor may make megabytes of an image of one pixel."""
    prompts = core._parts.prompts
    prepare, made = prompts.prepare, []

    def noted(source: PromptSource, pixels: bytes) -> PreparedPrompt:
        prepared = prepare(source, pixels)
        made.append(ref(prepared.inputs["input_ids"]))
        return prepared

    monkeypatch.setattr("inference_service.transformers_engine.prompts._KEPT", 0)
    monkeypatch.setattr(prompts, "prepare", noted)
    answers_of = [1, 4, 1, 4]
    for number, index in enumerate(answers_of):
        core.add(request_of(core, asked[index], f"r{number}"), asked[index].pixels)
    assert made
    assert not any(tensor() is not None for tensor in made)
    outputs = run(core)
    for number, index in enumerate(answers_of):
        assert ids_of(outputs[f"r{number}", 0]) == expected[index]


@pytest.mark.full
def test_more_than_take_turns_wait(core, asked, expected) -> None:
    many = [*asked, *asked[::-1], *asked[:4]]
    assert answers(core, many) == [*expected, *expected[::-1], *expected[:4]]


def small_core(
    core: TransformersCore,
    directory: Path,
    num_tokens: int,
    max_num_seqs: int,
    max_model_len: int | None = None,
) -> TransformersCore:
    """A core like another, with so many tokens beside the states of its sequences."""
    return load_core(
        EngineConfig(
            model_dir=str(directory),
            device="cpu",
            cpu_threads=1,
            num_kv_pages=num_tokens + max_num_seqs * core._parts.state_tokens,
            page_size=1,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
        )
    )


def test_a_sequence_waits_for_room(core, directory, asked, expected) -> None:
    small = small_core(core, directory, 192, 2)
    short = [0, 4, 7]
    assert answers(small, [asked[i] for i in short]) == [expected[i] for i in short]
    small.add(replace(request_of(small, asked[0], "a", max_tokens=500), num_choices=3), b"")
    small.step()
    small.step()
    small.step()
    assert (small.stats.running, small.stats.waiting) == (2, 1)
    small.abort("a")
    assert small.stats.kv_pages_used == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0, "presence_penalty": 1.5},
        pytest.param({}, marks=pytest.mark.full),
    ],
)
def test_answers_without_a_limit_take_turns_and_are_preempted(core, directory, settings) -> None:
    """All of them have a first token before one ends, and their tokens are those that each has alone."""
    small = small_core(core, directory, 80, 8, max_model_len=16)
    requests = []
    for index in range(8):
        ids = (3, 14, 15, 9, index)
        sampling: dict[str, Any] = {"max_tokens": 10**6, "temperature": 0.0, "seed": index}
        request = EngineRequest(
            request_id=f"r{index}",
            prompt_token_ids=ids,
            source=PromptSource(token_ids=ids),
            sampling=SamplingParams(**sampling | settings),
        )
        requests.append(request)
    alone = {}
    for request in requests:
        small.add(request, b"")
        alone[request.request_id] = ids_of(run(small)[request.request_id, 0])
    assert small.stats.preemptions == 0
    for request in requests:
        small.add(request, b"")
    found: dict[str, list[ChoiceOutput]] = {}
    while small.has_work:
        for output in small.step():
            found.setdefault(output.request_id, []).append(output)
            assert output.finish_reason is None or len(found) == len(requests)
        assert small.stats.kv_pages_used <= small.stats.kv_pages_total
    assert small.stats.preemptions > 0
    assert small.stats.kv_pages_used == 0
    assert {name: ids_of(outputs) for name, outputs in found.items()} == alone
    for outputs in found.values():
        assert outputs[-1].finish_reason is FinishReason.CONTEXT_LENGTH
        assert len(outputs) == 16 - 5
        assert [index for index, output in enumerate(outputs) if output.timings] == [0]


def test_newcomers_do_not_keep_a_large_request_waiting_for_ever(
    core, directory, asked, monkeypatch
) -> None:
    monkeypatch.setattr("inference_service.engine.shares._PATIENCE_S", 0.0)
    small = small_core(core, directory, 192, 3)

    def add(name: str, length: int) -> None:
        """A caller's only request, with a prompt of so many tokens and an answer of 10."""
        one = request_of(small, asked[0], name, eos_token_ids=(), max_tokens=10)
        ids = (5,) * length
        source = PromptSource(token_ids=ids)
        small.add(replace(one, caller=name, prompt_token_ids=ids, source=source), b"")

    add("first", 90)
    small.step()
    add("large", 140)
    for number in range(150):
        if small.stats.waiting < 3:
            add(f"newcomer {number}", 20)
        if any(output.request_id == "large" for output in small.step()):
            return
    pytest.fail("it never runs")


def test_a_newcomer_goes_on_while_a_large_request_waits_and_gives_way_to_it(
    core, directory, asked, monkeypatch
) -> None:
    monkeypatch.setattr("inference_service.engine.shares._PATIENCE_S", 0.0)
    small = small_core(core, directory, 192, 2)

    def add(name: str, length: int, max_tokens: int) -> None:
        one = request_of(small, asked[0], name, eos_token_ids=(), max_tokens=max_tokens)
        ids = (5, *range(3, 2 + length))
        source = PromptSource(token_ids=ids)
        small.add(replace(one, caller=name, prompt_token_ids=ids, source=source), b"")

    add("newcomer", 20, 30)
    alone = ids_of(run(small)["newcomer", 0])
    add("first", 90, 10)
    outputs = small.step()
    add("large", 140, 10)
    outputs += small.step()
    add("newcomer", 20, 30)
    while small.has_work:
        outputs += small.step()
    order = [output.request_id for output in outputs]
    end_of_first = max(index for index, name in enumerate(order) if name == "first")
    assert order.index("newcomer") < end_of_first
    assert order.index("large") == end_of_first + 1
    assert small.stats.preemptions == 1
    assert ids_of([output for output in outputs if output.request_id == "newcomer"]) == alone


def test_refusals(core, asked) -> None:
    request = request_of(core, asked[0], "r")
    bias = replace(request.sampling, logit_bias=((VOCAB_SIZE, 1.0),))
    with pytest.raises(InvalidArgumentError, match="Token ids must be 0 to"):
        core.add(replace(request, sampling=bias), b"")
    with pytest.raises(InvalidArgumentError, match="does not match its pixels"):
        core.prepare(asked[1].source, b"")
    long = PromptSource(token_ids=(1,) * 3000)
    with pytest.raises(ContextLengthError):
        core.add(replace(request, source=long, prompt_token_ids=long.token_ids), b"")
    with pytest.raises(InvalidArgumentError, match="processor refuses"):
        core.prepare(replace(asked[1].source, text="no placeholder"), asked[1].pixels)
    assert not core.has_work


def test_log_probabilities_of_a_long_prompt_are_refused(core, asked, monkeypatch) -> None:
    monkeypatch.setattr(
        "inference_service.transformers_engine.admission._PROMPT_LOGITS_BYTES", 4800
    )
    with pytest.raises(UnsupportedParameterError, match="of up to 2 tokens"):
        core.add(request_of(core, asked[0], "r", prompt_logprobs=0), b"")
