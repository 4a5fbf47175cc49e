"""The golden data of Qwen-VL v1: where it is, its checkpoints, and its prompts as requests."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
import hashlib
import json
from pathlib import Path
import re
import shutil
from typing import Any
import zlib

import numpy as np
from safetensors.numpy import save_file

from inference_service.domain import ChatMessage, ChatRequest, ImagePart, Part, Role, TextPart
from inference_service.engine_protocol.messages import EngineRequest, ImageSpan, SamplingParams
from inference_service.families.registry import load_spec
from inference_service.media.decode import decode_image
from inference_service.media.images import DecodeLimits, ProcessedImage


GOLDEN = Path(__file__).parents[1] / "golden" / "qwen_vl_v1"
IMG, IMG_END, PAD = 151857, 151858, 151859
IMAGE = re.compile(r"(?:Picture \d+: )?<img>(.*?)</img>\n?")


def golden(name: str) -> Any:
    """A JSON file of the golden data."""
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


def with_pads(ids: Iterable[int], *, each: int = 256) -> list[int]:
    """Ids with `each` placeholders between image tags, where the original has the bytes of a path."""
    out: list[int] = []
    inside = False
    for token_id in ids:
        inside = inside and token_id != IMG_END
        if not inside:
            out.append(token_id)
        if token_id == IMG:
            inside = True
            out += [PAD] * each
    return out


def no_file(path: str) -> bytes:
    """For tests that do not look into images."""
    return path.encode()


def message(role: Role, text: str, read: Callable[[str], bytes] = no_file) -> ChatMessage:
    """A message whose image tags are images; `read` gives their files."""
    parts: list[Part] = []
    at = 0
    for found in IMAGE.finditer(text):
        if text[at : found.start()]:
            parts.append(TextPart(text=text[at : found.start()]))
        parts.append(ImagePart(data=read(found[1])))
        at = found.end()
    if text[at:] or not parts:
        parts.append(TextPart(text=text[at:]))
    return ChatMessage(role=role, parts=tuple(parts))


def chat_request(
    query: str, history=None, system: str | None = None, read: Callable[[str], bytes] = no_file
) -> ChatRequest:
    """A conversation in the terms of the original: pairs of question and answer, then a question."""
    messages = [] if system is None else [message(Role.SYSTEM, system, read)]
    for question, answer in history or []:
        messages.append(message(Role.USER, question, read))
        if answer is not None:
            messages.append(message(Role.ASSISTANT, answer, read))
    messages.append(message(Role.USER, query, read))
    return ChatRequest(request_id="r", model="m", messages=tuple(messages))


def random_tensor(
    salt: str, name: str, shape: list[int], offset: float, scale: float
) -> np.ndarray:
    """The recipe of the golden weights: sums of four 16 bit fields of a stable stream, nearly normal."""
    stream = np.random.PCG64(zlib.crc32(f"{salt}:{name}".encode()))
    out = np.empty(int(np.prod(shape)), dtype=np.float32)
    mask, step = np.uint64(0xFFFF), 2**22
    for at in range(0, len(out), step):
        raw = stream.random_raw(min(step, len(out) - at))
        fields = [(raw >> np.uint64(16 * i)) & mask for i in range(4)]
        total = (fields[0] + fields[1] + fields[2] + fields[3]).astype(np.int64)
        out[at : at + len(total)] = offset + (total - 131070) * (scale / 37837.0)
    return out.reshape(shape)


def sincos_tensor(directory: Path, dim: int) -> np.ndarray:
    """Row r * side + c of the 2-D table is [t[c] | t[r]]."""
    table = np.load(directory / f"sincos_{dim}.npy")
    side = len(table)
    columns = np.broadcast_to(table[None], (side, side, dim // 2))
    return np.concatenate([columns, columns.transpose(1, 0, 2)], axis=2).reshape(side**2, dim)


def golden_tensors(name: str, prefix: str = "") -> dict[str, np.ndarray]:
    """The weights of checkpoint A or B whose names begin so, checked against their sums."""
    directory = GOLDEN / "configs" / name
    recipe = json.loads((directory / "tensors.json").read_text())
    tensors = {}
    for entry in recipe["tensors"]:
        if not entry["name"].startswith(prefix):
            continue
        if entry["kind"] == "sincos":
            tensor = sincos_tensor(directory, entry["shape"][1])
        else:
            tensor = random_tensor(
                recipe["salt"], entry["name"], entry["shape"], entry["offset"], entry["scale"]
            )
        assert hashlib.sha256(tensor.astype("<f4").tobytes()).hexdigest() == entry["sha256"]
        tensors[entry["name"]] = np.ascontiguousarray(tensor)
    return tensors


def build_checkpoint(directory: Path, name: str) -> Path:
    """Checkpoint A or B as a model directory: 320 or 160 MB."""
    directory.mkdir(parents=True, exist_ok=True)
    for path in (GOLDEN / "configs" / name).glob("*.json"):
        if path.name != "tensors.json":
            shutil.copy(path, directory)
    shutil.copy(GOLDEN / "qwen.tiktoken", directory)
    save_file(golden_tensors(name), directory / "model.safetensors")
    return directory


def random_ids() -> list[int]:
    """The stream from which the long prompts are cut."""
    ids = (np.random.PCG64(99).random_raw(4000) % np.uint64(150000)).astype(np.int64)
    expected = golden("B.json")["random_ids_sha256_int32"]
    assert hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest() == expected
    return [int(token_id) for token_id in ids]


@dataclass(frozen=True)
class GoldenPrompt:
    """A prompt of the golden data: ids with placeholders, and the names of its images."""

    name: str
    ids: tuple[int, ...]
    images: tuple[str, ...] = ()

    @property
    def pixels(self) -> bytes:
        """The images' pixels one after the other, which `request` points into."""
        return b"".join(processed(name, self._side).pixels for name in self.images)

    @property
    def _side(self) -> int:
        return 224 if self.name in LONG_PROMPTS else 448

    def request(self, sampling: SamplingParams, **changes: Any) -> EngineRequest:
        starts = [at + 1 for at, token_id in enumerate(self.ids) if token_id == IMG]
        spans, offset = [], 0
        for start, name in zip(starts, self.images, strict=True):
            shown = processed(name, self._side)
            span = ImageSpan(
                key=shown.digest,
                start=start,
                num_tokens=shown.num_tokens,
                grid=shown.grid,
                height=shown.height,
                width=shown.width,
                pixel_offset=offset,
            )
            spans.append(span)
            offset += span.pixel_bytes
        values = {"request_id": self.name} | changes
        return EngineRequest(
            prompt_token_ids=self.ids, images=tuple(spans), sampling=sampling, **values
        )


