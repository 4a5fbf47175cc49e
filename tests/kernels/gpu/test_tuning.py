"""The kernels compute the same with all block sizes that are tried on a card."""

from __future__ import annotations

import pytest
import torch

from benchmarks.card import tuning
from benchmarks.card.setting import Setting


@pytest.mark.full
def test_kernels_run_with_every_setting(skinny_linear, attention):
    found = tuning.tune(Setting(torch.device("cpu"), tiny=True), skinny_linear, attention)
    assert found["wrong"] == []
