"""Prompts for the tiny Qwen3-VL, and what a core and what transformers answer to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image
import torch

from inference_service.engine.core import EngineCore
from inference_service.engine_protocol.messages import (
    ChoiceOutput,
    EngineRequest,
    FinishReason,
    ImageSpan,
    SamplingParams,
)
from tests.support.tiny_qwen_vl import (
    EOS_TOKENS,
    STEP,
    VISION_END,
    VISION_START,
    Seen,
    clip,
    frames_of,
    image,
    placeholder_of,
    reference_inputs,
    span_of,
)


TURN_START, TURN_END = 580, 581
GREEDY = SamplingParams(max_tokens=14, temperature=0.0, eos_token_ids=EOS_TOKENS)

Turn = Sequence[str | Seen]


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt of the tiny model and the images in it."""

    token_ids: tuple[int, ...]
    images: tuple[ImageSpan, ...]
    seen: tuple[Seen, ...]

    @property
    def pixels(self) -> bytes:
        return b"".join(frames_of(image).tobytes() for image in self.seen)

    def request(
        self, request_id: str, sampling: SamplingParams = GREEDY, **changes: Any
    ) -> EngineRequest:
        return EngineRequest(
            request_id=request_id,
            prompt_token_ids=self.token_ids,
            images=self.images,
            sampling=sampling,
            **changes,
        )


def conversation(*turns: Turn) -> Conversation:
    """Turns of text (one token per UTF-8 byte) and images."""
    token_ids: list[int] = []
    images: list[ImageSpan] = []
    seen: list[Seen] = []
    for turn in turns:
        token_ids.append(TURN_START)
        for part in turn:
            if isinstance(part, str):
                token_ids += part.encode()
                continue
            offset = sum(image.pixel_bytes for image in images)
            images.append(span_of(part, len(token_ids) + 1, offset))
            seen.append(part)
            placeholders = [placeholder_of(part)] * images[-1].num_tokens
            token_ids += [VISION_START, *placeholders, VISION_END]
        token_ids.append(TURN_END)
    return Conversation((*token_ids, TURN_START), tuple(images), tuple(seen))


def video_conversations() -> list[Conversation]:
    """Videos beside images and text, in one piece each; no time axis is the longest."""
    shown = image(3, 2, 7)
    return [
        conversation(["What happens? ", clip(4, 3, 4, 1)]),
        conversation([clip(3, 5, 7, 2), "发生了什么?"]),
        conversation(
            [shown, "and ", clip(3, 4, 5, 3), clip(4, 4, 1, 4), " differ?"], ["Yes."], ["?"]
        ),
        conversation([clip(4, 4, 6, 5), "first"], ["ok"], [clip(4, 4, 6, 6), "second"]),
    ]


