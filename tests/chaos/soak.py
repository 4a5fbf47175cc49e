"""Serves the product under an ordinary mixture of requests for minutes, and tells what grows.

`python -m tests.chaos.soak [MINUTES]` prints the counts of requests, the errors, and for each process the slopes of its
memory, descriptors and threads over the second half, per minute. Run by hand, before a release for ten minutes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
import json
from pathlib import Path
import random
import sys
import tempfile
import time

import httpx
import numpy as np

from tests.chaos.product import IMAGE_URL, Client, Product, product
from tests.chaos.service import MIB, MODEL, rss_bytes


CALLERS = 4
SAMPLE_S = 2.0
MINUTES = 10.0


@dataclass
class Soak:
    """Counts and samples.

    Attributes:
        samples: Seconds, then memory in MiB, descriptors and threads, of each process.
    """

    product: Product
    counts: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[tuple[float, float, int, int]]] = field(default_factory=dict)

    async def ask(self, key: str, seed: int, end: float) -> None:
        """One caller: chats, streams that are read or left, responses that are stored, and mistakes."""
        choose = random.Random(seed)
        base, headers = f"http://127.0.0.1:{self.product.http}", {"authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=base, headers=headers, timeout=60) as client:
            while time.monotonic() < end:
                kind = choose.choice(("chat", "image", "stream", "leave", "response", "mistake"))
                try:
                    await self._one(client, kind, choose)
                except httpx.HTTPError as error:
                    self.counts[f"error {type(error).__name__}"] += 1

    async def _one(self, client: httpx.AsyncClient, kind: str, choose: random.Random) -> None:
        text = f"Question {choose.random()}?"
        picture = {"type": "image_url", "image_url": {"url": IMAGE_URL}}
        content = [picture, {"type": "text", "text": text}] if kind == "image" else text
        message = {"role": "user", "content": content}
        body: dict[str, object] = {"model": MODEL, "messages": [message]}
        body |= {"max_tokens": choose.randint(1, 24)}
        if kind == "response":
            body = {"model": MODEL, "input": text, "max_output_tokens": 16}
            answer = await client.post("/v1/responses", json=body | {"store": True})
        elif kind == "mistake":
            answer = await client.post("/v1/chat/completions", json=body | {"temperature": 99})
        elif kind in ("stream", "leave"):
            await self._stream(client, body | {"stream": True, "max_tokens": 64}, kind)
            return
        else:
            answer = await client.post("/v1/chat/completions", json=body)
        self.counts[f"{kind} {answer.status_code}"] += 1

    async def _stream(self, client: httpx.AsyncClient, body: object, kind: str) -> None:
        async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            lines = 0
            async for line in answer.aiter_lines():
                lines += line.startswith("data: ")
                if kind == "leave" and lines > 2:
                    break
                if line.startswith("data: {") and "error" in json.loads(line[6:]):
                    self.counts["error in a stream"] += 1
        self.counts[f"{kind} {answer.status_code}"] += 1

    async def sample(self) -> None:
        """Notes what each process holds, again and again."""
        begin = time.monotonic()
        while True:
            for name, pid in self.product.pids.items():
                entry = (time.monotonic() - begin, *_held_by(pid))
                self.samples.setdefault(name, []).append(entry)
            await asyncio.sleep(SAMPLE_S)

    def report(self) -> str:
        """The figures in lines."""
        lines = [f"{sum(self.counts.values())} requests: {dict(sorted(self.counts.items()))}"]
        for name, samples in sorted(self.samples.items()):
            late = np.array(samples[len(samples) // 2 :])
            slopes = [np.polyfit(late[:, 0] / 60, late[:, column], 1)[0] for column in (1, 2, 3)]
            lines.append(
                f"{name}: {late[-1, 1]:.0f} MiB {slopes[0]:+.2f} a minute,"
                f" {late[-1, 2]:.0f} descriptors {slopes[1]:+.2f}, {late[-1, 3]:.0f} threads {slopes[2]:+.2f}"
            )
        return "\n".join(lines)


def _held_by(pid: int) -> tuple[float, int, int]:
    """Memory in MiB, descriptors and threads of a process."""
    directory = Path(f"/proc/{pid}")
    threads = int((directory / "status").read_text().partition("Threads:")[2].split()[0])
    return rss_bytes(pid) / MIB, len(list((directory / "fd").iterdir())), threads


async def main(minutes: float) -> str:
    """Runs the soak and returns its report."""
    keys = tuple(f"caller-{number}" for number in range(CALLERS))
    with tempfile.TemporaryDirectory() as directory:
        async with product(Path(directory), keys=keys) as found:
            soak = Soak(found)
            await Client(found, keys[0]).beside(None, 2)
            sampling = asyncio.ensure_future(soak.sample())
            end = time.monotonic() + minutes * 60
            await asyncio.gather(*(soak.ask(key, number, end) for number, key in enumerate(keys)))
            sampling.cancel()
            await asyncio.gather(sampling, return_exceptions=True)
            return soak.report()


if __name__ == "__main__":
    minutes = float(sys.argv[1]) if sys.argv[1:] else MINUTES
    sys.stdout.write(asyncio.run(main(minutes)) + "\n")
