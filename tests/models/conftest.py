"""Tiny checkpoints, built once; the threads of the two cores are shared with others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from inference_service.engine.loader import load_model
from inference_service.models.vision_language import VisionLanguageModel
from tests.support.tiny_qwen_vl import build_checkpoint, reference_model


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """An untied checkpoint. Read-only: shared by all tests."""
    return build_checkpoint(tmp_path_factory.mktemp("untied"))


@pytest.fixture(scope="session")
def reference(checkpoint):
    """Transformers' model of it."""
    return reference_model(checkpoint)


@pytest.fixture
def model(checkpoint) -> VisionLanguageModel:
    """Our model of it, fresh: a test may change it."""
    return load_model(checkpoint, dtype=torch.float32, device=torch.device("cpu"))
