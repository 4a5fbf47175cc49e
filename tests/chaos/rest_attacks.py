"""What one caller of the REST API can try; every attack is bounded in count, bytes and time.

Run in a process of their own: `python -m tests.chaos.rest_attacks NAME PORT KEY SECONDS` prints one line of figures.
"""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
import contextlib
import io
import json
import os
import sys
import time
import zlib

import httpx
from PIL import Image

from qwenvl.descriptors import raise_descriptor_limit
from tests.chaos.attacks import MIB, MODEL, growing_image
from tests.chaos.late_attacks import LATE_ATTACKS, METRICS_ATTACKS
from tests.chaos.packed_attacks import PACKED_ATTACKS


CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
COMPLETIONS, DECISIONS = "/v1/completions", "/v1/decisions"


class Attack:
    """The target and the time of an attack."""

    def __init__(self, port: int, key: str, seconds: float) -> None:
        self.port = port
        self.seconds = seconds
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    async def once(self, path: str, bodies: Iterable[bytes], **headers: str) -> str:
        """Sends bodies at the same time, each once."""
        outcomes: Counter[str] = Counter()
        async with self.client() as client:
            await asyncio.gather(*(self._post(client, path, b, outcomes, headers) for b in bodies))
        return str(dict(outcomes))

    async def again(self, path: str, body: Callable[[int], bytes], callers: int) -> str:
        """Sends bodies again and again, whatever the answers are."""
        outcomes: Counter[str] = Counter()
        end = time.monotonic() + self.seconds

        async def hammer(number: int) -> None:
            async with self.client() as client:
                while time.monotonic() < end:
                    await self._post(client, path, body(number), outcomes, {})

        await asyncio.gather(*map(hammer, range(callers)))
        return str(dict(outcomes))

    async def gets(self, paths: list[str], callers: int) -> str:
        """Asks for pages again and again."""
        outcomes: Counter[str] = Counter()
        end = time.monotonic() + self.seconds

        async def hammer(number: int) -> None:
            async with self.client() as client:
                while time.monotonic() < end:
                    number += 1
                    answer = await client.get(paths[number % len(paths)])
                    outcomes[str(answer.status_code)] += 1

        await asyncio.gather(*map(hammer, range(callers)))
        return str(dict(outcomes))

    async def raw(self, connections: int, pieces: list[bytes], pause_s: float = 0.0) -> str:
        """Sends bytes over many connections, a piece after the other, and reads nothing."""
        sent: Counter[str] = Counter()
        await asyncio.gather(*(self._send(pieces, pause_s, sent) for _ in range(connections)))
        return f"{sent['bytes'] / MIB:.1f} MiB sent, {sent['closed']} of {connections} closed"

    async def leave(self, request: bytes, callers: int) -> str:
        """Asks again and again, and is gone before the answer."""
        sent: Counter[str] = Counter()
        end = time.monotonic() + self.seconds

        async def one() -> None:
            while time.monotonic() < end:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                    writer.write(self.with_key(request))
                    await writer.drain()
                    sent["requests"] += 1
                    await asyncio.sleep(0.05)
                    writer.transport.abort()

        await asyncio.gather(*(one() for _ in range(callers)))
        return f"left {sent['requests']} requests"

    def with_key(self, data: bytes) -> bytes:
        """Raw bytes with the key where they have `@KEY`."""
        head = "".join(f"{name}: {text}\r\n" for name, text in self._headers.items()).encode()
        return data.replace(b"@KEY\r\n", head)

    async def _send(self, pieces: list[bytes], pause_s: float, sent: Counter[str]) -> None:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(self.seconds):
                    for piece in pieces:
                        data = self.with_key(piece)
                        writer.write(data)
                        await writer.drain()
                        sent["bytes"] += len(data)
                        await asyncio.sleep(pause_s)
                    await asyncio.sleep(self.seconds)
            sent["closed"] += writer.is_closing()
            writer.transport.abort()

    async def _post(
        self,
        client: httpx.AsyncClient,
        path: str,
        body: bytes,
        outcomes: Counter[str],
        headers: dict[str, str],
    ) -> None:
        headers = {"content-type": "application/json"} | headers
        try:
            answer = await client.post(path, content=body, headers=headers)
            outcomes[str(answer.status_code)] += 1
        except httpx.HTTPError as error:
            outcomes[type(error).__name__] += 1

    def client(self) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=None)
        base = f"http://127.0.0.1:{self.port}"
        return httpx.AsyncClient(
            base_url=base,
            headers=self._headers,
            timeout=self.seconds + 60,
            limits=limits,
            verify=False,  # authorities would be loaded for every caller
        )


