"""Times the engine core alone: prefill and decode steps at several batch sizes, without gRPC, text or sockets.

    python benchmarks/engine.py inference_service/demo/model --device cpu --batch 1 4 16
    python benchmarks/engine.py CONFIG_DIR --random --device cuda --dtype bfloat16 --batch 1 8 64

`--random` fills a model of the shapes in CONFIG_DIR/config.json with random weights on the device, so that none are
downloaded or read. Prints a markdown table: seconds until all prompts of a batch have their first token,
milliseconds per decode step (median), and tokens per second.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import json
from pathlib import Path
import statistics
import sys
import time

import torch


# This file is run by its path, so that only its own folder is on sys.path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.random_model import random_model
from inference_service.engine.core import EngineCore
from inference_service.engine.loader import load_model
from inference_service.engine_protocol.messages import EngineConfig, EngineRequest, SamplingParams


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument(
        "--random", action="store_true", help="random weights of the config's shapes"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--prompt", type=int, default=256, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args(argv)
    core = EngineCore(
        EngineConfig(
            model_dir=str(options.model),
            device=options.device,
            dtype=options.dtype,
            max_num_seqs=max(options.batch),
            max_num_batched_tokens=4096,
            enable_prefix_caching=False,
        ),
        load=random_model if options.random else load_model,
    )
    _measure(core, options.batch[0], options.prompt, 4, seed=0)  # warm-up
    rows = [
        _measure(core, batch, options.prompt, options.tokens, seed=batch) for batch in options.batch
    ]
    print(
        f"{core.ready.device}, {core.ready.dtype}, torch {torch.__version__}, prompts of {options.prompt}"
    )
    print("| batch | first tokens s | decode step ms | tokens/s |\n|---|---|---|---|")
    for row in rows:
        print("| {batch} | {first_s:.3f} | {step_ms:.2f} | {tokens_s:.0f} |".format(**row))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def _measure(
    core: EngineCore, batch: int, prompt: int, tokens: int, *, seed: int
) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    for index in range(batch):
        ids = torch.randint(0, 256, (prompt,), generator=generator).tolist()
        core.add(
            EngineRequest(
                request_id=f"{seed}-{index}",
                prompt_token_ids=tuple(ids),
                sampling=SamplingParams(max_tokens=tokens, temperature=0.0),
            ),
            b"",
        )
    begin = time.perf_counter()
    started: set[str] = set()
    while len(started) < batch:
        started |= {output.request_id for output in core.step() if output.token_ids}
    first = time.perf_counter() - begin
    steps = []
    while core.has_work:
        begin = time.perf_counter()
        core.step()
        steps.append(time.perf_counter() - begin)
    step = statistics.median(steps)
    return {"batch": batch, "first_s": first, "step_ms": step * 1e3, "tokens_s": batch / step}


if __name__ == "__main__":
    main()
