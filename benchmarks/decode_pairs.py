"""Compares the decode steps of two checkouts of this project, in turn, under several sampling settings.

    python benchmarks/decode_pairs.py inference_service/demo/model --against ../before --batch 1 16
    python benchmarks/decode_pairs.py CONFIG_DIR --random --against ../before
    python benchmarks/decode_pairs.py CONFIG_DIR --random --against . --with quantization=int8

Each checkout computes in a process of its own, and only one at a time. Prints a markdown table: for each setting the
median over the rounds of the ratio of steps per second, this checkout's over the other's, with the lowest and the
highest. Steps are counted per second of processor time, as others may use the machine too; even so, only ratios mean
something.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
import os
from pathlib import Path
import statistics
import subprocess
import sys
import time
from typing import Any, Final

import msgspec


HERE: Final = Path(__file__).resolve().parents[1]
SETTINGS: Final[Mapping[str, Mapping[str, Any]]] = {
    "greedy": {"temperature": 0.0},
    "temperature 1": {"temperature": 1.0},
    "top_p 0.9": {"temperature": 1.0, "top_p": 0.9},
    "top_k 20, top_p 0.8": {"temperature": 0.7, "top_k": 20, "top_p": 0.8},
    "the same, repetition 1.05": {
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.8,
        "repetition_penalty": 1.05,
    },
    "frequency 0.2": {"temperature": 0.0, "frequency_penalty": 0.2},
}


class Worker:
    """A process with one checkout's engine."""

    def __init__(self, tree: Path, options: argparse.Namespace, fields: Sequence[str] = ()) -> None:
        command = [sys.executable, __file__, str(options.model), "--worker", str(tree)]
        command += ["--random"] if options.random else []
        command += ["--prompt", str(options.prompt), "--tokens", str(options.tokens)]
        command += [] if options.threads is None else ["--threads", str(options.threads)]
        command += [word for field in fields for word in ("--with", field)]
        environment = os.environ | {"PYTHONPATH": f"{tree}:{tree / 'protos'}"}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=tree,
        )

    def steps_per_second(self, batch: int, setting: str) -> float:
        """Decodes one batch."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(batch, setting, sep="|", file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the comparison, or one side of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--against", type=Path, help="the other checkout")
    parser.add_argument("--random", action="store_true", help="random weights")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--prompt", type=int, default=256, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="torch threads of each engine")
    parser.add_argument(
        "--with",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="fields",
        help="a field of EngineConfig that has this value in this checkout only",
    )
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.model = options.model.resolve()
    if options.worker:
        _serve(options)
        return
    ours = Worker(HERE, options, options.fields)
    other = Worker(options.against.resolve(), options)
    print("| batch | setting | ratio | lowest | highest |\n|---|---|---|---|---|")
    for batch in options.batch:
        for setting in SETTINGS:
            ratios = [
                ours.steps_per_second(batch, setting) / other.steps_per_second(batch, setting)
                for _ in range(options.rounds)
            ]
            figures = (statistics.median(ratios), min(ratios), max(ratios))
            print(f"| {batch} | {setting} |", *(f"{figure:.2f} |" for figure in figures))
    ours.close()
    other.close()


def _serve(options: argparse.Namespace) -> None:
    """Decodes what is asked for on standard input."""
    # Only now is it known whose modules these are.
    sys.path.insert(0, str(options.worker))
    from benchmarks.random_model import random_model  # noqa: PLC0415
    from inference_service.engine.core import EngineCore  # noqa: PLC0415
    from inference_service.engine.loader import load_model  # noqa: PLC0415
    from inference_service.engine_protocol.messages import EngineConfig  # noqa: PLC0415

    fields = {
        "model_dir": str(options.model),
        "device": "cpu",
        "max_num_seqs": 64,
        "max_num_batched_tokens": 4096,
        "enable_prefix_caching": False,
        "cpu_threads": options.threads,
        **dict(field.split("=", 1) for field in options.fields),
    }
    config = msgspec.convert(fields, EngineConfig, strict=False)
    core = EngineCore(config, load=random_model if options.random else load_model)
    for count, line in enumerate(sys.stdin):
        batch, setting = line.rstrip("\n").split("|")
        rate = _decode(core, count, int(batch), SETTINGS[setting], options)
        print(rate, flush=True)


def _decode(
    core: Any, count: int, batch: int, setting: Mapping[str, Any], options: argparse.Namespace
) -> float:
    from inference_service.engine_protocol.messages import EngineRequest, SamplingParams  # noqa: PLC0415

    for index in range(batch):
        sampling = SamplingParams(max_tokens=options.tokens, seed=index, **setting)
        prompt = tuple((7 * place + index) % 250 for place in range(options.prompt))
        request = EngineRequest(
            request_id=f"{count}-{index}", prompt_token_ids=prompt, sampling=sampling
        )
        core.add(request, b"")
    started: set[str] = set()
    while len(started) < batch:
        started |= {output.request_id for output in core.step() if output.token_ids}
    begin, steps = time.process_time(), 0
    while core.has_work:
        core.step()
        steps += 1
    return steps / (time.process_time() - begin)


if __name__ == "__main__":
    main()
