"""Decode steps as graphs: sizes, padding, the inputs that are read, failures, and the answers of whole engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
import inspect
import itertools
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any
import weakref

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from inference_service.constraint import Constraint, ConstraintKind
from inference_service.demo import MODEL_DIR
from inference_service.engine import graph_capture, memory
from inference_service.engine.core import EngineCore
from inference_service.engine.failures import DeviceLostError
from inference_service.engine.graph_capture import CAPTURE_S, CudaCapture, most_rows, obstacle
from inference_service.engine.graph_check import GraphCheck
from inference_service.engine.graphs import DecodeGraph, DecodeGraphs, DecodeStep, Surroundings
from inference_service.engine.inputs import UNKNOWN, SequenceInput, pack
from inference_service.engine.loader import load_model
from inference_service.engine.runner import ModelRunner
from inference_service.engine_protocol.messages import EngineConfig, EngineRequest
from inference_service.families.footprint import (
    GRAPH_BYTES,
    GRAPH_POOL_SLACK_BYTES,
    MAX_KEY_SPLITS,
    decode_bytes,
    graph_bytes,
    graph_sizes,
)
from inference_service.families.registry import load_spec
from inference_service.families.tables import kv_bytes_per_token
from inference_service.front import engine_config
from inference_service.kernels.ops import REFERENCE
from inference_service.settings import ServiceSettings
from tests.engine.test_one_step_ahead import SAMPLED, crowd, exact, play
from tests.support import glm_4v, graph_tape, qwen_vl_v1
from tests.support.conversations import GREEDY, conversation, drain
from tests.support.tiny_qwen_vl import image


Make = Callable[..., EngineCore]


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> graph_tape.TapeCapture:
    return graph_tape.install(monkeypatch)


@pytest.fixture
def make(make_core: Make) -> Make:
    def small(**changes: Any) -> EngineCore:
        return make_core(**({"max_num_seqs": 5, "max_model_len": 120} | changes))

    return small


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


@pytest.mark.parametrize(("depth", "num_pages"), [(0, 34), (1, 80)])
def test_answers_with_and_without_graphs_are_equal(
    make: Make, capture: graph_tape.TapeCapture, depth: int, num_pages: int
) -> None:
    """Images, penalties, choices, probes, log probabilities, stops and preemptions."""
    sizes = {"num_kv_pages": num_pages, "max_num_batched_tokens": 40, "pipeline_depth": depth}
    wanted = play(make(cuda_graphs="off", **sizes), crowd(), {"stopped": 7})
    assert not capture.tapes
    core = make(**sizes)
    assert core._runner.graphs.sizes == (1, 2, 4, 5)
    told = play(core, crowd(), {"stopped": 7})
    assert exact(told) == exact(wanted)
    assert depth or core.stats.preemptions > 0
    assert sum(tape.num_replays for tape in capture.tapes) > 4 + 25, "each is compared once"


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
    spec = SimpleNamespace(decoder=SimpleNamespace(rope=rope))
    around: Any = SimpleNamespace(
        model=SimpleNamespace(spec=spec, device=torch.device("cpu")),
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
    step = DecodeStep(rows, around)
    step.words.copy_(torch.from_numpy(step.pack(inputs)))
    padded = inputs + [padding] * (rows - len(inputs))
    packed = pack(padded, page_size=4, with_rope_levels=with_levels)
    starts, contexts, slots, known, mapping, where, *levels = packed.arrays[:-3]
    found = [step._starts, step._contexts, step._slots, step._known, step._slot_mapping]
    expected = [starts, contexts, slots, known, mapping, where, *levels]
    found += [step._positions, *([] if step._levels is None else [step._levels])]
    for tensor, array in zip(found, expected, strict=True):
        assert np.array_equal(tensor.numpy(), array)
        assert tensor.numpy().dtype == array.dtype


@pytest.mark.parametrize("setting", ["auto", "off"])
def test_the_setting_reaches_the_engine(setting: str) -> None:
    settings = ServiceSettings.load({}, {"QWENVL_CUDA_GRAPHS": setting})
    model: Any = SimpleNamespace(directory="somewhere")
    assert engine_config(settings, model).cuda_graphs == setting


# Padding


@pytest.fixture
def around(make: Make, capture: graph_tape.TapeCapture) -> Surroundings:
    core = make(max_num_seqs=8, num_kv_pages=30)
    return core._runner.surroundings(8)


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


# What a capture permits


HOST = torch.ones(1)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x[0, 0].item(),
        lambda x: x[0].tolist(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x + torch.tensor([1.0]),
        lambda x: x.masked_select(x > 0),
        lambda x: torch.equal(x, x),
        lambda x: x + HOST,
    ],
)
def test_a_step_that_needs_the_host_is_not_captured(
    make: Make,
    capture: graph_tape.TapeCapture,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    wait: Callable[[Tensor], Any],
) -> None:
    real = DecodeStep.compute

    def compute(self: DecodeStep) -> None:
        real(self)
        wait(self.logits)

    monkeypatch.setattr(DecodeStep, "compute", compute)
    assert make(max_num_seqs=1)._runner.graphs.sizes == ()
    assert "NotPermittedError" in caplog.text


# Failures


PROMPT = conversation(["Tell me a story."])


def greedy_answers(core: EngineCore) -> dict[str, list[int]]:
    for index in range(5):
        core.add(PROMPT.request(str(index), replace(GREEDY, max_tokens=3 + index)), b"")
    return {name: answer.token_ids for name, answer in drain(core).items()}


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no memory"), RuntimeError("broken")])
@pytest.mark.parametrize("place", [0, 1, 2, 3, None])
def test_a_failed_capture_costs_its_size_only(
    make: Make,
    capture: graph_tape.TapeCapture,
    caplog: pytest.LogCaptureFixture,
    place: int | None,
    error: Exception,
) -> None:
    sizes = [5, 4, 2, 1]
    capture.breaks = {at: error for at in range(4) if place in (at, None)}
    wanted = greedy_answers(make(cuda_graphs="off"))
    core = make()
    left = [size for at, size in enumerate(sizes) if at not in capture.breaks]
    assert core._runner.graphs.sizes == tuple(sorted(left))
    warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert str(error) in warnings[0]
    assert greedy_answers(core) == wanted


def test_the_comparison_itself_may_fail(
    make: Make, capture: graph_tape.TapeCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(GraphCheck, "__init__", no_memory)
    assert make()._runner.graphs.sizes == ()
    assert not capture.tapes


def test_a_lost_device_ends_the_engine(make: Make, capture: graph_tape.TapeCapture) -> None:
    capture.is_lost = True
    with pytest.raises(DeviceLostError, match=r"--cuda-graphs off.*illegal memory access"):
        make()


def test_capturing_ends_in_time(
    make: Make,
    capture: graph_tape.TapeCapture,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The largest graphs come first: they serve small steps too."""
    times = iter([0.0, 1.0, CAPTURE_S - 1, CAPTURE_S + 1, CAPTURE_S + 2, CAPTURE_S + 3])
    real = graph_capture.capture_graphs
    monkeypatch.setattr(
        "inference_service.engine.assembly.capture_graphs",
        lambda *given: real(*given, clock=lambda: next(times)),
    )
    core = make()
    assert core._runner.graphs.sizes == (4, 5)
    assert "steps of up to 1, 2 sequences" in caplog.text
    greedy_answers(core)
    assert capture.tapes[-1].num_replays > 3


