"""The kernels in the steps that are captured: what these give them is all that they need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inference_service.engine import assembly, loader
from inference_service.engine.core import EngineCore
from inference_service.engine_protocol.messages import EngineConfig
from inference_service.kernels.ops import REFERENCE, Ops
from tests.support.conversations import GREEDY, conversation, drain
from tests.support.tiny_qwen_vl import build_checkpoint, image


SAMPLED: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.1, "seed": 3},
    {"temperature": 0.7, "top_p": 0.9, "frequency_penalty": 0.5, "seed": 4},
]
"""Of each prompt."""


class Again:
    """What a capture is, without one: a replay runs the work again."""

    num_replays = 0

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        def replay() -> None:
            self.num_replays += 1
            work()

        return replay

    def settle(self) -> None:
        """Nothing is queued."""

    def trim(self) -> None:
        """Nothing is kept."""


@pytest.fixture
def interpreted(attention, heads, penalties, filters, choice) -> Ops:
    """Operations with interpreted kernels."""
    return replace(
        REFERENCE,
        rotate_and_write=heads.rotate_and_write,
        paged_attention=attention.paged_attention,
        scaled_logits=penalties.scaled_logits,
        lowest_kept=filters.lowest_kept,
        choose_tokens=choice.choose_tokens,
    )


@pytest.mark.full
def test_answers_with_interpreted_kernels_in_graphs(
    interpreted, slot_state, tmp_path: Path, monkeypatch
) -> None:
    """Greedy and sampled; the state of the slots is updated by kernels, too."""
    prompts = [conversation(["Hi"]), conversation([image(1, 2, 1), "?"]), conversation(["你好"])]
    directory = build_checkpoint(tmp_path, seed=4)
    config = EngineConfig(
        model_dir=str(directory),
        page_size=4,
        num_kv_pages=280,
        max_model_len=1100,  # several splits
        max_num_seqs=3,
        cpu_threads=1,
        device="cpu",
        dtype="float32",
    )
    answers = []
    for with_graphs in (False, True):
        if with_graphs:
            again = Again()
            ops = replace(
                interpreted,
                update_slots=slot_state.update_slots,
                record_tokens=slot_state.record_tokens,
            )
            monkeypatch.setattr(loader, "ops_for", lambda *_, ops=ops: ops)
            monkeypatch.setattr(assembly, "_capture_for", lambda *_, again=again: again)
        core = EngineCore(config)
        assert core._runner.graphs.sizes == ((1, 2, 3) if with_graphs else ())
        for index, prompt in enumerate(prompts):
            sampling = replace(GREEDY, max_tokens=3 + index, **SAMPLED[index])
            core.add(prompt.request(str(index), sampling), prompt.pixels)
        answers.append({name: answer.token_ids for name, answer in drain(core).items()})
    assert answers[0] == answers[1]
    assert again.num_replays == 3 + 4
