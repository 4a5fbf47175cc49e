"""Times the tokens of answers in progress beside a flood of prompts, of decisions and of images, in the engine alone.

    python benchmarks/beside.py inference_service/demo/model --slowdown 2 1000

For each value of `--max-decode-slowdown` (1000 = no bound) and each flood, prints how long a neighbour's tokens take,
how many times longer that is than without a flood, and how much of the flood is computed meanwhile.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
import itertools
from pathlib import Path
import random
import statistics
import sys
import time


# This file is run by its path, so that only its own folder is on sys.path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from inference_service.engine.core import EngineCore
from inference_service.engine_protocol.messages import (
    EngineConfig,
    EngineRequest,
    ImageSpan,
    Probe,
    SamplingParams,
)
from inference_service.families.registry import load_spec


ANSWERS = 2
LONG = 1000
_NUMBERS = itertools.count()
Make = Callable[[str], tuple[EngineRequest, bytes]]


@dataclass(frozen=True, slots=True)
class Floods:
    """Requests of the model in a folder."""

    model: Path
    side: int

    def _ids(self, count: int) -> tuple[int, ...]:
        return tuple(random.choices(range(256), k=count))

    def answer(self, name: str) -> tuple[EngineRequest, bytes]:
        """A neighbour's: a short prompt and a long answer."""
        sampling = SamplingParams(max_tokens=LONG, temperature=0.0, ignore_eos=True)
        return EngineRequest(request_id=name, prompt_token_ids=self._ids(8), sampling=sampling), b""

    def prompt(self, name: str) -> tuple[EngineRequest, bytes]:
        """A long prompt."""
        sampling = SamplingParams(max_tokens=1, temperature=0.0)
        return EngineRequest(
            request_id=name, prompt_token_ids=self._ids(LONG), sampling=sampling
        ), b""

    def decisions(self, name: str) -> tuple[EngineRequest, bytes]:
        """400 questions about one text."""
        probes = tuple(Probe(token_ids=self._ids(12), candidate_ids=(1, 2)) for _ in range(400))
        return EngineRequest(
            request_id=name,
            prompt_token_ids=self._ids(100),
            sampling=SamplingParams(max_tokens=1, temperature=0.0),
            probes=probes,
            num_choices=len(probes),
        ), b""

    def image(self, name: str) -> tuple[EngineRequest, bytes]:
        """An image that no other request has."""
        spec = load_spec(self.model)
        policy = spec.image_policy
        side = policy.square_side or self.side // policy.pixel_step * policy.pixel_step
        grid = (1, side // policy.patch_size, side // policy.patch_size)
        tokens = policy.tokens_of(grid)
        image_id = spec.image_token_id
        span = ImageSpan(
            key=name.encode().ljust(32),
            start=1,
            num_tokens=tokens,
            grid=grid,
            height=side,
            width=side,
            pixel_offset=0,
        )
        return EngineRequest(
            request_id=name,
            prompt_token_ids=(0, *[image_id] * tokens, 0),
            images=(span,),
            sampling=SamplingParams(max_tokens=1, temperature=0.0),
        ), bytes(3 * side * side)


def measure(
    core: EngineCore, floods: Floods, flood: Make | None, seconds: float
) -> tuple[list[float], float]:
    """Seconds between the tokens of an answer, and requests of the flood per second."""
    answers: dict[str, int] = {}  # unfinished choices
    flooding: dict[str, int] = {}
    last: dict[str, float] = {}
    gaps: list[float] = []
    done = 0
    begin = time.monotonic()
    while time.monotonic() < begin + seconds or len(gaps) < 2:
        for kind, wanted, make in ((answers, ANSWERS, floods.answer), (flooding, 6, flood)):
            while make is not None and len(kind) < wanted:
                request, pixels = make(f"request {next(_NUMBERS)}")
                core.add(request, pixels)
                kind[request.request_id] = request.num_choices
        outputs = core.step()
        now = time.monotonic()
        for output in outputs:
            name = output.request_id
            kind = answers if name in answers else flooding
            if kind is answers:
                if name in last:
                    gaps.append(now - last[name])
                last[name] = now
            if output.finish_reason is not None:
                kind[name] -= 1
                if not kind[name]:
                    del kind[name]
                    done += kind is flooding
    for name in (*answers, *flooding):
        core.abort(name)
    return gaps, done / (time.monotonic() - begin)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cpu-threads", type=int)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--side", type=int, default=448, help="side of an image in pixels")
    parser.add_argument("--slowdown", type=float, nargs="+", default=[2.0, 1000.0])
    options = parser.parse_args(argv)
    floods = Floods(options.model, options.side)
    kinds: dict[str, Make | None] = {
        "none": None,
        "prompts": floods.prompt,
        "decisions": floods.decisions,
        "images": floods.image,
    }
    print("| slowdown | flood | token ms | p99 ms | times longer | flood/s |")
    print("|---|---|---|---|---|---|")
    for slowdown in options.slowdown:
        core = EngineCore(
            EngineConfig(
                model_dir=str(options.model),
                device=options.device,
                cpu_threads=options.cpu_threads,
                max_decode_slowdown=slowdown,
                enable_prefix_caching=True,
            )
        )
        measure(core, floods, floods.prompt, 1.0)  # warm-up
        quiet = 0.0
        for name, flood in kinds.items():
            gaps, rate = measure(core, floods, flood, options.seconds)
            mean = statistics.mean(gaps)
            quiet = quiet or mean
            p99 = sorted(gaps)[round(len(gaps) * 0.99) - 1]
            print(
                f"| {slowdown:g} | {name} | {mean * 1e3:.1f} | {p99 * 1e3:.1f} | {mean / quiet:.1f} | {rate:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
