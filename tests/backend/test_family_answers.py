"""From files and words to the first tokens of an answer, front and engine together, for each family.

The oracle is transformers alone: its template, tokenizer, processor of images and model.
"""

from __future__ import annotations

from dataclasses import dataclass
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
import pytest
import torch
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from inference_service.backend.served_model import ServedModel
from inference_service.domain import (
    ChatMessage,
    ChatRequest,
    ImagePart,
    Role,
    TextPart,
    VideoPart,
)
from inference_service.engine.core import EngineCore
from inference_service.engine_protocol.messages import EngineConfig, EngineRequest, SamplingParams
from inference_service.media.decode import decode_image, decode_video
from inference_service.media.images import DecodeLimits, FrameSpec, ProcessedImage
from tests.support.conversations import drain
from tests.support.qwen_text import TEMPLATES, token_id, write_text_files
from tests.support.tiny_qwen_vl import (
    FAMILIES,
    Clip,
    build_checkpoint,
    grid_of,
    image_processor,
    reference_model,
    reference_patches,
)


TOKEN_IDS = {
    "image_token_id": token_id("<|image_pad|>"),
    "video_token_id": token_id("<|video_pad|>"),
    "vision_start_token_id": token_id("<|vision_start|>"),
    "vision_end_token_id": token_id("<|vision_end|>"),
}
NEW_TOKENS = 8


@dataclass(frozen=True)
class Answer:
    """Tokens and their log probabilities, in which details show that move no greedy choice."""

    token_ids: list[int]
    logprobs: torch.Tensor

    def assert_equals(self, other: Answer) -> None:
        assert len(self.token_ids) == NEW_TOKENS
        assert self.token_ids == other.token_ids
        torch.testing.assert_close(self.logprobs, other.logprobs, atol=1e-4, rtol=0)


@pytest.fixture(scope="module", params=FAMILIES)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    made = tmp_path_factory.mktemp(request.param)
    build_checkpoint(made, family=request.param, seed=3, token_ids=TOKEN_IDS)
    limits = {"size": {"shortest_edge": 1024, "longest_edge": 2**24}}
    (made / "video_preprocessor_config.json").write_text(json.dumps(limits))
    return write_text_files(made, TEMPLATES.get(request.param, TEMPLATES["qwen2_vl"]))


@pytest.fixture(scope="module")
def reference(directory: Path) -> Any:
    return reference_model(directory)


def noise(size: tuple[int, int], seed: int, mode: str = "RGB") -> Image.Image:
    shape = (size[1], size[0], len(mode))
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(pixels, mode)


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


SYSTEM, USER, ASSISTANT = Role.SYSTEM, Role.USER, Role.ASSISTANT
WIDE, TALL, CLEAR = noise((141, 60), 1), noise((33, 150), 2), noise((70, 70), 3, "RGBA")
CONVERSATIONS: dict[str, list[tuple[Role, list[str | Image.Image]]]] = {
    "words": [(USER, ["What is the capital of France?"])],
    "an image": [(USER, [WIDE, "这是什么?"])],
    "images and a system prompt": [
        (SYSTEM, ["Be brief."]),
        (USER, ["Compare ", WIDE, " 和 ", TALL, "."]),
    ],
    "turns": [
        (USER, [TALL, "图里有什么?"]),
        (ASSISTANT, ["一条线。"]),
        (USER, ["And here?", CLEAR]),
    ],
}


def ours(directory: Path, turns: list[tuple[Role, list[str | Image.Image]]]) -> Answer:
    model = ServedModel.load(directory, ("tiny",))
    policy = model.spec.image_policy
    messages, images = [], []
    for role, parts in turns:
        content: list[TextPart | ImagePart] = []
        for part in parts:
            if isinstance(part, str):
                content.append(TextPart(text=part))
                continue
            content.append(ImagePart(data=png(part)))
            image = decode_image(
                png(part),
                policy=policy,
                min_pixels=policy.min_pixels,
                max_pixels=policy.max_pixels,
                limits=DecodeLimits(),
                field="",
            )
            images.append(image)
        messages.append(ChatMessage(role=role, parts=tuple(content)))
    return answer_of(directory, model, messages, images)


def answer_of(
    directory: Path,
    model: ServedModel,
    messages: list[ChatMessage],
    images: list[ProcessedImage],
) -> Answer:
    """What the engine says to the prompt that the front builds."""
    request = ChatRequest(request_id="r", model="tiny", messages=tuple(messages))
    prompt = model.prompts.build(request, images)
    core = EngineCore(EngineConfig(model_dir=str(directory), num_kv_pages=200, cpu_threads=1))
    sampling = SamplingParams(max_tokens=NEW_TOKENS, temperature=0.0, logprobs=1)
    core.add(
        EngineRequest(
            request_id="r",
            prompt_token_ids=prompt.token_ids,
            images=prompt.images,
            sampling=sampling,
        ),
        b"".join(image.pixels for image in images),
    )
    told = drain(core)["r"]
    chosen = [entry.logprob for output in told.outputs for entry in output.logprobs]
    return Answer(told.token_ids, torch.tensor(chosen))


