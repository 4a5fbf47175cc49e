"""What a model of the library needs beside its weights, and what becomes of it where there is too little."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
import random
from typing import Any
from weakref import finalize

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from inference_service.engine.device import note_progress
from inference_service.engine.sequence import Sequence
from inference_service.engine_protocol.messages import EngineConfig, EngineRequest, SamplingParams
from inference_service.progress import progress
from inference_service.transformers_engine import sizes
from inference_service.transformers_engine.admission import Admission
from inference_service.transformers_engine.core import _out_of_memory
from inference_service.transformers_engine.loading import load_core
from inference_service.transformers_engine.trial import _bytes_of, state_bytes
from tests.support.any_models import FAMILIES, build
from tests.support.library_checkpoints import reference_model


def test_the_longest_prompt_fits_beside_the_caches() -> None:
    drawn = random.Random(1)
    for _ in range(200):
        room = drawn.choice([-5, 0, 10 ** drawn.randrange(1, 11)])
        wanted, token, activation = (drawn.randrange(1, 10**6) for _ in range(3))
        state = drawn.choice([0, drawn.randrange(1000)])
        longest, tokens = sizes.limits(room, wanted, token, activation, state)
        assert 0 <= longest <= wanted
        assert longest == 0 or longest + state <= tokens
        assert tokens * token + longest * activation <= max(0, room)
        more = (longest + 1) * (token + activation) + state * token
        assert longest == wanted or more > room
    assert sizes.limits(1000, 50, 10, 0) == (50, 100)


class Peak(TorchDispatchMode):
    """The most bytes of tensors that are made within it, and held at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._held = 0
        self._users: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(made)[0]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._use(storage.data_ptr(), storage.nbytes())
                finalize(tensor, self._leave, storage.data_ptr(), storage.nbytes())
        return made

    def _use(self, place: int, size: int) -> None:
        self._users[place] += 1
        if self._users[place] == 1:
            self._held += size
            self.peak = max(self.peak, self._held)

    def _leave(self, place: int, size: int) -> None:
        self._users[place] -= 1
        if not self._users[place]:
            self._held -= size


@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_not_less_than_those_of_a_prompt(tmp_path: Path, family: str) -> None:
    model = reference_model(build(tmp_path, family))
    ids = torch.full((1, 1024), 5)
    with torch.inference_mode(), Peak() as made:
        model(input_ids=ids, use_cache=False, logits_to_keep=1)
    estimate = sizes.activation_bytes_per_token(model.config, 4) * ids.shape[1]
    assert estimate / 8 < made.peak < estimate


@pytest.mark.parametrize("family", FAMILIES)
def test_states_and_keys_are_those_of_the_cache(tmp_path: Path, family: str) -> None:
    """Measured by a prompt of 40 tokens; layers with a state need the same whatever the length."""
    model = reference_model(build(tmp_path, family))
    state = state_bytes(model, 5)
    with torch.inference_mode():
        cache = model(input_ids=torch.full((1, 40), 5), use_cache=True).past_key_values
    assert state + 40 * 4 * sizes.kv_values_per_token(model.config) == _bytes_of(cache)
    assert (state > 0) is (family == "qwen3_5")


def test_a_library_that_does_not_do_what_this_service_asks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EngineConfig(model_dir=str(build(tmp_path, FAMILIES[0])), device="cpu", cpu_threads=1)
    monkeypatch.delattr("transformers.generation.GenerationMixin._prefill")
    with pytest.raises(ValueError, match=r"transformers 5\.\S+ does not compute .*_prefill"):
        load_core(config)


def test_states_take_room_in_the_cache() -> None:
    def room(max_tokens: int, state_tokens: int) -> Admission:
        return Admission(
            max_tokens=max_tokens,
            max_seqs=4,
            max_length=50,
            vocab_size=10,
            state_tokens=state_tokens,
        )

    sampling = SamplingParams(max_tokens=1000)
    asked = EngineRequest(request_id="r", prompt_token_ids=(1,) * 10, sampling=sampling)
    sequences = [Sequence(asked, index) for index in range(4)]
    small = room(160, 40)
    assert [small.take(sequence) for sequence in sequences] == [True, True, True, False]
    assert small.used_tokens == 3 * (10 + 1 + 40)
    alone = room(90, 40)
    assert alone.take(sequences[0])
    while len(sequences[0]) < 50:
        sequences[0].token_ids.append(1)
        assert alone.extend(sequences[0])
    assert alone.used_tokens == 90
    alone.give_back(sequences[0])
    assert alone.used_tokens == 0


@pytest.mark.parametrize(("tokens", "waits"), [(1, 0), (255, 0), (256, 3), (4000, 3)])
def test_every_layer_of_a_long_prompt_is_waited_for(tokens: int, waits: int) -> None:
    """A device computes beside the process: what is launched is no progress."""
    layers = torch.nn.ModuleList([torch.nn.Linear(8, 8) for _ in range(3)])
    waited: list[int] = []
    note_progress(layers, lambda: waited.append(progress()))
    before = progress()
    value = torch.zeros(1, tokens, 8)
    for layer in layers:
        value = layer(value)
    assert progress() == before + 3
    assert waited == [before + index for index in range(waits)]


@pytest.mark.parametrize("alone", [True, False])
def test_a_request_that_fails_alone_is_not_to_be_tried_again(alone: bool) -> None:
    error = _out_of_memory(alone=alone)
    assert (error.retry_after_s is None) is alone
    assert ("try again" in error.message) is not alone