def chat(content: object, **fields: object) -> bytes:
    messages = [{"role": "user", "content": content}]
    return json.dumps({"model": MODEL, "max_tokens": 4, "messages": messages} | fields).encode()


def image(url: str) -> dict[str, object]:
    return {"type": "image_url", "image_url": {"url": url}}


def around(before: bytes, repeated: bytes, count: int, after: bytes) -> bytes:
    """A body with many values, without building them here."""
    return before + repeated * (count - 1) + repeated.rstrip(b",") + after


def parts(count: int) -> bytes:
    head = b'{"model":"%b","messages":[{"role":"user","content":[' % MODEL.encode()
    return around(head, b'{"type":"text","text":""},', count, b"]}]}")


def turns(count: int) -> bytes:
    head = b'{"model":"%b","messages":[' % MODEL.encode()
    return around(head, b'{"role":"user","content":"a"},', count, b"]}")


def tools(count: int, padding: int = 0) -> bytes:
    schema = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(20)}}
    function = {"name": "f", "description": "x" * padding, "parameters": schema}
    named = [
        {"type": "function", "function": function | {"name": f"f{number}"}}
        for number in range(count)
    ]
    return chat("hi", tools=named, tool_choice="required")


def schema_form(schema: object) -> dict[str, object]:
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    }


def nested(depth: int) -> dict[str, object]:
    schema: dict[str, object] = {"type": "string"}
    for _ in range(depth):
        schema = {
            "anyOf": [
                {"type": "object", "properties": {"a": schema}},
                {"type": "array", "items": schema},
            ]
        }
    return schema


def photograph(number: int, size: int) -> bytes:
    """Random bytes as an image, in base64."""
    data = base64.b64encode(os.urandom(size)).decode()
    return chat([image(f"data:image/png;base64,{data}"), {"type": "text", "text": str(number)}])


def grown(number: int) -> bytes:
    data = growing_image(number).messages[0].parts[0].image.data
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    return chat([image(url)] * 8)


def questions(count: int) -> bytes:
    asked = [{"type": "predicate", "instructions": f"{i} " + "y " * 20} for i in range(count)]
    return json.dumps({"model": MODEL, "input": "x " * 300, "questions": asked}).encode()


def response(text: str, image: str = "") -> bytes:
    content: list[dict[str, object]] = [{"type": "input_text", "text": text}]
    if image:
        content.append({"type": "input_image", "image_url": image})
    body = {"model": MODEL, "max_output_tokens": 4, "store": True}
    return json.dumps(body | {"input": [{"role": "user", "content": content}]}).encode()


def _head(path: str, *lines: str) -> bytes:
    lines = ("host: x", "content-type: application/json", *lines)
    return (
        f"POST {path} HTTP/1.1\r\n@KEY\r\n".encode()
        + "".join(f"{x}\r\n" for x in lines).encode()
        + b"\r\n"
    )


_CHUNKED = _head(CHAT, "transfer-encoding: chunked")
_TRAILERS = b"".join(b"x-%d: %b\r\n" % (i, b"y" * 4000) for i in range(250))
_REGEXES = ["(a|a)*b" * 50, "(x+x+)+y", "[a-z]{1,5000}{1,50}", "(.*a){30}", "\\p{L}{2000}" * 20]
_WORDS = "word " * 400_000


