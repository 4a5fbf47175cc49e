"""Steps of the engine core with models of real shapes and random weights: decode, first token, profile."""

from __future__ import annotations

from collections import defaultdict
from itertools import takewhile
import statistics
import time
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.card.setting import Setting, release
from inference_service.engine.core import EngineCore
from inference_service.engine.graphs import DecodeGraphs
from inference_service.engine_protocol.messages import EngineRequest, ImageSpan, SamplingParams
from inference_service.families.footprint import graph_sizes
from inference_service.families.registry import load_spec


GREEDY: dict[str, Any] = {"temperature": 0.0}
PENALISED: dict[str, Any] = {
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 20,
    "repetition_penalty": 1.05,
}


def decode(setting: Setting) -> dict[str, Any]:
    """Milliseconds of a decode step with and without graphs, and the bytes that it has to read.

    Both compute the same answers but for rounding: `same_tokens` is the share of equal tokens before the first
    difference. Graphs that were left out at the start of an engine are an error, as its log tells.
    """
    prompt, tokens = (32, 8) if setting.tiny else (1024, 32)
    rows, missing = [], []
    for name, model_dir in setting.shapes.items():
        begin = time.perf_counter()
        core = setting.core(model_dir, max_num_seqs=64)
        start_s = time.perf_counter() - begin
        graphs, none = core._runner.graphs, DecodeGraphs({})  # noqa: SLF001
        wanted = graph_sizes(64) if setting.device.type == "cuda" else ()
        missing += [f"{name}: {size}" for size in wanted if size not in graphs.sizes]
        _decode_steps(core, 1, 16, 4, GREEDY)
        for batch in (1, 4) if setting.tiny else (1, 8, 64):
            for sampling, label in ((GREEDY, "greedy"), (PENALISED, "penalised")):
                row = {"model": name, "start_s": start_s, "batch": batch, "sampling": label}
                answers = []
                for chosen, kind in ((graphs, "graphs"), (none, "eager")):
                    core._runner.graphs = chosen  # noqa: SLF001
                    times, told = _decode_steps(core, batch, prompt, tokens, sampling)
                    answers.append(told)
                    read = core.ready.weight_bytes + batch * prompt * core.ready.kv_bytes_per_token
                    row[kind] = _figures(times, batch, read)
                rows.append(row | {"same_tokens": _same(*answers)})
        del core, graphs
        release(setting)
    return {"prompt": prompt, "rows": rows, "wrong": missing}


def _figures(times: list[float], batch: int, read: int) -> dict[str, float]:
    """The figures of steps that read so many bytes each."""
    step_s = statistics.median(times)
    return {
        "step_ms": step_s * 1e3,
        "slowest_ms": max(times) * 1e3,
        "tokens_per_s": batch / step_s,
        # Of the read rate of the same run, when compared with phase `rates`.
        "bytes_per_s": read / step_s,
    }


def _same(one: dict[str, list[int]], other: dict[str, list[int]]) -> float:
    """The share of tokens of all answers before the first one that differs."""
    pairs = [list(zip(one[name], other[name], strict=True)) for name in one]
    same = sum(len(list(takewhile(lambda pair: pair[0] == pair[1], answer))) for answer in pairs)
    return same / sum(map(len, pairs))


LADDER: dict[str, dict[str, Any]] = {
    "references": {"gpu_kernels": "off", "cuda_graphs": "off", "pipeline_depth": 0},
    "kernels": {"cuda_graphs": "off", "pipeline_depth": 0},
    "graphs": {"pipeline_depth": 0},
    "one ahead": {"pipeline_depth": 1},
}
"""What each part of the engine brings: each has what those above it have."""


def ladder(setting: Setting) -> dict[str, Any]:
    """Milliseconds of a decode step of the smallest shape with ever more of the engine, and the tokens that differ."""
    prompt, tokens = (32, 8) if setting.tiny else (1024, 32)
    name, model_dir = next(iter(setting.shapes.items()))
    rows: list[dict[str, Any]] = []
    first: dict[int, dict[str, list[int]]] = {}
    for rung, settings in LADDER.items():
        core = setting.core(model_dir, max_num_seqs=64, **settings)
        _decode_steps(core, 1, 16, 4, GREEDY)
        for batch in (1, 4) if setting.tiny else (1, 8, 64):
            times, answers = _decode_steps(core, batch, prompt, tokens, GREEDY)
            read = core.ready.weight_bytes + batch * prompt * core.ready.kv_bytes_per_token
            same = _same(first.setdefault(batch, answers), answers)
            place = {"model": name, "rung": rung, "batch": batch, "same_tokens": same}
            rows.append(place | _figures(times, batch, read))
        del core
        release(setting)
    return {"prompt": prompt, "rows": rows}


