"""What ten times more callers than the service can answer cost its answers, when they are polite and when they hammer.

    python -m benchmarks.goodput --api rest --rounds 5

Starts the demo model with a short queue, and lets callers ask for short answers again and again, in turns: as many as
there is room for, then ten times as many that wait as `Retry-After` says, then as many that ask again at once, and
then as many without a valid key beside the first ones. Prints, as medians over the rounds, the tokens of complete
answers per second, per CPU second of the engine and per CPU second of all processes, each as a ratio to the first row,
and the CPU time of a refusal: what the front and the adapter took, less what so many answers take alone. The callers
run on this machine as well, so the ratios per second are lower than beside a network; those per CPU second are not.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Iterator, Sequence
import contextlib
from dataclasses import dataclass, field
import json
import os
from pathlib import Path
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Final, Protocol

import grpc

from benchmarks.backends import ROOT, free_address, wait_ready
from qwenvl.inference.v1 import chat_service_pb2 as chat_pb
from qwenvl.inference.v1 import chat_service_pb2_grpc as chat_grpc
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.inference.v1 import sampling_pb2 as sampling_pb
from qwenvl.rpc import read_error


QUEUE: Final = 8
TOKENS: Final = 32
TIMES: Final = 10
ENGINE: Final = "inference_service.engine.process"
TICKS: Final = os.sysconf("SC_CLK_TCK")
STRANGER: Final = "nobody"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request got: the tokens of an answer, or, if there are none, when to come again."""

    tokens: int = 0
    retry_after_s: float = 0.0


class Caller(Protocol):
    """A client with a connection of its own."""

    async def ask(self, key: str) -> Answer:
        """Asks once, with a key."""
        ...

    async def close(self) -> None:
        """Closes the connection."""
        ...


@dataclass(frozen=True, slots=True)
class Kind:
    """Who asks in a turn.

    Attributes:
        callers: Number of callers with keys.
        waits: Whether they wait as they are told.
        strangers: Number of callers without a valid key, who do not wait.
    """

    callers: int
    waits: bool = True
    strangers: int = 0


KINDS: Final = {
    "as many as fit": Kind(QUEUE),
    f"{TIMES} times as many, polite": Kind(TIMES * QUEUE),
    f"{TIMES} times as many, hammering": Kind(TIMES * QUEUE, waits=False),
    f"as many as fit, {TIMES} times as many strangers": Kind(QUEUE, strangers=TIMES * QUEUE),
}


@dataclass(slots=True)
class Seen:
    """What a kind of callers got in one turn, and what it took."""

    tokens: int = 0
    answers: int = 0
    refusals: int = 0
    seconds: float = 0.0
    cpu_s: dict[str, float] = field(default_factory=dict)

    def take(self, answer: Answer) -> None:
        """Counts an answer or a refusal."""
        self.tokens += answer.tokens
        self.answers += answer.tokens > 0
        self.refusals += answer.tokens == 0

    @property
    def engine_s(self) -> float:
        """CPU seconds of the engine."""
        return self.cpu_s[ENGINE]

    @property
    def others_s(self) -> float:
        """CPU seconds of the front, the adapter and their helpers."""
        return sum(self.cpu_s.values()) - self.engine_s


def cpu_by_module(root: int) -> dict[str, float]:
    """CPU seconds of a process and its descendants, by the module that each runs."""
    found: dict[str, float] = {}
    pending = [root]
    while pending:
        pid = pending.pop()
        with contextlib.suppress(OSError, ValueError):
            proc = Path(f"/proc/{pid}")
            command = proc.joinpath("cmdline").read_bytes().decode().split("\0")
            name = command[command.index("-m") + 1]
            ticks = proc.joinpath("stat").read_text().rpartition(")")[2].split()[11:13]
            found[name] = found.get(name, 0.0) + sum(map(int, ticks)) / TICKS
            for task in proc.joinpath("task").iterdir():
                pending += map(int, task.joinpath("children").read_text().split())
    return found


@dataclass(frozen=True, slots=True)
class Server:
    """The running product."""

    http: str
    grpc: str
    pid: int