def noise_url() -> str:
    """A picture of 0.75 MiB that compresses to nothing less."""
    buffer = io.BytesIO()
    Image.frombytes("RGB", (512, 512), os.urandom(512 * 512 * 3)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _small_url() -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


_NOISE = noise_url()
_MANY = chat("Tell me everything.", stream=True, max_tokens=3000, n=4, ignore_eos=True)
_STREAM = chat("Tell me everything.", stream=True, max_tokens=200, ignore_eos=True)

ATTACKS: dict[str, Callable[[Attack], Awaitable[str]]] = {
    "uploads": lambda a: a.once(CHAT, [photograph(i, 29 * MIB) for i in range(12)]),
    "uploads of responses": lambda a: a.once(
        RESPONSES,
        [json.dumps({"model": MODEL, "store": True, "input": "x" * 7 * MIB}).encode()] * 12,
    ),
    "many parts": lambda a: a.once(CHAT, [parts(1_000_000)] * 4),
    "parts at the limit": lambda a: a.once(CHAT, [parts(49_000)] * 6),
    "turns at the limit": lambda a: a.once(CHAT, [turns(24_000)] * 6),
    "items at the limit": lambda a: a.once(
        RESPONSES,
        [
            around(
                b'{"model":"%b","input":[' % MODEL.encode(),
                b'{"role":"user","content":"a"},',
                24_000,
                b"]}",
            )
        ]
        * 6,
    ),
    "blocks at the limit": lambda a: a.once(
        MESSAGES,
        [
            around(
                b'{"model":"%b","max_tokens":4,"messages":[{"role":"user","content":['
                % MODEL.encode(),
                b'{"type":"text","text":""},',
                24_000,
                b"]}]}",
            )
        ]
        * 6,
    ),
    "percent signs": lambda a: a.once(
        CHAT, [chat([image("data:image/png;base64," + "%" * 43 * MIB)])] * 3
    ),
    "frames": lambda a: a.once(CHAT, [chat([{"type": "video", "video": ["x"] * 90_000}])] * 4),
    "token ids": lambda a: a.once(
        COMPLETIONS, [json.dumps({"model": MODEL, "prompt": [[1] * 990_000]}).encode()] * 4
    ),
    "long numbers": lambda a: a.once(CHAT, [chat("a").replace(b": 4", b": " + b"9" * 4 * MIB)] * 4),
    "deep": lambda a: a.once(CHAT, [b'{"a":' * 90_000 + b"1" + b"}" * 90_000] * 4),
    "unknown fields": lambda a: a.once(
        CHAT, [chat("a", **{f"x{i}": 1 for i in range(40_000)})] * 6
    ),
    "long chats": lambda a: a.once(CHAT, [chat("word " * 1_600_000)] * 6),
    "long completions": lambda a: a.once(
        COMPLETIONS, [json.dumps({"model": MODEL, "prompt": [_WORDS, "é" * 600_000]}).encode()] * 4
    ),
    "many tools": lambda a: a.once(CHAT, [tools(900)] * 6),
    "large tools": lambda a: a.once(CHAT, [tools(64, 100_000)] * 4),
    "regular expressions": lambda a: a.once(
        CHAT,
        [chat("a", guided_regex=r) for r in _REGEXES * 4]
        + [chat("a", structured_outputs={"regex": r}) for r in _REGEXES * 4],
    ),
    "schemas": lambda a: a.once(CHAT, [chat("a", **schema_form(nested(14)))] * 8),
    "wide schemas": lambda a: a.once(
        CHAT,
        [
            chat(
                "a",
                **schema_form(
                    {
                        "type": "object",
                        "properties": {f"p{i}": {"enum": list(range(20))} for i in range(2000)},
                    }
                ),
            )
        ]
        * 8,
    ),
    "large options": lambda a: a.once(
        CHAT,
        [
            chat("a", stop=["x"] * 1_000_000),
            chat("a", logit_bias={str(number): 1 for number in range(300_000)}),
            chat("a", guided_choice=["a" * 50] * 100_000),
            chat("a", guided_grammar="start: " + " | ".join(f"x{i}" for i in range(100_000))),
        ]
        * 2,
    ),
    "many small images": lambda a: a.once(CHAT, [chat([image(_small_url())] * 20_000)] * 6),
    "tokenizing": lambda a: a.again(
        "/tokenize", lambda _: json.dumps({"model": MODEL, "prompt": _WORDS}).encode(), 16
    ),
    "answers nobody waits for": lambda a: a.leave(
        _head(CHAT, f"content-length: {len(_MANY)}") + _MANY, 30
    ),
    "questions": lambda a: a.once(DECISIONS, [questions(400)] * 6),
    "images that grow": lambda a: a.once(CHAT, [grown(i) for i in range(40)]),
    "hammering": lambda a: a.again(CHAT, lambda i: chat(f"Question {i}?"), 100),
    "polite": lambda a: a.again(CHAT, lambda i: chat(f"Question {i}?"), 8),
    "hammering with images": lambda a: a.again(
        CHAT, lambda i: chat([image(_NOISE), {"type": "text", "text": str(i)}]), 60
    ),
    "invalid hammering": lambda a: a.again(CHAT, lambda _: b"{}", 50),
    "stored": lambda a: a.again(RESPONSES, lambda i: response(f"{i} " + "x " * 100), 16),
    "stored images": lambda a: a.again(RESPONSES, lambda i: response(str(i), image=_NOISE), 16),
    "many prompts": lambda a: a.once(
        COMPLETIONS, [json.dumps({"model": MODEL, "prompt": ["a"] * 16, "n": 4}).encode()] * 40
    ),
    "many counts": lambda a: a.again(
        f"{MESSAGES}/count_tokens", lambda _: chat([image(_NOISE)] * 8), 16
    ),
    "pages": lambda a: a.gets(
        ["/", "/app.js", "/vendor/purify.mjs", "/docs", "/openapi.json", "/nothing"], 50
    ),
    "metrics": lambda a: a.gets(["/metrics", "/v1/models", "/health", "/ready"], 50),
    "gzip": lambda a: a.once(
        CHAT, [zlib.compress(b" " * 43 * MIB, 9, 31)] * 8, **{"content-encoding": "gzip"}
    ),
    "slow heads": lambda a: a.raw(
        300, [b"POST " + CHAT.encode() + b" HTTP/1.1\r\n", *[b"x: y\r\n"] * 20], 0.2
    ),
    "unfinished bodies": lambda a: a.raw(
        60, [_head(CHAT, f"content-length: {40 * MIB}"), *[b"x" * MIB] * 20]
    ),
    "trailers": lambda a: a.raw(40, [_CHUNKED + b"0\r\n", *[_TRAILERS] * 4]),
    "chunk extensions": lambda a: a.raw(40, [_CHUNKED, *[b"1;" + b"x" * MIB] * 4]),
    "small chunks": lambda a: a.raw(20, [_CHUNKED, *[b"1\r\nx\r\n" * 100_000] * 4]),
    "pipelined": lambda a: a.raw(20, [(_head(CHAT, "content-length: 2") + b"{}") * 2000] * 2),
    "early answers": lambda a: a.raw(
        400,
        [
            b"GET /health HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n",
            *[b"x" * 2**16] * 100,
        ],
    ),
    "streams that nobody reads": lambda a: a.raw(
        100,
        [
            _head(CHAT, f"content-length: {len(_STREAM)}") + _STREAM,
        ],
    ),
    **{f"late {name}": attack for name, attack in LATE_ATTACKS.items()},
    **{f"packed {name}": attack for name, attack in PACKED_ATTACKS.items()},
}
ON_METRICS = {f"metrics {name}": attack for name, attack in METRICS_ATTACKS.items()}


async def launch(name: str, port: int, key: str, seconds: float) -> str:
    """Runs an attack in a process of its own and returns its figures."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.chaos.rest_attacks", name, str(port), key, str(seconds)),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(seconds + 180):
            output, _ = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    return output.decode().strip()


async def main() -> None:
    name, port, key, seconds = sys.argv[1:]
    os.nice(5)
    raise_descriptor_limit(8192)
    attack = (ATTACKS | ON_METRICS)[name]
    sys.stdout.write(await attack(Attack(int(port), key, float(seconds))))


if __name__ == "__main__":
    asyncio.run(main())