def first_token(setting: Setting) -> dict[str, Any]:
    """Milliseconds from a request to its first token: with an image, and as many tokens of text instead.

    Of those with an image, `encode_ms` are the pixels' way to the device and the vision tower, `rest_ms` all else.
    """
    name, model_dir = list(setting.shapes.items())[-1]
    core = setting.core(model_dir, max_num_seqs=4, encoder_cache_tokens=4096)
    rows = []
    for side in (64, 128) if setting.tiny else (448, 1024):
        image = _image(model_dir, side)
        with_image = [_first_token(core, image, seed) for seed in range(6)][1:]
        as_text = [_first_token(core, None, seed, image.num_tokens + 32) for seed in range(6)][1:]
        total_s, encode_s = (statistics.median(times) for times in zip(*with_image, strict=True))
        rows.append(
            {
                "model": name,
                "side": side,
                "image_tokens": image.num_tokens,
                "first_token_ms": total_s * 1e3,
                "encode_ms": encode_s * 1e3,
                "rest_ms": (total_s - encode_s) * 1e3,
                "text_only_ms": statistics.median(total for total, _ in as_text) * 1e3,
            }
        )
    return {"rows": rows}


def profiled(setting: Setting) -> dict[str, Any]:
    """Where 20 decode steps spend their time, and how long the card is idle between kernels."""
    name, model_dir = list(setting.shapes.items())[-1 if setting.tiny else 1]
    core = setting.core(model_dir, max_num_seqs=64)
    result: dict[str, Any] = {"model": name}
    activities = [ProfilerActivity.CPU]
    if setting.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    for batch in (1, 4) if setting.tiny else (1, 64):
        _add(core, batch, 32 if setting.tiny else 1024, 40, GREEDY)
        while len(core.step()) < batch:
            pass
        setting.wait()
        with profile(activities=activities) as trace:
            begin = time.perf_counter()
            for _ in range(20):
                core.step()
            setting.wait()
            wall_s = time.perf_counter() - begin
        averages = trace.key_averages()
        busy_s = sum(row.self_device_time_total for row in averages) / 1e6
        result[f"batch {batch}"] = {
            "wall_ms": wall_s / 20 * 1e3,
            "device_idle": 1 - busy_s / wall_s if setting.device.type == "cuda" else None,
            "table": averages.table(sort_by="self_cpu_time_total", row_limit=25).splitlines(),
            "device_table": averages.table(
                sort_by="self_device_time_total", row_limit=25
            ).splitlines()
            if setting.device.type == "cuda"
            else None,
        }
        _finish(core)
    return result


def _add(core: EngineCore, batch: int, prompt: int, tokens: int, sampling: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(batch)
    for index in range(batch):
        ids = torch.randint(0, 256, (prompt,), generator=generator).tolist()
        core.add(
            EngineRequest(
                request_id=str(index),
                prompt_token_ids=tuple(ids),
                sampling=SamplingParams(max_tokens=tokens, **sampling),
            ),
            b"",
        )


def _decode_steps(
    core: EngineCore, batch: int, prompt: int, tokens: int, sampling: dict[str, Any]
) -> tuple[list[float], dict[str, list[int]]]:
    """Seconds of every step in which all sequences decode, and the answers.

    A step ends when its tokens are on the host.
    """
    _add(core, batch, prompt, tokens, sampling)
    times = []
    answers: dict[str, list[int]] = defaultdict(list)
    while core.has_work:
        begin = time.perf_counter()
        outputs = core.step()
        if len(outputs) == batch:
            times.append(time.perf_counter() - begin)
        for output in outputs:
            answers[output.request_id] += output.token_ids
    return times[1:], answers  # the first one may have computed the end of a prompt


def _finish(core: EngineCore) -> None:
    while core.has_work:
        core.step()


def _image(model_dir: Any, side: int) -> ImageSpan:
    """A square image after 16 tokens of text."""
    policy = load_spec(model_dir).image_policy
    step = policy.pixel_step
    side = max(step, side // step * step)
    grid = (1, side // policy.patch_size, side // policy.patch_size)
    return ImageSpan(
        key=b"",
        start=16,
        num_tokens=policy.tokens_of(grid),
        grid=grid,
        height=side,
        width=side,
        pixel_offset=0,
    )


def _first_token(
    core: EngineCore, image: ImageSpan | None, seed: int, num_text_tokens: int = 32
) -> tuple[float, float]:
    """Seconds until it is told, and how many of them encoded the image."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 256, (num_text_tokens,), generator=generator).tolist()
    images: tuple[ImageSpan, ...] = ()
    pixels = b""
    if image is not None:
        ids[16:16] = [0] * image.num_tokens
        key = seed.to_bytes(2, "big") + image.height.to_bytes(30, "big")
        images = (
            ImageSpan(
                key=key,
                start=16,
                num_tokens=image.num_tokens,
                grid=image.grid,
                height=image.height,
                width=image.width,
                pixel_offset=0,
            ),
        )
        pixels = bytes([seed]) * image.pixel_bytes
    request = EngineRequest(
        request_id=str(seed),
        prompt_token_ids=tuple(ids),
        images=images,
        sampling=SamplingParams(max_tokens=1, **GREEDY),
    )
    begin = time.perf_counter()
    core.add(request, pixels)
    while not (told := [output for output in core.step() if output.token_ids]):
        pass
    timings = told[0].timings
    return time.perf_counter() - begin, timings.encode_s if timings else 0.0
