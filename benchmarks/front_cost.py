"""What the front costs the engine: steps per second with 64 streams through gRPC, against the same steps without it.

    python benchmarks/front_cost.py --streams 64 --step-ms 5 --rounds 3

The engine process is the real one, around a core whose steps only take time, as if a GPU computed them. So the ratio
shows what the engine's loop loses to its own sending, to the front and to the clients, all of which run on this
machine. Prints a markdown table: in each round, steps per second alone and served, and their ratio.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator, Sequence
import json
import os
from pathlib import Path
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, Final


ROOT: Final = Path(__file__).resolve().parents[1]
# This file is run by its path, so that only its own folder is on sys.path.
sys.path[:0] = [str(ROOT), str(ROOT / "protos")]

import grpc  # noqa: E402 - found by the path above

from inference_service.demo import MODEL_DIR  # noqa: E402
from inference_service.engine.loop import EngineLoop  # noqa: E402
from inference_service.engine_protocol import wire  # noqa: E402
from inference_service.engine_protocol.messages import (  # noqa: E402
    ChoiceOutput,
    EngineConfig,
    EngineReady,
    EngineRequest,
    EngineStats,
    FinishReason,
    SamplingParams,
)
from qwenvl import AsyncClient  # noqa: E402
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb  # noqa: E402
from qwenvl.inference.v1 import message_pb2 as message_pb  # noqa: E402
from qwenvl.inference.v1 import sampling_pb2 as sampling_pb  # noqa: E402


TIMEOUT_S: Final = 300.0


class TimedCore:
    """What `EngineCore` is, where a step only takes time; every choice gets a token in each."""

    def __init__(self, step_s: float, streams: int, report: Path | None = None) -> None:
        """Begins without requests.

        Args:
            step_s: Time of a step.
            streams: Number of requests whose steps are counted.
            report: Where the rate is written when they have ended.
        """
        self._step_s = step_s
        self._streams = streams
        self._report = report
        self._running: dict[str, list[int]] = {}  # request id -> tokens so far, tokens wanted
        self._times: list[float] = []

    @property
    def ready(self) -> EngineReady:
        """A model of the demo model's vocabulary."""
        return EngineReady(
            device="none",
            dtype="float32",
            max_model_len=2**16,
            kv_pages_total=2**16,
            kv_page_tokens=16,
            kv_bytes_per_token=1,
            weight_bytes=0,
            parts=(("language", 1),),
        )

    @property
    def stats(self) -> EngineStats:
        """Counters."""
        return EngineStats(running=len(self._running), kv_pages_total=2**16)

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self._running)

    @property
    def rate(self) -> float:
        """Steps per second while all streams ran."""
        return (len(self._times) - 1) / (self._times[-1] - self._times[0])

    def add(self, request: EngineRequest, pixels: memoryview | bytes) -> None:
        """Begins an answer."""
        del pixels
        self._running[request.request_id] = [0, request.sampling.max_tokens]

    def abort(self, request_id: str, choice_index: int | None = None) -> None:
        """Ends an answer."""
        del choice_index
        self._running.pop(request_id, None)

    def step(self) -> list[ChoiceOutput]:
        """Takes its time, and gives every answer a token."""
        if len(self._running) == self._streams:
            self._times.append(time.perf_counter())
        time.sleep(self._step_s)
        outputs = [self._next(name, *counts) for name, counts in [*self._running.items()]]
        if self._report is not None and len(self._times) > 1 and not self._running:
            self._report.write_text(json.dumps(self.rate))
        return outputs

    def _next(self, request_id: str, told: int, wanted: int) -> ChoiceOutput:
        is_last = told + 1 == wanted
        if is_last:
            del self._running[request_id]
        else:
            self._running[request_id][0] += 1
        return ChoiceOutput(
            request_id=request_id,
            choice_index=0,
            token_ids=(97 - 33 + told % 26,),
            num_cached_tokens=None if told else 0,
            finish_reason=FinishReason.LENGTH if is_last else None,
        )


class NoCommands:
    """An inbox that stays empty."""

    def take(self, timeout_s: float) -> Iterator[tuple[wire.Command, memoryview]]:
        """Yields nothing."""
        del timeout_s
        return iter(())