@cache
def processed(name: str, side: int) -> ProcessedImage:
    """A golden image as the front prepares it for squares of this side."""
    policy = replace(
        load_spec(GOLDEN / "configs" / "A").image_policy,
        square_side=side,
        min_pixels=side**2,
        max_pixels=side**2,
    )
    return decode_image(
        (GOLDEN / name).read_bytes(),
        policy=policy,
        min_pixels=side**2,
        max_pixels=side**2,
        limits=DecodeLimits(),
        field="",
    )


def _long_prompts() -> dict[str, GoldenPrompt]:
    """As `note_ids` of B.json says."""
    r = random_ids()
    shown = [
        24669,
        220,
        16,
        25,
        220,
        IMG,
        *[PAD] * 256,
        IMG_END,
        198,
    ]  # encode("Picture 1: <img>..</img>\n")
    palette = "images/palette.png"
    cut = {
        "len_512": r[0:512],
        "len_513": r[0:513],
        "len_600": r[100:700],
        "len_1024": r[0:1024],
        "len_1025": r[0:1025],
        "len_1300": r[200:1500],
        "len_2100": r[0:2100],
        "short": golden("B.json")["prompts"][-1]["ids"],
        "cross_512": r[0:500],
        "cross_1024": r[0:1010],
        "from_600": r[100:700],
    }
    prompts = {name: GoldenPrompt(name, tuple(ids)) for name, ids in cut.items()}
    for name, ids, count in (
        ("image_then_long", [*shown, *r[0:700]], 1),
        ("long_then_two_images", [*r[0:300], *shown, *shown, *r[300:450]], 2),
    ):
        prompts[name] = GoldenPrompt(name, tuple(ids), (palette,) * count)
    return prompts


LONG_PROMPTS = _long_prompts()
"""Of checkpoint B, whose trained length is 512."""
SHORT_PROMPTS = {
    prompt["name"]: GoldenPrompt(
        prompt["name"], tuple(with_pads(prompt["ids"])), tuple(prompt["images"])
    )
    for prompt in golden("A.json")["prompts"]
    if "images" in prompt
}
"""Of checkpoint A: no image, one, two."""
