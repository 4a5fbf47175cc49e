"""Counts the variants of GPU kernels that an engine launches, at start-up and while it serves; prints them as JSON.

    python tests/kernels/gpu/count_variants.py [--all-properties]

Triton compiles a kernel anew for every combination of constants, types and properties of its arguments (1, a multiple
of 16, an aligned pointer), which stalls an engine for seconds. Here an engine on a CPU serves a random schedule; each
operation asks Triton which variant of its kernel it would launch on a Hopper card, and then runs the torch reference.
`--all-properties` specialises on everything, as Triton does unless a kernel says otherwise: a check of this check.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
import json
from pathlib import Path
import random
import sys
from typing import Any


sys.path.insert(0, str(Path(__file__).parents[3]))

import torch

from benchmarks.random_model import random_model
from inference_service.engine import loader
from inference_service.engine.core import EngineCore
from inference_service.engine.memory import _run_largest_step
from inference_service.engine_protocol.messages import (
    EngineConfig,
    EngineRequest,
    ImageSpan,
    SamplingParams,
)
from inference_service.kernels.check_inputs import Inputs, Sizes
from inference_service.kernels.ops import REFERENCE, Ops, gpu_kernels
from inference_service.kernels.self_check import CASES
from tests.kernels.gpu.install_triton import FOLDER


MODEL = Path(__file__).parents[3] / "inference_service" / "demo" / "model"
SEQUENCES, STEPS = 8, 60


class Card:
    """The driver of a card that is not there, as far as Triton asks it before it compiles."""

    def get_current_target(self) -> Any:
        compiler = import_module("triton.backends.compiler")
        return compiler.GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0


def watch_launches(*, all_properties: bool) -> set[str]:
    """The variants that are launched from now on; nothing is compiled."""
    import_module("triton.runtime.driver").driver.set_active(Card())
    knobs = import_module("triton").knobs
    variants: set[str] = set()

    def hook(*, key: Any, fn: Any, **_: Any) -> bool:
        variants.add(f"{fn.name}: {key}")
        return True  # it is compiled elsewhere, so to say

    knobs.runtime.jit_cache_hook = hook
    if all_properties:
        jit = import_module("triton.runtime.jit")
        for name in ("attention", "choice", "filters", "heads", "penalties", "rows", "slot_state"):
            for kernel in vars(import_module(f"inference_service.kernels.gpu.{name}")).values():
                for param in (
                    getattr(kernel, "params", ()) if isinstance(kernel, jit.JITFunction) else ()
                ):
                    param.do_not_specialize = param.do_not_specialize_on_alignment = False
    return variants


def launched_too(run: Callable[..., object], reference: Callable[..., Any]) -> Callable[..., Any]:
    """The reference, after the kernel was launched."""

    @wraps(reference)
    def both(*args: Any, **kwargs: Any) -> Any:
        run(*args, **kwargs)
        return reference(*args, **kwargs)

    return both


def choose_all(devices: Sequence[torch.device], dtype: torch.dtype, sizes: Sizes) -> Ops:
    """As `choose_ops`, where all kernels equal their references."""
    chosen = {}
    for kernel in gpu_kernels():
        if kernel.op == "varlen_attention":  # of torch, on a GPU only
            continue
        run = launched_too(kernel.run, getattr(REFERENCE, kernel.op))
        CASES[kernel.op](run, Inputs(sizes, devices[0], dtype))
        chosen[kernel.op] = run
    return replace(REFERENCE, **chosen)


def request(number: int, chance: random.Random, vocab_size: int) -> tuple[EngineRequest, bytes]:
    """A request of any kind."""
    prompt = [chance.randrange(vocab_size - 100) for _ in range(chance.choice((1, 5, 16, 33, 200)))]
    images: tuple[ImageSpan, ...] = ()
    pixels = b""
    if chance.random() < 0.3:
        height, width = (32 * chance.randint(1, 5) for _ in range(2))
        grid = (1, height // 16, width // 16)
        tokens = grid[1] * grid[2] // 4
        key = number.to_bytes(32, "big")
        start = chance.randint(0, len(prompt))
        prompt[start:start] = [1242] * tokens
        images = (
            ImageSpan(
                key=key,
                start=start,
                num_tokens=tokens,
                grid=grid,
                height=height,
                width=width,
                pixel_offset=0,
            ),
        )
        pixels = bytes(height * width * 3)
    sampling = SamplingParams(
        max_tokens=chance.randint(1, 40),
        temperature=chance.choice((0.0, 0.7)),
        top_k=chance.choice((0, 20)),
        top_p=chance.choice((1.0, 0.8)),
        repetition_penalty=chance.choice((1.0, 1.05)),
        presence_penalty=chance.choice((0.0, 0.5)),
        logprobs=chance.choice((None, 2)),
        seed=number,
        ignore_eos=True,
    )
    return (
        EngineRequest(
            request_id=str(number), prompt_token_ids=tuple(prompt), images=images, sampling=sampling
        ),
        pixels,
    )


def serve(core: EngineCore, vocab_size: int) -> int:
    """Serves a random schedule; returns the number of requests."""
    chance = random.Random(0)
    count = 0
    for _ in range(STEPS):
        while chance.random() < 0.4:
            core.add(*request(count, chance, vocab_size))
            count += 1
        if count and chance.random() < 0.1:
            core.abort(str(chance.randrange(count)))
        core.step()
    return count


def main() -> None:
    """Starts an engine, serves, and prints the variants."""
    if not find_spec("triton"):
        sys.path.append(str(FOLDER))
    torch.set_num_threads(1)
    variants = watch_launches(all_properties="--all-properties" in sys.argv)
    setattr(loader, "choose_ops", choose_all)  # noqa: B010 - typed otherwise
    config = EngineConfig(
        model_dir=str(MODEL),
        device="cpu",
        dtype="float32",
        max_num_seqs=SEQUENCES,
        max_num_batched_tokens=256,
        encoder_cache_tokens=256,
        cpu_kv_cache_bytes=2**24,
        pipeline_depth=1,
        cpu_threads=1,
    )
    core = EngineCore(config, load=random_model)
    _run_largest_step(config, core._runner._model)  # as on a GPU, to size the cache
    at_start = set(variants)
    requests = serve(core, core._spec.decoder.vocab_size)
    new = sorted(variants - at_start)
    print(json.dumps({"at_start": sorted(at_start), "new": new, "requests": requests}))


if __name__ == "__main__":
    main()
