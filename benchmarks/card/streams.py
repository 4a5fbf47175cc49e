"""What the process border costs: streams through an engine process against the same steps of the core alone."""

from __future__ import annotations

import asyncio
from dataclasses import replace
import time
from typing import Any

from benchmarks.card.setting import DEMO, Setting
from inference_service.engine.core import EngineCore
from inference_service.engine_client.client import EngineClient
from inference_service.engine_protocol.messages import EngineConfig, EngineRequest, SamplingParams


def measure(setting: Setting) -> dict[str, Any]:
    """Tokens per second of the demo model at 64 streams: it is small, so that the border shows."""
    streams, tokens = (8, 16) if setting.tiny else (64, 256)
    config = EngineConfig(
        model_dir=str(DEMO),
        device=str(setting.device),
        dtype=str(setting.dtype).removeprefix("torch."),
        max_num_seqs=streams,
        enable_prefix_caching=False,
    )
    requests = [
        EngineRequest(
            request_id=str(index),
            prompt_token_ids=tuple(range(1, 33)),
            sampling=SamplingParams(max_tokens=tokens, temperature=1.0, seed=index),
        )
        for index in range(streams)
    ]
    alone = _core_alone(config, requests)
    through = asyncio.run(_through_the_process(config, requests))
    return {
        "streams": streams,
        "core_tokens_per_s": alone,
        "process_tokens_per_s": through,
        "ratio": through / alone,
    }


def _core_alone(config: EngineConfig, requests: list[EngineRequest]) -> float:
    """Tokens per second of the second run; the first one warms up."""
    core = EngineCore(config)
    begin, count = 0.0, 0
    for batch in (requests[:1], requests):
        begin, count = time.perf_counter(), 0
        for request in batch:
            core.add(request, b"")
        while core.has_work:
            count += sum(len(output.token_ids) for output in core.step())
    return count / (time.perf_counter() - begin)


async def _through_the_process(config: EngineConfig, requests: list[EngineRequest]) -> float:
    client = EngineClient(config, start_timeout_s=120, stall_timeout_s=60, pixel_budget_bytes=2**20)
    await client.start()
    try:
        await _drain(client, replace(requests[0], request_id="warm-up"))
        begin = time.perf_counter()
        counts = await asyncio.gather(*(_drain(client, request) for request in requests))
        return sum(counts) / (time.perf_counter() - begin)
    finally:
        await client.close()


async def _drain(client: Any, request: EngineRequest) -> int:
    return sum([len(output.token_ids) async for output in client.generate(request, [])])