def _add_noise(step: DecodeStep) -> None:
    step.logits.mul_(torch.linspace(1, 1.2, step.logits.shape[1]))


@pytest.mark.parametrize(
    "fault",
    [
        (_add_noise, "it differs from its reference"),
        (lambda step: step.logits.fill_(torch.nan), "it differs from its reference"),
        (lambda step: step.token_ids.add_(1), "most likely"),
        (lambda step: step._around.state.last_tokens.zero_(), "does not record"),
    ],
)
def test_a_graph_that_differs_is_left_out(
    make: Make,
    capture: graph_tape.TapeCapture,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: tuple[Callable[[DecodeStep], Any], str],
) -> None:
    """Only that of two rows does, and only when it is replayed."""
    then, cause = fault
    real = graph_tape.TapeCapture.record

    def record(self: graph_tape.TapeCapture, work: Any) -> Callable[[], None]:
        replay, step = real(self, work), work.__self__

        def replay_wrongly() -> None:
            replay()
            if step.rows == 2:
                then(step)

        return replay_wrongly

    monkeypatch.setattr(graph_tape.TapeCapture, "record", record)
    core = make()
    assert core._runner.graphs.sizes == (1, 4, 5)
    assert cause in caplog.text


def _without_copy(self: DecodeGraph, words: Tensor, count: int) -> Any:
    self.replay()
    return self.step.token_ids[:count], self.step.logits[:count]


