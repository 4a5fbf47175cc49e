"""Decode steps as graphs: sizes, padding, the inputs that are read, failures, and the answers of whole engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
import torch
from torch import Tensor

from inference_service.constraint import Constraint, ConstraintKind
from inference_service.demo import MODEL_DIR
from inference_service.engine.core import EngineCore
from inference_service.engine.graph_capture import most_rows, obstacle
from inference_service.engine.graphs import DecodeGraph, DecodeGraphs, DecodeStep, Surroundings
from inference_service.engine.inputs import UNKNOWN, SequenceInput, pack
from inference_service.engine.row_settings import (
    NUM_FLOATS,
    NUM_INTS,
    NUM_LONGS,
    RowSettings,
    greedy_rows,
)
from inference_service.engine.runner import ModelRunner
from inference_service.engine.step_sampler import StepSampler
from inference_service.engine_protocol.messages import EngineConfig, EngineRequest
from inference_service.families.footprint import (
    graph_sizes,
)
from inference_service.kernels.ops import REFERENCE
from inference_service.serving import engine_config
from inference_service.settings import ServiceSettings
from tests.engine.test_one_step_ahead import SAMPLED, crowd, exact, play
from tests.support import glm_4v, graph_tape, qwen_vl_v1
from tests.support.conversations import GREEDY, conversation, drain
from tests.support.tiny_qwen_vl import VOCAB_SIZE, image


Make = Callable[..., EngineCore]


# Sizes


def test_the_sizes_of_graphs() -> None:
    assert [graph_sizes(most) for most in (0, 1, 2, 3, 5, 8)] == [
        (),
        (1,),
        (1, 2),
        (1, 2, 3),
        (1, 2, 4, 5),
        (1, 2, 4, 8),
    ]
    assert graph_sizes(64) == (1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64)
    assert graph_sizes(300)[-4:] == (224, 240, 256, 288, 300)[-4:]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3000))
def test_sizes_ascend_to_the_largest_with_little_padding(most: int) -> None:
    sizes = graph_sizes(most)
    assert sizes[0] == 1
    assert sizes[-1] == most
    for smaller, size in itertools.pairwise(sizes):
        assert smaller < size <= max(2 * smaller, smaller + 8, smaller * 9 // 8)
    assert len(sizes) <= 3 + most / 8 + 2


@settings(max_examples=30, deadline=None)
@given(st.sets(st.integers(1, 40)), st.integers(1, 45))
def test_a_step_takes_the_smallest_graph_that_is_large_enough(sizes: set[int], count: int) -> None:
    all_graphs: Any = {size: f"graph {size}" for size in sizes}
    enough = [size for size in sizes if size >= count]
    wanted: Any = f"graph {min(enough)}" if enough else None
    assert DecodeGraphs(all_graphs).fitting(count) == wanted


@pytest.mark.parametrize(
    ("max_num_seqs", "budget", "num_pages", "page_size", "rows"),
    [(64, 2048, 600, 16, 64), (64, 30, 600, 16, 30), (64, 99, 9, 2, 9), (64, 99, 9, 1, 4)],
)
def test_the_largest_step(
    max_num_seqs: int, budget: int, num_pages: int, page_size: int, rows: int
) -> None:
    config = EngineConfig(
        model_dir="", max_num_seqs=max_num_seqs, max_num_batched_tokens=budget, page_size=page_size
    )
    assert most_rows(config, num_pages) == rows


# Whole engines


@pytest.mark.parametrize(
    ("depth", "num_pages", "samples"), [(0, 34, True), (1, 80, True), (1, 80, False)]
)
def test_answers_with_and_without_graphs_are_equal(
    make: Make, monkeypatch: pytest.MonkeyPatch, depth: int, num_pages: int, samples: bool
) -> None:
    """Images, penalties, choices, probes, log probabilities, stops and preemptions."""
    capture = graph_tape.install(monkeypatch, samples=samples)
    sizes = {"num_kv_pages": num_pages, "max_num_batched_tokens": 40, "pipeline_depth": depth}
    wanted = play(make(cuda_graphs="off", **sizes), crowd(), {"stopped": 7})
    assert not capture.tapes
    core = make(**sizes)
    assert core._runner.graphs.sizes == (1, 2, 4, 5)
    told = play(core, crowd(), {"stopped": 7})
    assert exact(told) == exact(wanted)
    assert depth or core.stats.preemptions > 0
    assert sum(tape.num_replays for tape in capture.tapes) > 4 + 25, "each is compared once"


def test_the_sampler_is_queued_for_rows_that_need_more_only(
    make: Make, capture: graph_tape.TapeCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    queued: list[int] = []
    real = StepSampler.run

    def run(self: StepSampler, plan: Any, sent: Any, logits: Tensor) -> Any:
        queued.append(len(logits))
        return real(self, plan, sent, logits)

    monkeypatch.setattr(StepSampler, "run", run)
    prompt = conversation(["Hi"])
    settings = replace(
        SAMPLED, top_k=20, top_p=0.8, repetition_penalty=1.05, logprobs=2, max_tokens=6
    )
    biased = replace(settings, logit_bias=((3, 1.0),))
    words = np.zeros(-(-VOCAB_SIZE // 32), np.int32)
    words[2:6] = 0xFF
    masked = replace(settings, allowed_tokens=words.tobytes())
    for index, (sampling, behind) in enumerate(((settings, 0), (biased, 5), (masked, 5))):
        queued.clear()
        core = make(enable_prefix_caching=False)
        core.add(prompt.request(str(index), replace(sampling, eos_token_ids=())), b"")
        assert len(drain(core)[str(index)].token_ids) == 6
        assert len(queued) == 1 + behind, "the prompt is no graph"


def test_only_steps_of_single_tokens_are_graphs(
    make: Make, capture: graph_tape.TapeCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every decode step is one; a token of an image and a prompt token to report are none."""
    steps: list[tuple[str, list[int]]] = []
    for name in ("_launch", "_replay"):
        real = getattr(ModelRunner, name)

        def spy(self: Any, *given: Any, name: str = name, real: Any = real) -> Any:
            steps.append((name, [chunk.end - chunk.start for chunk in given[-1]]))
            return real(self, *given)

        monkeypatch.setattr(ModelRunner, name, spy)
    core = make(enable_prefix_caching=False)
    for name, prompt in (("a", conversation(["Hi"])), ("b", conversation([image(1, 1, 3)]))):
        core.add(prompt.request(name, replace(GREEDY, max_tokens=4)), prompt.pixels)
    drain(core)
    assert {name for name, sizes in steps if max(sizes) > 1} == {"_launch"}
    assert {name for name, sizes in steps if max(sizes) == 1} == {"_replay"}
    steps.clear()
    alone = replace(conversation(["x"]), token_ids=(7,))
    for index in range(2):
        told = replace(GREEDY, max_tokens=2, prompt_logprobs=1 if index else None)
        core.add(alone.request("c", told), b"")
        drain(core)
    assert [name for name, _ in steps] == ["_replay"] * 4, "a prompt of one token has no others"
    steps.clear()
    two = replace(conversation(["x"]), token_ids=(7, 8))
    core = make(max_num_batched_tokens=1)
    core.add(two.request("d", replace(GREEDY, max_tokens=2, prompt_logprobs=1)), b"")
    drain(core)
    assert [name for name, _ in steps] == ["_launch", "_replay", "_replay"]