def theirs(
    directory: Path, reference: Any, turns: list[tuple[Role, list[str | Image.Image]]]
) -> Answer:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    messages = [
        {
            "role": role.value,
            "content": [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                for part in parts
            ],
        }
        for role, parts in turns
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    images = [part for _, parts in turns for part in parts if not isinstance(part, str)]
    extra: dict[str, Any] = {}
    if images:
        processed = image_processor()(images=images)
        grids = np.asarray(processed["image_grid_thw"])
        for grid in grids:
            placeholders = "<|seen|>" * (int(grid.prod()) // 4)
            text = text.replace("<|image_pad|>", placeholders, 1)
        text = text.replace("<|seen|>", "<|image_pad|>")
        extra = {
            "pixel_values": torch.from_numpy(np.asarray(processed["pixel_values"])),
            "image_grid_thw": torch.from_numpy(grids),
        }
    return generated(tokenizer, reference, text, extra)


def generated(
    tokenizer: PreTrainedTokenizerFast, reference: Any, text: str, extra: dict[str, Any]
) -> Answer:
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
    of_video = (ids == TOKEN_IDS["video_token_id"]).int()
    extra["mm_token_type_ids"] = (ids == TOKEN_IDS["image_token_id"]).int() + 2 * of_video
    result = reference.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
        **extra,
    )
    best = torch.cat(result.scores).topk(2, dim=-1).values
    assert (best[:, 0] - best[:, 1]).min() > 1e-3, "two tokens are as good as equal"
    chosen = torch.cat(result.scores).log_softmax(dim=-1).amax(dim=-1)
    return Answer(result.sequences[0, ids.shape[1] :].tolist(), chosen)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_same_answer(name: str, directory: Path, reference: Any) -> None:
    turns = CONVERSATIONS[name]
    ours(directory, turns).assert_equals(theirs(directory, reference, turns))


# Of a size that no family's rules change, and larger than it is long, where all agree what follows in time.
FILM = [noise((336, 320), seed) for seed in range(7)]
FPS = 3.0
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"


def test_the_same_answer_to_a_video(directory: Path, reference: Any) -> None:
    ours_to_the_film(directory).assert_equals(theirs_to_the_film(directory, reference))


def ours_to_the_film(directory: Path) -> Answer:
    model = ServedModel.load(directory, ("tiny",))
    files = [png(frame) for frame in FILM]
    assert model.spec.video is not None
    rules = FrameSpec(policy=model.spec.image_policy, video=model.spec.video, fps=FPS)
    pieces = decode_video(files, [""] * len(files), rules, DecodeLimits())
    assert {(piece.width, piece.height) for piece in pieces} == {FILM[0].size}
    video = VideoPart(frames=tuple(ImagePart(data=file) for file in files), fps=FPS)
    parts = (TextPart(text="What happens? "), video, TextPart(text="然后呢?"))
    return answer_of(directory, model, [ChatMessage(role=USER, parts=parts)], list(pieces))


def theirs_to_the_film(directory: Path, reference: Any) -> Answer:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
    parts = [{"type": "text", "text": "What happens? "}, {"type": "video"}]
    parts.append({"type": "text", "text": "然后呢?"})
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
    )
    clip = Clip(np.stack([np.asarray(frame) for frame in FILM]))
    times, rows, columns = grid_of(clip)
    one_time = "<|video_pad|>" * (rows * columns // 4)
    extra: dict[str, Any] = {
        "pixel_values_videos": reference_patches(clip),
        "video_grid_thw": torch.tensor([[times, rows, columns]]),
    }
    family = reference.config.model_type
    if family == "qwen3_vl":
        processor: Any = None  # the method does not read it
        seconds = Qwen3VLProcessor._calculate_timestamps(processor, [*range(len(FILM))], FPS, 2)
        marks = [f"<{s:.1f} seconds>{VIDEO}" for s in seconds]
        text = text.replace(VIDEO, "".join(marks)).replace("<|video_pad|>", one_time)
    else:
        text = text.replace("<|video_pad|>", one_time * times)
    if family == "qwen2_5_vl":
        extra["second_per_grid_ts"] = [2 / FPS]
    return generated(tokenizer, reference, text, extra)