@contextlib.contextmanager
def serving(keys: Sequence[str]) -> Iterator[Server]:
    """The product with the demo model and a short queue, until the end of the block."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "keys"
        file.write_text("\n".join(keys))
        http, target = free_address(), free_address()
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "protos")]),
            "QWENVL_LOG_LEVEL": "warning",
        }
        command = [sys.executable, "-P", "-m", "inference_service.cli", "serve"]
        command += [f"--http-address={http}", f"--grpc-address={target}", "--admin-address=none"]
        command += [f"--api-key-file={file}", "--cpu-threads=1"]
        command += [f"--max-queue={QUEUE}", f"--max-num-seqs={QUEUE // 2}"]
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, cwd=ROOT)
        try:
            wait_ready(f"http://{http}/ready", process)
            yield Server(http, target, process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


class Rest:
    """One caller of the REST API: a connection, and as little work as possible."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, key: str) -> Answer:
        """Asks once."""
        question = f"Question {random.randrange(10**6)}?"
        body = json.dumps(
            {
                "model": "qwen-vl-demo",
                "messages": [{"role": "user", "content": question}],
                "max_tokens": TOKENS,
                "ignore_eos": True,
            }
        ).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {self._address}\r\nauthorization: Bearer {key}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address.rsplit(":", 1))
        reader, writer = self._streams
        writer.write(head.encode() + body)
        answered = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in answered[1:] if line)
        content = await reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            await self.close()
        if answered[0].split()[1] == "200":
            return Answer(tokens=json.loads(content)["usage"]["completion_tokens"])
        return Answer(retry_after_s=float(headers.get("retry-after", "1")))

    async def close(self) -> None:
        """Closes the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class Grpc:
    """One caller of the gRPC API, over a connection of its own."""

    def __init__(self, address: str) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        self._channel = grpc.aio.insecure_channel(address, options=options)
        self._chat = chat_grpc.ChatServiceStub(self._channel)

    async def ask(self, key: str) -> Answer:
        """Asks once."""
        part = message_pb.Part(text=f"Question {random.randrange(10**6)}?")
        message = message_pb.Message(role=message_pb.ROLE_USER, parts=[part])
        spec = chat_pb.ChatCompletionSpec(
            messages=[message],
            sampling=sampling_pb.SamplingOptions(max_tokens=TOKENS, ignore_eos=True),
        )
        try:
            answer = await self._chat.CreateChatCompletion(
                chat_pb.CreateChatCompletionRequest(spec=spec),
                metadata=[("authorization", f"Bearer {key}")],
                timeout=120,
            )
        except grpc.aio.AioRpcError as error:
            return Answer(retry_after_s=read_error(error).retry_after_s or 1.0)
        return Answer(tokens=answer.usage.completion_tokens)

    async def close(self) -> None:
        """Closes the connection."""
        await self._channel.close()


async def one_turn(
    server: Server, make: Callable[[], Caller], kind: Kind, options: argparse.Namespace
) -> Seen:
    """Lets callers ask, and measures when all have begun."""
    seen = Seen()

    async def go_on(key: str, *, waits: bool, counts: bool) -> None:
        caller = make()
        try:
            while True:
                answer = await caller.ask(key)
                if counts or not answer.tokens:
                    seen.take(answer)
                await asyncio.sleep(answer.retry_after_s if waits else 0)
        finally:
            await caller.close()

    tasks = [
        asyncio.create_task(go_on(f"key-{n % options.keys}", waits=kind.waits, counts=True))
        for n in range(kind.callers)
    ]
    tasks += [
        asyncio.create_task(go_on(f"{STRANGER}-{n}", waits=False, counts=False))
        for n in range(kind.strangers)
    ]
    await asyncio.sleep(options.ramp_s)
    before, begin_s = cpu_by_module(server.pid), time.monotonic()
    seen.tokens = seen.answers = seen.refusals = 0
    await asyncio.sleep(options.seconds)
    after = cpu_by_module(server.pid)
    found = Seen(seen.tokens, seen.answers, seen.refusals, time.monotonic() - begin_s)
    found.cpu_s = {name: spent - before.get(name, 0.0) for name, spent in after.items()}
    for task in tasks:
        if task.done():
            await task  # it has failed
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(options.ramp_s / 2)
    return found


async def measure(server: Server, options: argparse.Namespace) -> dict[str, list[Seen]]:
    """All kinds in turns, round after round."""

    def make() -> Caller:
        return Rest(server.http) if options.api == "rest" else Grpc(server.grpc)

    found: dict[str, list[Seen]] = {name: [] for name in KINDS}
    for _ in range(options.rounds):
        for name, kind in KINDS.items():
            found[name].append(await one_turn(server, make, kind, options))
    return found


def row(name: str, turns: Sequence[Seen], alone: Sequence[Seen]) -> str:
    """The medians of one kind, and its ratios to the first kind in the same rounds."""

    def ratio(rate: Callable[[Seen], float]) -> float:
        return statistics.median(
            rate(one) / rate(base) for one, base in zip(turns, alone, strict=True)
        )

    def refusal_ms(one: Seen, base: Seen) -> float:
        answers_s = one.answers * base.others_s / base.answers
        return 1e3 * (one.others_s - answers_s) / one.refusals

    each = [
        refusal_ms(one, base)
        for one, base in zip(turns, alone, strict=True)
        if one.refusals and one is not base
    ]
    cells = (
        f"{statistics.median(one.tokens / one.seconds for one in turns):.0f}",
        f"{ratio(lambda one: one.tokens / one.seconds):.3f}",
        f"{ratio(lambda one: one.tokens / one.engine_s):.3f}",
        f"{ratio(lambda one: one.tokens / (one.engine_s + one.others_s)):.3f}",
        f"{statistics.median(one.refusals / one.seconds for one in turns):.1f}",
        f"{statistics.median(each):.2f}" if each else "",
    )
    return f"| {name} | {' | '.join(cells)} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--api", choices=("rest", "grpc"), default="rest")
    parser.add_argument("--keys", type=int, default=1, help="number of keys that the callers have")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="time of a turn")
    parser.add_argument(
        "--ramp-s", type=float, default=2.0, help="time before it that is not counted"
    )
    options = parser.parse_args(argv)
    with serving([f"key-{number}" for number in range(options.keys)]) as server:
        found = asyncio.run(measure(server, options))
    print(f"{options.api}, {options.keys} keys, {os.cpu_count()} cores")
    print(
        "| callers | tokens/s | ratio | per CPU s of the engine | per CPU s of all | refusals/s | ms each |"
    )
    print("|---|---|---|---|---|---|---|")
    alone = next(iter(found.values()))
    for name, turns in found.items():
        print(row(name, turns, alone), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