def _with_baked_length(monkeypatch: pytest.MonkeyPatch) -> None:
    real = graph_tape.attend

    def attend(q: Tensor, k: Tensor, v: Tensor, meta: Any, scale: float) -> Tensor:
        if not len(meta.host_query_start):
            meta.context_lens = torch.ones_like(meta.context_lens)
        return real(q, k, v, meta, scale)

    monkeypatch.setattr(graph_tape, "attend", attend)


@pytest.mark.parametrize("mutation", ["inputs", "lengths"])
def test_the_comparison_notices_what_a_replay_does_not_read(
    make_core: Make, monkeypatch: pytest.MonkeyPatch, mutation: str
) -> None:
    if mutation == "inputs":
        monkeypatch.setattr(DecodeGraph, "run", _without_copy)
    else:
        _with_baked_length(monkeypatch)
    graph_tape.install(monkeypatch)
    core = make_core(max_num_seqs=5, max_model_len=120)
    assert core._runner.graphs.sizes == ()


def test_nothing_is_left_of_the_comparison(make: Make, capture: graph_tape.TapeCapture) -> None:
    core = make()
    state, cache = core._runner._slots.state, core._runner._kv_cache
    assert isinstance(cache, Tensor)
    assert not cache[:, :, :-1].any()
    assert not state.last_tokens.any()
    assert not state.page_table[:5].any()


# Memory


