"""What one caller of the REST API can try with stored responses, renderings, tokens, forms and log probabilities."""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from collections.abc import Awaitable, Callable
import contextlib
import itertools
import json
import os
import time
from typing import TYPE_CHECKING, Any
import zlib

import httpx


if TYPE_CHECKING:
    from tests.chaos.rest_attacks import Attack


MODEL = "qwen-vl-demo"
CHAT, RESPONSES, COMPLETIONS = "/v1/chat/completions", "/v1/responses", "/v1/completions"
_NUMBERS = itertools.count()
_BUILD_S = 30.0


def body(**fields: object) -> bytes:
    return json.dumps({"model": MODEL} | fields).encode()


def chat(text: str, **fields: object) -> bytes:
    return body(**{"max_tokens": 4, "messages": [{"role": "user", "content": text}]} | fields)


def blob(size: int) -> str:
    """Reasoning that unpacks to so many bytes."""
    packed = zlib.compress(b"reasoning\n" + b"a" * size, 9)
    return "qwenvl1." + base64.urlsafe_b64encode(packed).decode()


def packed(count: int, size: int) -> bytes:
    thoughts = [{"type": "reasoning", "summary": [], "encrypted_content": blob(size)}] * count
    return body(max_output_tokens=4, input=[*thoughts, {"role": "user", "content": "?"}])


def pictures(count: int, size: int) -> list[dict[str, Any]]:
    """Contents that are no images, which only the adapter would have to keep."""
    data = base64.b64encode(os.urandom(size)).decode()
    url = f"data:image/png;base64,{data}"
    return [{"type": "input_image", "image_url": url} for _ in range(count)]


async def created(client: httpx.AsyncClient, content: object, **fields: object) -> str:
    """The id of a stored response."""
    asked = body(
        input=[{"role": "user", "content": content}], max_output_tokens=4, store=True, **fields
    )
    answer = await client.post(
        RESPONSES, content=asked, headers={"content-type": "application/json"}
    )
    return str(answer.json().get("id", "resp_none"))


async def unread(attack: Attack, connections: int) -> str:
    """Asks for large pages of input items, and reads nothing of them."""
    from tests.chaos.rest_attacks import noise_url

    async with attack.client() as client:
        content = [{"type": "input_image", "image_url": noise_url()} for _ in range(8)]
        response_id = await created(client, content)
    head = f"GET {RESPONSES}/{response_id}/input_items HTTP/1.1\r\nhost: x\r\n@KEY\r\n\r\n"
    return f"{response_id[:6]} {await attack.raw(connections, [head.encode()])}"


async def looks(attack: Attack, path: str, callers: int, content: object) -> str:
    """Looks at one stored response again and again."""
    async with attack.client() as client:
        response_id = await created(client, content)
    return await attack.gets([f"{RESPONSES}/{response_id}{path}"], callers)


async def each(
    attack: Attack, callers: int, one: Callable[[httpx.AsyncClient], Awaitable[str]]
) -> str:
    """Does something again and again."""
    outcomes: Counter[str] = Counter()
    end = time.monotonic() + attack.seconds

    async def hammer() -> None:
        async with attack.client() as client:
            while time.monotonic() < end:
                try:
                    outcomes[await one(client)] += 1
                except (httpx.HTTPError, ValueError) as error:
                    outcomes[type(error).__name__] += 1

    await asyncio.gather(*(hammer() for _ in range(callers)))
    return str(dict(outcomes))


async def creates_and_deletes(client: httpx.AsyncClient) -> str:
    response_id = await created(client, "a")
    return str((await client.delete(f"{RESPONSES}/{response_id}")).status_code)


def conversations() -> Callable[[httpx.AsyncClient], Awaitable[str]]:
    """Each caller goes on with a conversation of its own."""
    last: dict[int, str] = {}

    async def one(client: httpx.AsyncClient) -> str:
        known = last.get(id(client))
        fields = {"previous_response_id": known} if known else {}
        response_id = await created(client, "and?", **fields)
        last[id(client)] = response_id
        if response_id == "resp_none":
            last.pop(id(client))
        return "refused" if response_id == "resp_none" else "ok"

    return one