def alone(options: argparse.Namespace) -> float:
    """Steps per second of the engine's loop, where nobody takes its outputs."""
    core = TimedCore(options.step_ms / 1e3, options.streams)
    for index in range(options.streams):
        sampling = SamplingParams(max_tokens=options.tokens)
        request = EngineRequest(
            request_id=str(index), prompt_token_ids=(1, 2, 3), sampling=sampling
        )
        core.add(request, b"")
    loop = EngineLoop(core, NoCommands(), lambda _: None)
    while core.has_work:
        loop.turn()
    return core.rate


def served(options: argparse.Namespace) -> float:
    """Steps per second with a front that serves every stream to a client."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        report = Path(folder) / "rate.json"
        free.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{free.getsockname()[1]}"
        free.close()
        roles = [str(options.step_ms / 1e3), str(options.streams), str(report)]
        front = subprocess.Popen([sys.executable, __file__, "--front", target, *roles])
        try:
            asyncio.run(_use(target, options))
        finally:
            front.terminate()
            front.wait()
        return float(json.loads(report.read_text()))


async def _use(target: str, options: argparse.Namespace) -> None:
    """Reads all streams to their ends."""
    async with AsyncClient(target) as client:
        await client.wait_until_ready(TIMEOUT_S)
    async with grpc.aio.insecure_channel(target) as channel:
        stream = channel.unary_stream(
            "/qwenvl.inference.v1.ChatService/StreamChatCompletion",
            request_serializer=chat_pb.StreamChatCompletionRequest.SerializeToString,
            response_deserializer=chat_pb.StreamChatCompletionResponse.FromString,
        )
        async with asyncio.timeout(TIMEOUT_S):
            await asyncio.gather(*(_read(stream, options.tokens) for _ in range(options.streams)))


async def _read(stream: Any, tokens: int) -> None:
    spec = chat_pb.ChatCompletionSpec(
        messages=[
            message_pb.Message(
                role=message_pb.ROLE_USER, parts=[message_pb.Part(text="Tell me a long story.")]
            )
        ],
        sampling=sampling_pb.SamplingOptions(max_tokens=tokens, ignore_eos=True),
    )
    async for _ in stream(chat_pb.StreamChatCompletionRequest(spec=spec), timeout=TIMEOUT_S):
        pass


def run_front(target: str, roles: Sequence[str]) -> int:
    """The service with the timed engine."""
    from inference_service.backend.local import LocalBackend  # noqa: PLC0415
    from inference_service.backend.served_model import ServedModel  # noqa: PLC0415
    from inference_service.engine_client.client import EngineClient  # noqa: PLC0415
    from inference_service.grpc_api.server import serve  # noqa: PLC0415
    from inference_service.settings import ServiceSettings  # noqa: PLC0415

    settings = ServiceSettings.load({"grpc_address": target}, {})
    model = ServedModel.load(MODEL_DIR, ("timed",), history_window=settings.history_window)

    async def run() -> int:
        engine = EngineClient(
            EngineConfig(model_dir=str(MODEL_DIR)),
            start_timeout_s=TIMEOUT_S,
            stall_timeout_s=TIMEOUT_S,
            pixel_budget_bytes=2**20,
            command=(sys.executable, __file__, "--engine", *roles),
        )
        return await serve(settings, LocalBackend(settings, model, engine))

    return asyncio.run(run())


def run_engine(step_s: str, streams: str, report: str, *argv: str) -> int:
    """The engine process."""
    from inference_service.engine import process  # noqa: PLC0415

    core = TimedCore(float(step_s), int(streams), Path(report))
    return process.main(argv, core_factory=lambda _: core)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark, or one of its processes."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["--front"]:
        return run_front(arguments[1], arguments[2:])
    if arguments[:1] == ["--engine"]:
        return run_engine(*arguments[1:])
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--step-ms", type=float, default=5.0, help="time of a step without a front")
    parser.add_argument("--tokens", type=int, default=1000, help="tokens of each answer")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    print(f"{options.streams} streams, steps of {options.step_ms} ms, {os.cpu_count()} cores")
    print("| round | alone steps/s | served steps/s | ratio |\n|---|---|---|---|")
    ratios = []
    for number in range(1, options.rounds + 1):
        without, with_front = alone(options), served(options)
        ratios.append(with_front / without)
        print(f"| {number} | {without:.1f} | {with_front:.1f} | {ratios[-1]:.3f} |", flush=True)
    print(f"median ratio {statistics.median(ratios):.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
