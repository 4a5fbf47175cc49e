"""Random schedules of a real model with graphs: the answers are those of each request alone without graphs.

The rules are those of `test_pipeline_properties`: requests with and without images come and are aborted, run out of
pages, are preempted and lost, at both depths.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import replace
from functools import cache
import logging
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, run_state_machine_as_test
import pytest
import torch

from inference_service.engine import assembly
from inference_service.engine import pipeline as pipeline_module
from inference_service.engine.core import EngineCore
from inference_service.engine.graph_check import GraphCheck
from inference_service.engine.graphs import DecodeGraph, DecodeStep, Surroundings
from inference_service.engine.inputs import SequenceInput
from inference_service.engine.loader import load_model
from inference_service.engine.pipeline import Pipeline
from inference_service.engine.plan import Chunk
from inference_service.engine.row_settings import RowSettings
from inference_service.engine.runner import ModelRunner
from inference_service.engine.sequence import Sequence
from inference_service.engine.step_results import ChunkResult, Launched
from inference_service.engine.step_sampler import SamplingPlan, StepSampler
from inference_service.engine_protocol.messages import (
    EngineConfig,
    EngineRequest,
    FinishReason,
    ImageSpan,
    Probe,
    SamplingParams,
)
from inference_service.models.vision_language import VisionLanguageModel
from tests.engine.test_pipeline_properties import Serving
from tests.support import graph_tape
from tests.support.conversations import conversation, drain
from tests.support.delayed_runner import FakePace
from tests.support.tiny_qwen_vl import VOCAB_SIZE, image


PICTURES = [image(1, 2, 1), image(2, 2, 2), image(2, 1, 3)]

SOME_TOKENS = (b"\x0f" * (VOCAB_SIZE // 8)).ljust(-(-VOCAB_SIZE // 32) * 4, b"\0")


class Setup:
    """What all examples share; set by a fixture.

    Attributes:
        model_dir: Its directory.
        model: The model.
        capture: Its graphs.
        pixels: By request id.
    """

    model_dir: str
    model: VisionLanguageModel
    capture: graph_tape.TapeCapture
    pixels: dict[str, bytes]


@pytest.fixture(autouse=True)
def _setup(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(pipeline_module.__name__), "disabled", True)
    Setup.capture = graph_tape.install(monkeypatch)
    Setup.model = load_model(checkpoint, dtype=torch.float32, device=torch.device("cpu"))
    Setup.model_dir = str(checkpoint)
    Setup.pixels = {}
    alone.cache_clear()


@cache
def alone(
    request: EngineRequest, pixels: bytes, max_model_len: int
) -> tuple[list[int], FinishReason]:
    """The answer of a request without graphs and without others."""
    config = EngineConfig(
        model_dir=Setup.model_dir,
        num_kv_pages=10,
        max_model_len=max_model_len,
        cpu_threads=1,
        cuda_graphs="off",
    )
    core = EngineCore(config, loaded)
    core.add(request, pixels)
    [answer] = drain(core).values()
    assert answer.finish_reason is not None
    return answer.token_ids, answer.finish_reason


def loaded(*_: Any, **__: Any) -> VisionLanguageModel:
    return Setup.model


@st.composite
def samplings(draw: st.DrawFn) -> SamplingParams:
    greedy = draw(st.booleans())
    told = draw(st.integers(0, 4)) == 0
    return SamplingParams(
        max_tokens=draw(st.sampled_from([1, 3, 8, 16])),
        temperature=0.0 if greedy else 1.0,
        top_k=draw(st.sampled_from([0, 0, 20])),
        top_p=draw(st.sampled_from([1.0, 1.0, 0.9])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.0, 1.2])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.0, 0.3])),
        logit_bias=draw(st.sampled_from([(), (), (), ((7, 3.0),)])),
        allowed_tokens=draw(st.sampled_from([b"", b"", b"", SOME_TOKENS])),
        logprobs=1 if draw(st.integers(0, 4)) == 0 else None,
        prompt_logprobs=0 if told else None,
        seed=draw(st.integers(0, 3)),
        eos_token_ids=tuple(range(0, 600, draw(st.sampled_from([600, 25])))),
    )


class RealRunner:
    """The runner of an engine, as `tests.support.delayed_runner.DelayedRunner` is used."""

    def __init__(self, runner: ModelRunner) -> None:
        self.breaks = ""
        self.num_collected = 0
        self.known: set[Sequence] = set()
        self.remembered = runner
        self.distrust = runner.distrust

    def add(self, sequences: Seq[Sequence]) -> None:
        self.remembered.add(sequences, memoryview(Setup.pixels[sequences[0].request.request_id]))
        self.known.update(sequences)

    def remove(self, sequence: Sequence) -> None:
        self.remembered.remove(sequence)
        self.known.remove(sequence)

    def pixels(self, sequence: Sequence, image: ImageSpan) -> memoryview:
        return self.remembered.pixels(sequence, image)

    def check_that_nobody_waits(self, num_decodes: int) -> None:
        """Whose results are in flight is known to the fake device only."""

    def encode(self, images: Seq[tuple[ImageSpan, memoryview]]) -> Iterator[None]:
        self._break("encode")
        return self.remembered.encode(images)

    def launch(self, chunks: Seq[Chunk]) -> Launched:
        self._break("launch")
        launched = self.remembered.launch(chunks)
        self._break("queued")
        return launched

    def collect(self, launched: Launched) -> list[ChunkResult]:
        self.num_collected += 1
        self._break("collect")
        return self.remembered.collect(launched)

    def _break(self, where: str) -> None:
        if self.breaks == where:
            self.breaks = ""
            raise MemoryError


class GraphServing(Serving):
    """The same rules with a real model."""

    @initialize(
        depth=st.integers(0, 1),
        page_size=st.integers(1, 5),
        num_pages=st.integers(12, 40),
        max_num_seqs=st.integers(2, 6),
        budget=st.integers(6, 30),
        caching=st.sampled_from([True, True, False]),
        lost=st.sets(st.integers(0, 3), max_size=2),
    )
    def start(
        self,
        *,
        depth: int,
        page_size: int,
        num_pages: int,
        max_num_seqs: int,
        budget: int,
        caching: bool,
        lost: set[int],
    ) -> None:
        config = EngineConfig(
            model_dir=Setup.model_dir,
            page_size=page_size,
            num_kv_pages=num_pages,
            max_model_len=48,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            encoder_cache_tokens=8,
            enable_prefix_caching=caching,
            cpu_threads=1,
        )
        begun = Setup.capture.count
        Setup.capture.breaks |= {begun + place: RuntimeError("lost") for place in lost}
        parts = assembly.assemble(config, loaded)
        Setup.capture.breaks.clear()
        self.max_model_len = parts.scheduler.max_model_len
        self.blocks, self.scheduler = parts.blocks, parts.scheduler
        self.encoder_cache = parts.encoder_cache
        runner: Any = RealRunner(parts.runner)
        self.runner = runner
        self.pipeline = Pipeline(
            self.scheduler,
            runner,
            self.encoder_cache,
            FakePace(runner),  # type: ignore[arg-type]
            depth=depth,
            device=torch.device("cpu"),
        )
        self.accepted, self.stops, self.answers = [], {}, defaultdict(list)

    def new_sequence(self, data: st.DataObject, request_id: str) -> Sequence:
        words = st.text("abcde", min_size=1, max_size=3)
        pictures = st.integers(0, len(PICTURES) - 1)
        parts = data.draw(st.lists(words | pictures, min_size=1, max_size=3))
        prompt = conversation([PICTURES[part] if isinstance(part, int) else part for part in parts])
        judged = (Probe(token_ids=(1,), candidate_ids=(7, 65)),)
        probes = data.draw(st.sampled_from([(), (), (), judged]))
        sampling = data.draw(samplings())
        if probes:
            sampling = replace(sampling, prompt_logprobs=None, logprobs=None)
        request = prompt.request(request_id, sampling, probes=probes)
        Setup.pixels[request_id] = prompt.pixels
        return Sequence(request)

    def expected(self, request: EngineRequest) -> tuple[list[int], FinishReason]:
        found = alone(
            replace(request, request_id="alone"),
            Setup.pixels[request.request_id],
            self.max_model_len,
        )
        return [*request.prompt_token_ids, *found[0]], found[1]

    @staticmethod
    def is_broken(image: ImageSpan) -> bool:
        return False


def run(max_examples: int, **changes: Any) -> None:
    run_state_machine_as_test(
        GraphServing,
        settings=settings(
            max_examples=max_examples,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            **changes,
        ),
    )


def num_replays() -> int:
    return sum(tape.num_replays for tape in Setup.capture.tapes) - len(Setup.capture.tapes)


def test_some_schedules() -> None:
    run(5, derandomize=True, database=None)
    assert num_replays() > 10


@pytest.mark.full
def test_many_schedules() -> None:
    run(100)


def run_until_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine must fail under a mutation that the check at the start does not see."""
    monkeypatch.setattr(GraphCheck, "defect", lambda *_: "")
    broken = (AssertionError, IndexError, KeyError, StopIteration, ValueError, ExceptionGroup)
    with pytest.raises(broken):
        run(300, phases=[Phase.generate], database=None, derandomize=True, print_blob=False)