async def refers(client: httpx.AsyncClient) -> str:
    items = [{"type": "item_reference", "id": f"msg_{number}"} for number in range(512)]
    asked = body(input=[{"role": "user", "content": "?"}, *items])
    answer = await client.post(
        RESPONSES, content=asked, headers={"content-type": "application/json"}
    )
    return str(answer.status_code)


def unique_schema(_: int) -> bytes:
    """A form that nobody has asked for before, and that is costly to compile."""
    number = next(_NUMBERS)
    schema = {
        "type": "object",
        "properties": {
            f"p{number}_{index}": {
                "type": "array",
                "items": {"type": "string", "pattern": f"^[a-z]{{1,{20 + index}}}$"},
            }
            for index in range(60)
        },
    }
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}
    return chat("a", response_format=form)


def chains(deep: int, wide: int) -> Callable[[Attack], Awaitable[str]]:
    """Goes on with a conversation of many responses, each of which has many items."""
    thought = {"type": "reasoning", "summary": []}
    asked = [*[thought] * wide, {"role": "user", "content": "and?"}]

    async def attack(attack: Attack) -> str:
        async with attack.client() as client:
            last = await posted(client, RESPONSES, body(input="a", store=True, max_output_tokens=2))
            end = time.monotonic() + _BUILD_S
            for _ in range(deep):
                if time.monotonic() > end:
                    break
                more = body(
                    input=asked, previous_response_id=last, max_output_tokens=2, truncation="auto"
                )
                last = await posted(client, RESPONSES, more) or last
        go_on = body(input="?", previous_response_id=last, max_output_tokens=1, truncation="auto")
        return f"{last[:5]} {await attack.again(RESPONSES, lambda _: go_on, 16)}"

    return attack


async def posted(client: httpx.AsyncClient, path: str, content: bytes) -> str:
    """The id of a response; empty = it was refused."""
    answer = await client.post(path, content=content, headers={"content-type": "application/json"})
    return str(answer.json().get("id") or "")


async def truncated(client: httpx.AsyncClient) -> str:
    """A conversation that is far too long, of which the oldest exchanges are left out again and again."""
    turns = [{"role": role, "content": "word " * 40} for role in ("user", "assistant")] * 3000
    asked = body(input=[*turns, {"role": "user", "content": "?"}], truncation="auto")
    answer = await client.post(
        RESPONSES, content=asked, headers={"content-type": "application/json"}
    )
    return str(answer.status_code)


def scrapes(callers: int) -> Callable[[Attack], Awaitable[str]]:
    """Asks for metrics again and again, each time over a new connection."""

    async def once(attack: Attack) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", attack.port)
        try:
            writer.write(attack.with_key(_SCRAPE))
            return (await reader.read(12)).decode()[9:]
        finally:
            writer.transport.abort()

    async def attack(attack: Attack) -> str:
        outcomes: Counter[str] = Counter()
        end = time.monotonic() + attack.seconds

        async def hammer() -> None:
            while time.monotonic() < end:
                with contextlib.suppress(OSError, TimeoutError):
                    async with asyncio.timeout(attack.seconds):
                        outcomes[await once(attack)] += 1

        await asyncio.gather(*(hammer() for _ in range(callers)))
        return str(dict(outcomes))

    return attack


