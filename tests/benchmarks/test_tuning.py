"""The grid of block sizes, over the references; tests/kernels/gpu has the kernels."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from benchmarks.card import tuning
from benchmarks.card.setting import Setting
from inference_service.kernels import attention, skinny_linear


SETTING = Setting(torch.device("cpu"), tiny=True)


def stand_in(
    run: Callable[..., Any], constants: tuple[tuning.Constants, ...]
) -> tuple[ModuleType, list[dict[str, int]]]:
    """A module with the reference in place of a kernel, and the constants at its calls."""
    names = {name for changes in constants for name in changes}
    module: Any = SimpleNamespace(**dict.fromkeys(names, 0))
    seen: list[dict[str, int]] = []

    def called(*arguments: Any) -> Any:
        seen.append({name: getattr(module, name) for name in names if getattr(module, name)})
        return run(*arguments)

    setattr(module, run.__name__, called)
    return module, seen


def test_every_setting_is_tried_checked_and_taken_back() -> None:
    linear, seen = stand_in(skinny_linear.skinny_linear, tuple(tuning.LINEAR))
    paged, also_seen = stand_in(attention.paged_attention, tuple(tuning.ATTENTION))
    found = tuning.tune(SETTING, linear, paged)
    assert found["wrong"] == []
    assert all(constants in seen for constants in tuning.LINEAR)
    assert all(constants in also_seen for constants in tuning.ATTENTION)
    assert not any(getattr(linear, name) for changes in tuning.LINEAR for name in changes)
    for shape, best in found["best"].items():
        assert len(best) == tuning.BEST
        times = [row["us"] for row in found["rows"] if row["shape"] == shape]
        assert best[0]["us"] == min(times)


def test_what_fails_or_is_wrong_costs_only_itself() -> None:
    linear, _ = stand_in(skinny_linear.skinny_linear, tuple(tuning.LINEAR))
    right = vars(linear)["skinny_linear"]

    def sometimes(*arguments: Any) -> Any:
        if vars(linear)["_WARPS"]:
            raise RuntimeError("out of resource: shared memory")
        return right(*arguments) + 1.0 * bool(vars(linear)["_STAGES"] == 3)

    vars(linear)["skinny_linear"] = sometimes
    paged, _ = stand_in(attention.paged_attention, tuple(tuning.ATTENTION))
    wrong = tuning.tune(SETTING, linear, paged)["wrong"]
    assert {tuple(row["constants"].items()) for row in wrong} == {
        (("_WARPS", 8),),
        (("_STAGES", 3),),
    }
    assert "out of resource" in wrong[0]["cause"]
