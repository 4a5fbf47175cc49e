"""The device under test, the sizes of a run, and how it is timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
import statistics
import time
from typing import Any

import torch

from benchmarks.random_model import random_model
from inference_service.engine.core import EngineCore
from inference_service.engine_protocol.messages import EngineConfig


CONFIGS = Path(__file__).parents[2] / "tests" / "golden" / "configs"
DEMO = Path(__file__).parents[2] / "inference_service" / "demo" / "model"


@dataclass(frozen=True, slots=True)
class Setting:
    """A run.

    Attributes:
        device: The device under test.
        tiny: Sizes for a rehearsal on a CPU: the demo model's shape in place of all others, short prompts.
    """

    device: torch.device
    tiny: bool

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of weights and activations."""
        return torch.float32 if self.device.type == "cpu" else torch.bfloat16

    @property
    def shapes(self) -> dict[str, Path]:
        """Directories with the configurations of the models under test, by name."""
        if self.tiny:
            return {"demo": DEMO}
        return {
            "2B": CONFIGS / "Qwen2-VL-2B-Instruct",
            "7B": CONFIGS / "Qwen2.5-VL-7B-Instruct",
            "3-VL-8B": CONFIGS / "Qwen3-VL-8B-Instruct",
        }

    def core(self, model_dir: Path, **changes: Any) -> EngineCore:
        """An engine with random weights of a shape; each request computes its whole prompt."""
        settings: dict[str, Any] = {
            "max_num_batched_tokens": 4096,
            "enable_prefix_caching": False,
        }
        return EngineCore(
            EngineConfig(
                model_dir=str(model_dir),
                device=str(self.device),
                dtype=str(self.dtype).removeprefix("torch."),
                **(settings | changes),
            ),
            load=random_model,
        )

    def wait(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], repeats: int = 5) -> float:
        """The median time of some work, after one run that does not count."""
        times = []
        for _ in range(repeats + 1):
            self.wait()
            begin = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - begin)
        return statistics.median(times[1:])


def release(setting: Setting) -> None:
    """Returns the memory of a deleted engine to the device."""
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()
