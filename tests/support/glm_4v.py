"""The golden data of GLM-4V-9B: where it is, its checkpoint, and its prompts as requests."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import cache
import json
from pathlib import Path
import shutil
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from inference_service.engine_protocol.messages import EngineRequest, ImageSpan, SamplingParams
from inference_service.families.registry import load_spec
from inference_service.media.decode import decode_image
from inference_service.media.images import DecodeLimits, ProcessedImage
from tests.support.qwen_vl_v1 import GOLDEN as IMAGES
from tests.support.qwen_vl_v1 import random_tensor


GOLDEN = Path(__file__).parents[1] / "golden" / "glm_4v_9b"
PLACEHOLDER, BEGIN, END = 151329, 151339, 151340
DATA: dict[str, Any] = json.loads((GOLDEN / "golden.json").read_text(encoding="utf-8"))


def build_checkpoint(directory: Path) -> Path:
    """The checkpoint as a model directory without a vocabulary: 160 MB."""
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(GOLDEN / "config" / "config.json", directory)
    recipe = json.loads((GOLDEN / "config" / "tensors.json").read_text())
    tensors = {
        entry["name"]: random_tensor(
            recipe["salt"], entry["name"], entry["shape"], entry["offset"], entry["scale"]
        )
        for entry in recipe["tensors"]
    }
    # A buffer that releases carry along.
    tensors["transformer.rotary_pos_emb.inv_freq"] = np.zeros(8, dtype=np.float32)
    save_file(tensors, directory / "model.safetensors")
    return directory


def write_vocabulary(directory: Path) -> None:
    """As many ranks as released, but only bytes ever occur in text: the special ids are the real ones."""
    ranks = DATA["tokenizer_file"]["ranks"]
    tokens = [bytes([value]) for value in range(256)]
    tokens += [b"\xff\xfe" + rank.to_bytes(3, "big") for rank in range(256, ranks)]
    lines = [base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens)]
    (directory / "tokenizer.model").write_bytes(b"\n".join(lines))


@cache
def processed(name: str) -> ProcessedImage:
    """A golden image as the front prepares it."""
    policy = load_spec(GOLDEN / "config").image_policy
    return decode_image(
        (IMAGES / "images" / f"{name}.png").read_bytes(),
        policy=policy,
        min_pixels=policy.min_pixels,
        max_pixels=policy.max_pixels,
        limits=DecodeLimits(),
        field="",
    )


@dataclass(frozen=True)
class GoldenPrompt:
    """A prompt of the golden data: the three ids of its image as the engine has them, and the image's name."""

    name: str
    ids: tuple[int, ...]
    image: str | None

    @property
    def pixels(self) -> bytes:
        return bytes(processed(self.image).pixels) if self.image else b""

    def request(self, sampling: SamplingParams, **changes: Any) -> EngineRequest:
        spans = []
        if self.image:
            shown = processed(self.image)
            spans.append(
                ImageSpan(
                    key=shown.digest,
                    start=self.ids.index(BEGIN),
                    num_tokens=shown.num_tokens,
                    grid=shown.grid,
                    height=shown.height,
                    width=shown.width,
                    pixel_offset=0,
                )
            )
        values = {"request_id": self.name} | changes
        return EngineRequest(
            prompt_token_ids=self.ids, images=tuple(spans), sampling=sampling, **values
        )


def _prompt(chat: dict[str, Any]) -> GoldenPrompt:
    images = [message["image"] for message in chat["messages"] if message.get("image")]
    ids: list[int] = list(chat["ids"])
    if images:
        at = ids.index(BEGIN)
        ids[at + 1 : at + 2] = [PLACEHOLDER] * (processed(images[0]).num_tokens - 2)
    return GoldenPrompt(chat["name"], tuple(ids), images[0] if images else None)


PROMPTS = {chat["name"]: _prompt(chat) for chat in DATA["chat"]}
