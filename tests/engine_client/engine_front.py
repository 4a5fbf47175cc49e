"""Helpers of these tests, and, run as a program, a front to be killed: it prints the engine's pid and waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path
import sys
from typing import Any

from inference_service.engine_client.client import EngineClient
from inference_service.engine_client.interface import Engine
from inference_service.engine_protocol.messages import (
    ChoiceOutput,
    EngineConfig,
    EngineFailure,
    EngineRequest,
    FinishReason,
    ImageSpan,
    SamplingParams,
)


FAKE_ENGINE = (sys.executable, str(Path(__file__).with_name("fake_engine.py")))
BOUND_S = 60.0


def fake_client(model_dir: str = "fake", **options: Any) -> EngineClient:
    """A client of the fake engine that does not wait long between two lives."""
    values: dict[str, Any] = {
        "start_timeout_s": 60.0,
        "stall_timeout_s": 60.0,
        "pixel_budget_bytes": 1000,
        "restart_delay_s": 0.01,
        "command": FAKE_ENGINE,
    }
    return EngineClient(EngineConfig(model_dir=model_dir), **(values | options))


def request_of(
    request_id: str,
    *prompt: int,
    max_tokens: int = 5,
    images: Sequence[bytes] = (),
    num_choices: int = 1,
) -> EngineRequest:
    """A request; every image is one row of RGB pixels."""
    spans, offset = [], 0
    for index, image in enumerate(images):
        spans.append(
            ImageSpan(
                key=bytes([index]) * 32,
                start=index,
                num_tokens=1,
                grid=(1, 1, 1),
                height=1,
                width=len(image) // 3,
                pixel_offset=offset,
            )
        )
        offset += len(image)
    return EngineRequest(
        request_id=request_id,
        prompt_token_ids=prompt or (1, 2, 3),
        sampling=SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True),
        images=tuple(spans),
        num_choices=num_choices,
    )


async def collect(
    engine: Engine, request: EngineRequest, images: Sequence[bytes] = ()
) -> list[ChoiceOutput]:
    """All outputs of a request."""
    async with asyncio.timeout(BOUND_S), aclosing(engine.generate(request, [*images])) as outputs:
        return [output async for output in outputs]


def tokens_of(outputs: Sequence[ChoiceOutput], choice: int = 0) -> list[int]:
    """The tokens of one choice."""
    return [token for o in outputs if o.choice_index == choice for token in o.token_ids]


def failure_of(output: ChoiceOutput) -> EngineFailure:
    assert output.failure is not None
    return output.failure


def finishes_of(outputs: Sequence[ChoiceOutput]) -> list[tuple[int, FinishReason]]:
    """Every finish with its choice, in order of choices."""
    ends = [(o.choice_index, o.finish_reason) for o in outputs if o.finish_reason is not None]
    return sorted(ends, key=lambda end: end[0])


async def until(condition: Callable[[], bool]) -> None:
    """Waits for something to become true."""
    async with asyncio.timeout(BOUND_S):
        while not condition():  # noqa: ASYNC110 - nobody could set an event
            await asyncio.sleep(0.01)


def is_running(pid: int) -> bool:
    """Whether a process exists and is more than an entry that nobody has waited for."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def mapped_pixels(pid: int) -> int:
    """How many requests' pixels a process has mapped."""
    return Path(f"/proc/{pid}/maps").read_text().count("memfd:pixels")


def holds_pixels(pid: int) -> bool:
    """Whether a process has pixels mapped."""
    return mapped_pixels(pid) > 0


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def _wait_to_be_killed() -> None:
    engine = fake_client()
    await engine.start()
    sys.stdout.write(f"{engine.pid}\n")
    sys.stdout.flush()
    await collect(engine, request_of("endless", *map(int, sys.argv[1:]), max_tokens=10**9))


if __name__ == "__main__":
    asyncio.run(_wait_to_be_killed())