async def odd_series(client: httpx.AsyncClient) -> str:
    """Methods, paths and statuses of the caller's choice, which must not become series."""
    number = next(_NUMBERS)
    method = (f"M{number}", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")[number % 6]
    path = (f"/{number}", f"/v1/models/{number}", f"/v1/responses/{number}/input_items")[number % 3]
    return str((await client.request(method, path)).status_code)


async def traced(client: httpx.AsyncClient) -> str:
    headers = {
        "traceparent": f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-01",
        "tracestate": "a=b," * 2000,
        "x-request-id": "r" * 8000,
        "content-type": "application/json",
    }
    with contextlib.suppress(httpx.HTTPError):
        return str((await client.post(CHAT, content=b"{}", headers=headers)).status_code)
    return "cut"


_TEXT = "word é " * 600
_SCRAPE = b"GET /metrics HTTP/1.1\r\nhost: x\r\n@KEY\r\n\r\n"
_LONG = "word é " * 2**15
_UNFINISHED = (
    f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 900\r\n@KEY\r\n\r\n".encode()
    + b'{"model'
)
_PROBABLE = {"logprobs": True, "top_logprobs": 20, "n": 4, "ignore_eos": True, "max_tokens": 300}

LATE_ATTACKS: dict[str, Callable[[Attack], Awaitable[str]]] = {
    "packed reasoning": lambda a: a.once(RESPONSES, [packed(400, 8 * 2**20)] * 8),
    "a little packed reasoning": lambda a: a.again(
        RESPONSES, lambda _: packed(1, 2 * 2**20 - 100), 32
    ),
    "pages that nobody reads": lambda a: unread(a, 100),
    "pages": lambda a: looks(a, "/input_items", 32, "a " * 500),
    "replays": lambda a: looks(a, "?stream=true", 32, "a " * 500),
    "deleting": lambda a: each(a, 32, creates_and_deletes),
    "conversations": lambda a: each(a, 16, conversations()),
    "references": lambda a: each(a, 16, refers),
    "what is no image": lambda a: a.again(
        RESPONSES,
        lambda _: body(input=[{"role": "user", "content": pictures(8, 2**18)}], store=True),
        16,
    ),
    "renderings": lambda a: a.again(f"{CHAT}/render", lambda i: chat(f"{i} {_TEXT}"), 32),
    "tokens of chats": lambda a: a.again(
        "/tokenize",
        lambda _: body(messages=[{"role": "user", "content": _TEXT}], return_token_strs=True),
        32,
    ),
    "detokenizing": lambda a: a.again(
        "/detokenize", lambda _: body(tokens=[[300] * 15_000] * 64), 16
    ),
    "forms": lambda a: a.again(CHAT, unique_schema, 16),
    "log probabilities": lambda a: a.once(CHAT, [chat("Go on.", **_PROBABLE)] * 30),
    "log probabilities of prompts": lambda a: a.again(
        COMPLETIONS,
        lambda i: body(prompt=f"{i} " + "word " * 400, prompt_logprobs=20, max_tokens=1),
        24,
    ),
    "compacting": lambda a: a.again(
        f"{RESPONSES}/compact", lambda _: body(input="word " * 300), 24
    ),
    "names of traces": lambda a: each(a, 48, traced),
    "wide chains": chains(20, 20_000),
    "deep chains": chains(100, 1),
    "truncation": lambda a: each(a, 16, truncated),
    "items that are stored": lambda a: a.again(
        RESPONSES,
        lambda _: body(
            input=[
                *[{"type": "reasoning", "summary": []}] * 20_000,
                {"role": "user", "content": "?"},
            ],
            store=True,
            max_output_tokens=1,
        ),
        8,
    ),
    "counts at the limit": lambda a: a.again(
        f"{RESPONSES}/input_tokens", lambda i: body(input=f"{i} " + "word é " * 2**15), 16
    ),
    "tokens at the limit": lambda a: a.again(
        "/tokenize", lambda i: body(prompt=f"{i} {_LONG}", return_token_strs=True), 16
    ),
    "renderings at the limit": lambda a: a.again(
        f"{CHAT}/render", lambda i: chat(f"{i} {_LONG}", return_token_strs=True), 16
    ),
    "many connections": lambda a: a.raw(6000, [_UNFINISHED]),
    "scrapes of the API": scrapes(50),
    "pipelined metrics": lambda a: a.raw(20, [_SCRAPE * 500]),
    "odd series": lambda a: each(a, 32, odd_series),
}

METRICS_ATTACKS: dict[str, Callable[[Attack], Awaitable[str]]] = {
    "scrapes": scrapes(100),
    "silent": lambda a: a.raw(300, [b""]),
    "slow heads": lambda a: a.raw(100, [b"GET /metrics HTTP/1.1\r\n", *[b"x: y\r\n"] * 40], 0.1),
    "huge heads": lambda a: a.raw(100, [b"GET /metrics HTTP/1.1\r\nx: " + b"x" * 2**22]),
    "many headers": lambda a: a.raw(100, [b"GET /metrics HTTP/1.1\r\n" + b"x: y\r\n" * 2**18]),
    "pipelined": lambda a: a.raw(100, [b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n" * 2**12]),
    "TLS": lambda a: a.raw(200, [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"]),
}
"""Against the addresses of metrics, where nobody needs a key."""
