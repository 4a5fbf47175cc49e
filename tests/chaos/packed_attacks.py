"""What one caller of the REST API can try with bodies that are small on the wire: some 60 KB become 43 MiB.

And with small requests for answers that are large.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
import json
from typing import TYPE_CHECKING
import zlib


if TYPE_CHECKING:
    from tests.chaos.rest_attacks import Attack


MIB = 2**20
MODEL = "qwen-vl-demo"
CHAT, RESPONSES, COMPLETIONS = "/v1/chat/completions", "/v1/responses", "/v1/completions"
_GZIP = 31
_MESSAGES = '"max_tokens":4,"messages":[{"role":"user","content":"a"}]'


def packed(before: str, repeated: str, count: int, after: str) -> bytes:
    """A compressed body, without building it here."""
    packer = zlib.compressobj(9, wbits=_GZIP)
    parts = [packer.compress(f'{{"model":"{MODEL}",{before}'.encode())]
    piece, times = repeated.encode(), max(1, MIB // len(repeated))
    for begin in range(0, count, times):
        parts.append(packer.compress(piece * min(times, count - begin)))
    return b"".join((*parts, packer.compress(after.encode() + b"}"), packer.flush()))


def image(scheme: str, count: int, end: str) -> bytes:
    before = '"max_tokens":4,"messages":[{"role":"user","content":[{"type":"image","image":"'
    return packed(before, scheme, count, end + '"}]}]')


def text(before: str, after: str, size: int = 43 * MIB) -> bytes:
    """A text that begins as an image."""
    return packed(f'{before}"data:', "A", size, f'"{after}')


def named_tools(count: int) -> bytes:
    tools = [{"type": "function", "name": f"f{number}"} for number in range(count)]
    return zlib.compress(json.dumps({"model": MODEL, "input": "a", "tools": tools}).encode(), 9, 31)


def unfinished(path: str, size: int) -> bytes:
    """A request whose body is decoded as far as it goes, but not complete."""
    packer = zlib.compressobj(9, wbits=_GZIP)
    data = packer.compress(b" " * size) + packer.flush(zlib.Z_SYNC_FLUSH)
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\n@KEY\r\ncontent-type: application/json\r\n"
        f"content-encoding: gzip\r\ncontent-length: {len(data) + 99}\r\n\r\n"
    )
    return head.encode() + data


async def sent(attack: Attack, path: str, body: bytes, count: int) -> str:
    return await attack.once(path, [body] * count, **{"content-encoding": "gzip"})


def probable(**fields: object) -> bytes:
    """A long response with all log probabilities that there can be."""
    asked = {"model": MODEL, "input": "Go on.", "top_logprobs": 20, "store": True}
    return json.dumps(asked | {"ignore_eos": True, "max_output_tokens": 900} | fields).encode()


def plain(path: str, body: bytes) -> bytes:
    lines = "host: x\r\n@KEY\r\ncontent-type: application/json\r\n"
    return f"POST {path} HTTP/1.1\r\n{lines}content-length: {len(body)}\r\n\r\n".encode() + body


_LARGE_BIAS = "[" + "[]," * (8 * MIB // 3 - 100) + "[]]"
_PAGES = b"".join(
    f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode() for path in ("/docs", "/openapi.json")
)

PACKED_ATTACKS: dict[str, Callable[[Attack], Awaitable[str]]] = {
    "schemes": lambda a: sent(a, CHAT, image("data:", 8_600_000, ",x"), 4),
    "white space": lambda a: sent(a, CHAT, image(" ", 43 * MIB, ",x"), 4),
    "white space behind an image": lambda a: sent(
        a, CHAT, image("data:image/png;base64,AAAA" + " " * 43 * MIB, 1, ""), 4
    ),
    "salts of many prompts": lambda a: sent(
        a, COMPLETIONS, text('"prompt":[' + '"a",' * 63 + '"a"],"cache_salt":', ""), 4
    ),
    "options of many prompts": lambda a: sent(
        a,
        COMPLETIONS,
        packed('"prompt":[' + '"a",' * 63 + '"a"],"guided_regex":"', "a ", 3 * MIB, '"'),
        4,
    ),
    "names of users": lambda a: sent(
        a, RESPONSES, text('"input":"a","stream":true,"store":true,"user":', ""), 4
    ),
    "schemas": lambda a: sent(a, CHAT, text(_MESSAGES + ',"guided_json":{"url":', "}"), 4),
    "tools": lambda a: sent(a, RESPONSES, named_tools(24_900), 6),
    "biases": lambda a: sent(
        a, CHAT, packed(_MESSAGES + ',"logit_bias":', json.dumps(_LARGE_BIAS), 1, ""), 4
    ),
    "unfinished small bodies": lambda a: a.raw(256, [unfinished(CHAT, MIB - 100)]),
    "unfinished large bodies": lambda a: a.raw(8, [unfinished(CHAT, 39 * MIB)]),
    "log probabilities that nobody reads": lambda a: a.raw(
        16, [plain(RESPONSES, probable(stream=True))]
    ),
    "log probabilities of responses": lambda a: a.once(RESPONSES, [probable()] * 16),
    "descriptions that nobody reads": lambda a: a.raw(1000, [_PAGES * 2]),
}