class LiveBytes(TorchDispatchMode):
    """The most bytes that results of operations take at once, beside what was there before."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._alive: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in inputs:
                self._alive[id(storage)] = (weakref.ref(tensor), storage.nbytes())
        self._alive = {k: v for k, v in self._alive.items() if v[0]() is not None}
        self.most = max(self.most, sum(size for _, size in self._alive.values()))
        return out


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("rows", [1, 4, 8])
@torch.inference_mode()
def test_a_step_takes_less_memory_than_is_reserved(around: Surroundings, rows: int) -> None:
    """With attention that takes what the kernel takes: its result, and sums of at most so many parts."""
    spec = around.model.spec
    decoder = spec.decoder

    def attend(q: Tensor, *_: Any) -> Tensor:
        parts = torch.zeros(*q.shape[:2], MAX_KEY_SPLITS, decoder.head_dim + 2)
        return torch.zeros_like(q) + 0 * parts.sum()

    layers: Any = around.model.decoder.layers
    for layer in layers:
        layer.self_attn._ops = replace(layer.self_attn._ops, paged_attention=attend)
    step = DecodeStep(rows, around)
    step.compute()
    with LiveBytes() as live:
        step.compute()
    reserved = graph_bytes(spec, (rows,), 4, around.max_model_len, around.page_size)
    outputs = rows * (decoder.vocab_size * 4 + 8) + step.words.nbytes
    tensors = reserved - GRAPH_BYTES - GRAPH_POOL_SLACK_BYTES
    assert live.most > 0
    assert live.most + outputs <= tensors


def test_the_cache_leaves_room_for_graphs(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(checkpoint, dtype=torch.float32, device=torch.device("cpu"))
    config = EngineConfig(model_dir=str(checkpoint), max_num_seqs=9)
    without = memory._decode_bytes(config, model, 2**40)
    monkeypatch.setattr(memory, "obstacle", lambda *_: "")
    spec = model.spec
    graphs = graph_bytes(spec, (1, 2, 4, 8, 9), 4, spec.max_position_embeddings, config.page_size)
    assert graphs > 5 * GRAPH_BYTES
    added = memory._decode_bytes(config, model, 2**40) - without
    slot = 8 + 4 * (spec.decoder.vocab_size + spec.max_position_embeddings)
    assert graphs + slot < added < graphs + 2 * slot


@pytest.mark.parametrize("room", [2**26, 2**28, 2**30, 2**34])
@pytest.mark.parametrize("name", ["Qwen2-VL-2B-Instruct", "Qwen3-VL-8B-Instruct"])
def test_the_longest_sequence_is_what_the_cache_then_holds(name: str, room: int) -> None:
    """Sizing without a limit equals sizing with the limit to which it leads."""
    spec = load_spec(Path("tests/golden/configs") / name)
    sizes = ServiceSettings.load({}, {})
    taken = decode_bytes(spec, sizes, 2, room, graphs=True)
    token = kv_bytes_per_token(spec, 2)
    longest = max(0, min(spec.max_position_embeddings, (room - taken) // token))
    limited = sizes.model_copy(update={"max_model_len": longest})
    assert abs(decode_bytes(spec, limited, 2, room, graphs=True) - taken) < token


# CUDA itself


class FakeCuda:
    """What `CudaCapture` uses of `torch.cuda`, with what happens in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        self.current = "main"
        self.fails = False
        self.num_pools = 0
        self._signature = inspect.signature(torch.cuda.graph)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", self.new_graph)
        monkeypatch.setattr(torch.cuda, "Stream", lambda _: "side")
        for name in ("graph", "stream", "device", "synchronize", "graph_pool_handle"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    def new_graph(self) -> Any:
        return SimpleNamespace(replay=lambda: self.events.append(f"replay on {self.current}"))

    def graph_pool_handle(self) -> int:
        self.num_pools += 1
        return self.num_pools

    def synchronize(self, _: torch.device) -> None:
        self.events.append("wait")

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        assert device == torch.device("cuda:1")
        yield

    @contextmanager
    def stream(self, name: str) -> Iterator[None]:
        before, self.current = self.current, name
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, *given: Any, **named: Any) -> Iterator[None]:
        """As torch's, it leaves its stream the current one if the capture fails."""
        self._signature.bind(*given, **named)
        assert named == {
            "pool": self.num_pools,
            "stream": "side",
            "capture_error_mode": "thread_local",
        }
        self.events.append("begin")
        self.current = "side"
        yield
        self.events.append("end")
        if self.fails:
            raise RuntimeError("operation failed due to a previous error during capture")


def test_cuda_runs_the_work_before_it_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(monkeypatch)
    capture = CudaCapture(torch.device("cuda:1"))
    for _ in range(2):
        cuda.events.clear()
        replay = capture.record(lambda: cuda.events.append(f"work on {cuda.current}"))
        assert cuda.events == ["wait", "work on side", "wait", "begin", "work on side", "end"]
        replay()
        assert cuda.events[-1] == "replay on main"
    cuda.fails = True
    with pytest.raises(RuntimeError, match="previous error"):
        capture.record(lambda: None)
    assert cuda.current == "main"
    assert cuda.num_pools == 2, "the next captures have another pool"
    cuda.fails = False
    capture.record(lambda: None)
    assert cuda.num_pools == 2