def test_constrained_answers_get_their_mask_behind_the_graph(
    capture: graph_tape.TapeCapture,
) -> None:
    digits = Constraint(kind=ConstraintKind.REGEX, text="[0-9]{9}")
    sampling = replace(SAMPLED, max_tokens=12, eos_token_ids=(1232, 1230))
    answers = []
    for graphs in ("off", "auto"):
        config = EngineConfig(
            model_dir=str(MODEL_DIR),
            page_size=4,
            num_kv_pages=50,
            max_num_seqs=4,
            max_model_len=40,
            cpu_threads=1,
            device="cpu",
            dtype="float32",
            cuda_graphs=graphs,
        )
        core = EngineCore(config)
        for seed in range(4):
            request = EngineRequest(
                request_id=str(seed),
                prompt_token_ids=(1231, 100 + seed, 1232),
                sampling=replace(sampling, seed=seed),
                constraint=digits if seed % 2 else None,
            )
            core.add(request, b"")
        answers.append({name: answer.token_ids for name, answer in drain(core).items()})
    assert answers[0] == answers[1]
    assert sum(tape.num_replays for tape in capture.tapes) > 12


@pytest.mark.full
def test_rotary_levels_are_inputs_of_the_graph(
    qwen_vl_a: Path, capture: graph_tape.TapeCapture
) -> None:
    """Qwen-VL: frequencies by the length of the prompt, and a scale of the queries by position."""
    config = EngineConfig(
        model_dir=str(qwen_vl_a),
        page_size=16,
        num_kv_pages=60,
        max_num_seqs=4,
        cpu_threads=1,
        dtype="float32",
        device="cpu",
    )
    core = EngineCore(config)
    expected = {run["name"]: run["new_tokens"] for run in qwen_vl_v1.golden("A.json")["generation"]}
    prompts = list(qwen_vl_v1.SHORT_PROMPTS.items())[:3]
    for name, prompt in prompts:
        core.add(prompt.request(replace(GREEDY, max_tokens=32), request_id=name), prompt.pixels)
    answers = drain(core)
    for name, _ in prompts:
        assert list(answers[name].token_ids) == expected[name], name
    assert sum(tape.num_replays for tape in capture.tapes) > 30