def resized(pixels: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The same image under another pixel budget."""
    size = (columns * STEP, rows * STEP)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def conversations() -> list[Conversation]:
    """24 prompts: 0 to 3 images of unequal sizes and shapes, Chinese and English, one to four turns."""
    wide, tall, square = image(2, 7, 1), image(6, 2, 2), image(4, 4, 3)
    other, small, big = image(4, 4, 4), image(1, 1, 5), image(7, 9, 6)
    question = "What is in this picture?"
    return [
        conversation(["Hi"]),
        conversation(["你好,请介绍一下你自己。"]),
        conversation(["Name three rivers."], ["The Nile."], ["Go on."]),
        conversation(["写一首关于秋天的短诗"], ["秋风起"], ["再写一句"], ["落叶"], ["很好"]),
        conversation([question, square]),
        conversation([question, other]),
        conversation([question, small]),
        conversation([question, big]),
        conversation([question, resized(big, 3, 4)]),
        conversation([wide, "图里有什么?"]),
        conversation([tall, "图里有什么?"]),
        conversation([square]),
        conversation(["Compare ", square, " with ", other]),
        conversation(["Compare ", other, " with ", square]),
        conversation(["Compare ", square, " with ", square]),
        conversation([wide, tall, "哪一张更高?"]),
        conversation([square, question], ["一只猫。"], ["And here? ", other]),
        conversation([square, question], ["一只猫。"], ["And here? ", tall]),
        conversation([square, other, small, "数一数"]),
        conversation([small, square, other, "数一数"]),
        conversation([big, "第一张"], ["好"], [wide, "第二张"], ["好"], [tall, "第三张"]),
        conversation(["One: ", tall, " two: ", wide, " three: ", resized(big, 3, 4), "."]),
        conversation(["System: be brief."], ["Read the text aloud, please: 床前明月光"]),
        conversation(["System: be brief."], ["Read the text aloud, please: ", wide]),
    ]


@dataclass(slots=True)
class Answer:
    """Everything that a core told of one choice."""

    token_ids: list[int] = field(default_factory=list)
    outputs: list[ChoiceOutput] = field(default_factory=list)

    @property
    def finish_reason(self) -> FinishReason | None:
        return self.outputs[-1].finish_reason

    @property
    def num_cached_tokens(self) -> int | None:
        """Told once, with the first output."""
        assert all(output.num_cached_tokens is None for output in self.outputs[1:])
        return self.outputs[0].num_cached_tokens

    @property
    def num_cache_write_tokens(self) -> int:
        """Told once, when the prompt is computed."""
        assert not any(o.num_cache_write_tokens for o in self.outputs if o.timings is None)
        return sum(output.num_cache_write_tokens for output in self.outputs)


def drain(core: EngineCore) -> dict[str, Answer]:
    """Steps until nothing is left to do, where every request has one choice; the answers by request id."""
    answers = drain_choices(core)
    assert {choice_index for _, choice_index in answers} <= {0}
    return {request_id: answer for (request_id, _), answer in answers.items()}


def drain_choices(core: EngineCore) -> dict[tuple[str, int], Answer]:
    """Steps until nothing is left to do; every choice must end exactly once."""
    answers: dict[tuple[str, int], Answer] = {}
    for _ in range(100_000):
        if not core.has_work:
            break
        for output in core.step():
            answer = answers.setdefault((output.request_id, output.choice_index), Answer())
            assert not answer.outputs or answer.finish_reason is None, "an output after the end"
            answer.token_ids += output.token_ids
            answer.outputs.append(output)
    assert not core.has_work
    assert core.stats.kv_pages_used == core.stats.running == core.stats.waiting == 0
    assert all(answer.finish_reason is not None for answer in answers.values())
    return answers


def ask(
    core: EngineCore,
    prompts: Iterable[Conversation],
    sampling: SamplingParams = GREEDY,
    **changes: Any,
) -> list[list[int]]:
    """Runs all prompts together; their answers in order."""
    prompts = list(prompts)
    sampling = replace(sampling, **changes)
    for index, prompt in enumerate(prompts):
        core.add(prompt.request(str(index), sampling), prompt.pixels)
    answers = drain(core)
    return [answers[str(index)].token_ids for index in range(len(prompts))]


def generate(model, prompt: Conversation, **changes: Any) -> list[int]:
    """The greedy answer of `transformers.generate`."""
    token_ids = torch.tensor([prompt.token_ids])
    extra = reference_inputs(token_ids, prompt.seen)
    result = model.generate(
        input_ids=token_ids,
        attention_mask=torch.ones_like(token_ids),
        max_new_tokens=GREEDY.max_tokens,
        do_sample=False,
        eos_token_id=list(GREEDY.eos_token_ids),
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
        **extra,
        **changes,
    )
    # Rounding differs from engine to engine; a near tie would make "identical tokens" a matter of luck.
    best = torch.cat(result.scores).topk(2, dim=-1).values
    assert (best[:, 0] - best[:, 1]).min() > 1e-3, "two tokens are as good as equal"
    return result.sequences[0, len(prompt.token_ids) :].tolist()