@pytest.mark.full
def test_notices_inputs_that_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(self: DecodeGraph, words: torch.Tensor, count: int) -> Any:
        self.replay()
        return self.step.token_ids[:count], self.step.logits[:count]

    monkeypatch.setattr(DecodeGraph, "run", stale)
    run_until_broken(monkeypatch)


@pytest.mark.full
@pytest.mark.parametrize(
    "change",
    [{"delta": 0}, {"slot": 0}, {"token_ids": (7,)}],
    ids=["positions", "slots", "tokens"],
)
def test_notices_a_wrong_input(monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]) -> None:
    real = DecodeStep.pack

    def pack(self: DecodeStep, inputs: Seq[SequenceInput], *settings: Any) -> Any:
        return real(self, [replace(one, **change) for one in inputs], *settings)

    monkeypatch.setattr(DecodeStep, "pack", pack)
    run_until_broken(monkeypatch)


@pytest.mark.full
def test_notices_padding_in_the_page_of_a_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ModelRunner.surroundings

    def surroundings(self: ModelRunner, rows: int) -> Surroundings:
        around = real(self, rows)
        return replace(around, padding=replace(around.padding, pages=(0,)))

    monkeypatch.setattr(ModelRunner, "surroundings", surroundings)
    run_until_broken(monkeypatch)


@pytest.mark.full
def test_notices_a_sampler_that_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepSampler, "whole", lambda *_: None)
    real = StepSampler.plan

    def plan(self: StepSampler, *given: Any) -> SamplingPlan:
        made = real(self, *given)
        return replace(made, is_greedy=not made.questions.any)

    monkeypatch.setattr(StepSampler, "plan", plan)
    run_until_broken(monkeypatch)


@pytest.mark.full
@pytest.mark.parametrize("part", ["longs", "ints", "floats"])
def test_notices_settings_of_other_rows(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    real = RowSettings.padded

    def padded(self: RowSettings, others: RowSettings) -> RowSettings:
        return real(replace(self, **{part: getattr(self, part)[:, ::-1]}), others)

    monkeypatch.setattr(RowSettings, "padded", padded)
    run_until_broken(monkeypatch)