@pytest.mark.full
def test_a_model_with_adjacent_pairs(tmp_path: Path, capture: graph_tape.TapeCapture) -> None:
    config = EngineConfig(
        model_dir=str(glm_4v.build_checkpoint(tmp_path)),
        page_size=16,
        num_kv_pages=60,
        max_num_seqs=2,
        cpu_threads=1,
        dtype="float32",
        device="cpu",
    )
    core = EngineCore(config)
    expected = {run["name"]: run["new_tokens"] for run in glm_4v.DATA["generation"]}
    name, prompt = next(iter(glm_4v.PROMPTS.items()))
    sampling = replace(GREEDY, max_tokens=16, eos_token_ids=())
    core.add(prompt.request(sampling, request_id=name), prompt.pixels)
    assert list(drain(core)[name].token_ids) == expected[name]
    assert sum(tape.num_replays for tape in capture.tapes) > 12


def test_a_cpu_has_no_graphs(make: Make) -> None:
    core = make()
    assert core._runner.graphs.sizes == ()
    state, cache = core._runner._slots.state, core._runner._kv_cache
    assert len(state.page_table) == len(state.last_tokens) == 5
    assert cache[0].shape[1] == core.stats.kv_pages_total == 600


@pytest.mark.parametrize(
    ("setting", "device", "placement", "has_kernel", "expected"),
    [
        ("auto", "cuda", None, True, True),
        ("off", "cuda", None, True, False),
        ("auto", "cpu", None, True, False),
        ("auto", "cuda", "two devices", True, False),
        ("auto", "cuda", None, False, False),
    ],
)
def test_where_graphs_are_used(
    setting: str, device: str, placement: str | None, has_kernel: bool, expected: bool
) -> None:
    ops = replace(REFERENCE, paged_attention=graph_tape.attend) if has_kernel else REFERENCE
    model: Any = SimpleNamespace(device=torch.device(device), placement=placement, ops=ops)
    config = EngineConfig(model_dir="", cuda_graphs=setting)
    assert (not obstacle(config, model)) is expected


