"""What a model keeps in its modules belongs to one sequence: any order of steps gives what each sequence has alone."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from itertools import zip_longest
import random
from typing import Any

import pytest
import torch
import transformers

from inference_service.transformers_engine.generation import Generation, ModuleState


_library: Any = transformers
MAX_LENGTH = 64


class Keeping(torch.nn.Module):
    """Keeps everything that a module of the library may keep."""

    frequencies: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.longest = 4
        self.offsets: torch.Tensor | None = None
        self.sizes: tuple[int, ...] = ()
        self.kernel: Callable[[], int] | None = None
        self.is_set_up = False
        self.register_buffer("frequencies", torch.ones(2), persistent=False)

    def forward(self, value: int) -> list[Any]:
        """What it keeps, of all values so far; the longest grows only."""
        if not self.is_set_up:
            assert self.kernel is None, "hooks of a module, say, would be there twice"
            self.kernel, self.is_set_up = (lambda: 1), True
        if value > self.longest:
            self.longest = value
            self.register_buffer("frequencies", torch.full((2,), float(value)), persistent=False)
        self.offsets = torch.tensor(value) if self.offsets is None else self.offsets + value
        self.sizes = (*self.sizes, value)
        self.first = getattr(self, "first", value)
        return [self.longest, int(self.offsets), self.sizes, self.first, self.frequencies.tolist()]


def test_every_sequence_begins_with_a_new_model() -> None:
    drawn = random.Random(1)
    sequences = [[drawn.randrange(1, 12) for _ in range(9)] for _ in range(5)]
    alone = []
    for values in sequences:
        module = Keeping()
        alone.append([module(value) for value in values])
    module = Keeping()
    initial = dict(vars(module))
    state = ModuleState(module)
    owns: list[dict[Any, Any]] = [{} for _ in sequences]
    turns = [index for index, values in enumerate(sequences) for _ in values]
    drawn.shuffle(turns)
    found: list[list[Any]] = [[] for _ in sequences]
    for index in turns:
        with state.of(owns[index]):
            found[index].append(module(sequences[index][len(found[index])]))
        changed = {n for n, v in vars(module).items() if v is not initial.get(n, module)}
        assert changed == {"kernel", "is_set_up"}, "what is set up once stays, and nothing else"
    assert found == alone


def test_a_step_that_fails_leaves_nothing_behind() -> None:
    class Failing(Keeping):
        def forward(self, value: int) -> list[Any]:
            super().forward(value)
            raise RuntimeError("a defect")

    module = Failing()
    once = {"kernel", "is_set_up"}
    initial = {name: value for name, value in vars(module).items() if name not in once}
    with pytest.raises(RuntimeError), ModuleState(module).of({}):
        module(9)
    assert {name: vars(module)[name] for name in vars(module) if name not in once} == initial
    assert module.frequencies.tolist() == [1.0, 1.0]


@pytest.fixture(scope="module", params=["dynamic", "longrope"])
def model(request: pytest.FixtureRequest) -> Any:
    """A language model whose frequencies depend on the longest length so far; 16 tokens are its original length."""
    rope = {"rope_type": request.param, "rope_theta": 100.0, "factor": 4.0}
    if request.param == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [1.5, 2.0, 3.0, 4.0]}
        rope["original_max_position_embeddings"] = 16
    config = _library.LlamaConfig(
        vocab_size=90,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16,
        rope_parameters=rope,
        attn_implementation="eager",
    )
    torch.manual_seed(3)
    model = _library.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3)
    return model


def test_frequencies_that_depend_on_the_length(model: Any) -> None:
    """Long and short sequences take turns, some that grow over the original length while others are being answered."""
    prompts = [list(range(1, 13)), [7, 8, 9], [(5 * i) % 90 for i in range(30)], [40, 41]]
    lengths = [20, 9, 6, 24]
    wanted = []
    for prompt, length in zip(prompts, lengths, strict=True):
        fresh = deepcopy(model)
        with torch.inference_mode():
            made = fresh.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                max_new_tokens=length,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                output_logits=True,
                return_dict_in_generate=True,
            )
        wanted.append(torch.cat(made.logits))
    state = ModuleState(model)
    running = [steps(model, state, prompt, n) for prompt, n in zip(prompts, lengths, strict=True)]
    found = list(zip_longest(*running))
    for index, logits in enumerate(wanted):
        mine = torch.cat([step[index] for step in found if step[index] is not None])
        assert torch.allclose(mine, logits, atol=1e-5), f"sequence {index}"


def steps(model: Any, state: ModuleState, prompt: list[int], length: int) -> Any:
    ids = torch.tensor([prompt])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    generation = Generation(model, state, inputs, max_length=MAX_LENGTH, all_logits=False)
    chosen = None
    for _ in range(length):
        logits = generation.logits(chosen)
        chosen = int(logits.argmax())
        yield logits