# Inputs


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.booleans(), st.data())
def test_inputs_arrive_where_the_step_reads_them(
    rows: int, with_levels: bool, data: st.DataObject
) -> None:
    """What is packed for a step without graphs, with padding behind it."""
    padding = SequenceInput((0,), 0, (77,), 50)
    rope = SimpleNamespace(ntk="some" if with_levels else None)
    spec = SimpleNamespace(decoder=SimpleNamespace(rope=rope, vocab_size=3))
    around: Any = SimpleNamespace(
        model=SimpleNamespace(spec=spec, device=torch.device("cpu"), ops=REFERENCE),
        state=SimpleNamespace(history=torch.empty(51, 10)),
        logits=torch.empty(9, 3),
        token_ids=torch.empty(9),
        page_size=4,
        padding=padding,
    )
    numbers = st.integers(0, 2**40)
    positions = st.lists(numbers, min_size=3, max_size=3).map(lambda n: np.array(n).reshape(3, 1))
    inputs = [
        SequenceInput(
            [data.draw(numbers | st.just(UNKNOWN))],
            data.draw(st.integers(0, 30)),
            [data.draw(st.integers(0, 2**31 - 1)) for _ in range(8)],
            data.draw(st.integers(0, 49)),
            data.draw(st.none() | positions),
            data.draw(st.integers(-5, 100)),
            data.draw(st.integers(0, 3)),
        )
        for _ in range(data.draw(st.integers(0, rows)))
    ]
    count = len(inputs)
    told = RowSettings(
        *(
            np.array(
                data.draw(st.lists(st.integers(-99, 99), min_size=n * count, max_size=n * count))
            )
            .astype(kind)
            .reshape(n, count)
            for n, kind in ((NUM_LONGS, np.int64), (NUM_INTS, np.int32), (NUM_FLOATS, np.float32))
        )
    )
    step = DecodeStep(rows, around)
    step.words.copy_(torch.from_numpy(step.pack(inputs, told)))
    padded = inputs + [padding] * (rows - len(inputs))
    packed = pack(padded, page_size=4, with_rope_levels=with_levels)
    starts, contexts, slots, known, mapping, where, *levels = packed.arrays[:-3]
    found = [step._starts, step._contexts, step._slots, step._known, step._slot_mapping]
    expected = [starts, contexts, slots, known, mapping, where, *levels]
    found += [step._positions, *([] if step._levels is None else [step._levels])]
    greedy = greedy_rows(rows, vocab_size=3, history_place=50 * 10)
    for name in ("longs", "ints", "floats"):
        found.append(getattr(step._settings, name))
        both = (getattr(told, name), getattr(greedy, name)[:, count:])
        expected.append(np.concatenate(both, axis=1))
    for tensor, array in zip(found, expected, strict=True):
        assert np.array_equal(tensor.numpy(), array)
        assert tensor.numpy().dtype == array.dtype


@pytest.mark.parametrize("setting", ["auto", "off"])
def test_the_setting_reaches_the_engine(setting: str) -> None:
    settings = ServiceSettings.load({}, {"QWENVL_CUDA_GRAPHS": setting})
    model: Any = SimpleNamespace(directory="somewhere")
    assert engine_config(settings, model).cuda_graphs == setting


# Padding


@torch.inference_mode()
def test_padding_changes_nothing_of_sequences(
    around: Surroundings, capture: graph_tape.TapeCapture
) -> None:
    """Whatever is in the page and the slot of padding, results are equal to the last bit; nothing else is written."""
    generator = torch.Generator().manual_seed(1)
    cache, state = around.kv_cache, around.state
    assert isinstance(cache, Tensor)
    filled = cache.normal_(generator=generator).clone()
    state.page_table[:8, :3] = torch.arange(24).view(8, 3)
    for count, rows in ((1, 1), (3, 4), (4, 4), (5, 8), (7, 8)):
        step = DecodeStep(rows, around)
        graph = DecodeGraph(step, capture.record(step.compute))
        inputs = [
            SequenceInput([20 + row], 2 + row, range(3 * row, 3 * row + 3), row, delta=row)
            for row in range(count)
        ]
        found = []
        for rubbish in (0.0, 1e4, torch.nan, torch.inf):
            cache.copy_(filled)[:, :, -1] = rubbish
            state.last_tokens.fill_(5)
            before = cache.clone(), state.page_table.clone()
            token_ids, logits = graph.run(torch.from_numpy(step.pack(inputs)), count)
            found.append((token_ids.clone(), logits.clone()))
            written = [3 * row * 4 + 2 + row for row in range(count)]
            changed = (cache != before[0]).flatten(2, 3).any(-1).any(-1).any(0).any(0)
            changed[30 * 4 :] = False  # that of padding
            assert changed.nonzero().flatten().tolist() == written
            assert torch.equal(state.page_table, before[1])
            assert state.last_tokens[:count].tolist() == token_ids.tolist()
            assert state.last_tokens[count:8].tolist() == [5] * (8 - count)
        for token_ids, logits in found[1:]:
            assert torch.equal(token_ids, found[0][0])
            assert torch.equal(logits, found[0][1])


def test_the_slot_of_padding_has_only_the_page_of_padding(around: Surroundings) -> None:
    assert around.padding.slot == 8
    assert around.padding.pages == (30,)
    assert around.state.page_table[8].unique().tolist() == [30]
    assert around.kv_cache[0].shape[1] == 31
