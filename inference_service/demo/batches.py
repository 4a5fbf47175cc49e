"""Conversations about invented pictures as token ids, and batches of them.

Owns the encoding of a conversation (what the chat template renders), its positions, and which tokens
are learned. Every batch follows from its seed. Must not know the network or its training.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
import torch
from torch.utils.data import IterableDataset

from inference_service.demo.palette import COLOURS, KINDS
from inference_service.demo.pictures import (
    PATCH,
    STEP,
    as_seen,
    draw_size,
    patches,
    render,
)
from inference_service.demo.questions import (
    SYSTEM_PROMPTS,
    Exchange,
    ask_about,
    ask_two,
    ask_without,
)
from inference_service.demo.scenes import Scene, invent
from inference_service.demo.vocabulary import special_id


Size = tuple[int, int]

# Width and height in pixels at which the network sees pictures, and how often.
SIZES: tuple[Size, ...] = (
    (128, 128),
    (160, 128),
    (128, 160),
    (192, 96),
    (96, 192),
    (160, 96),
    (96, 160),
    (192, 128),
    (128, 192),
)
SIZE_WEIGHTS = (10, *(2,) * (len(SIZES) - 1))
PICTURES_PER_ROW = (1, 2, 0)
PICTURES_WEIGHTS = (0.92, 0.04, 0.04)
MOST_TURNS = 3
FURTHER_TURN = (
    0.15  # chance of one more turn, and of a system message: short rows teach more in a second
)
SYSTEM_MESSAGE = 0.15

UNLABELLED = -100  # what torch's cross_entropy ignores

# The curriculum: single shapes and easy tasks first, then more and more of the rest.
EASY_STEPS = 200
RAMP_STEPS = 1000
LEAST_PROGRESS = 0.2
MOST_PROGRESS = 0.6


class Batch(NamedTuple):
    """Rows of equal picture size and number of pictures, padded at the end.

    Attributes:
        token_ids: [B, T] int64.
        learned: [B, T] bool, true at tokens of answers.
        positions: [3, B, T] int64.
        patches: [B, pictures, N, 768] uint8, or None.
        grid: Rows and columns of patches.
        labels: [B, 2] int64: kind and colour of a row's only shape, or UNLABELLED.
    """

    token_ids: torch.Tensor
    learned: torch.Tensor
    positions: torch.Tensor
    patches: torch.Tensor | None
    grid: tuple[int, int]
    labels: torch.Tensor


class Look(NamedTuple):
    """Pictures of single shapes, without words.

    Attributes:
        patches: [B, N, 768] uint8.
        grid: Rows and columns of patches.
        labels: [B, 2] int64: kind and colour.
    """

    patches: torch.Tensor
    grid: tuple[int, int]
    labels: torch.Tensor


def patch_grid(size: Size) -> tuple[int, int]:
    """Rows and columns of patches of a picture (width, height)."""
    return size[1] // PATCH, size[0] // PATCH


def picture_tokens(size: Size) -> int:
    """Tokens that a picture (width, height) takes."""
    return (size[0] // STEP) * (size[1] // STEP)


class Codec:
    """The tokenizer, and how conversations become ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.start = special_id(tokenizer, "<|im_start|>")
        self.end = special_id(tokenizer, "<|im_end|>")
        self.padding = special_id(tokenizer, "<|endoftext|>")
        self.picture = special_id(tokenizer, "<|image_pad|>")
        self._picture_start = special_id(tokenizer, "<|vision_start|>")
        self._picture_end = special_id(tokenizer, "<|vision_end|>")
        self._opening = (self.start, *self.text("assistant\n"))

    def text(self, text: str) -> list[int]:
        """Ids of a text."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def message(self, *parts: str | Sequence[int]) -> list[int]:
        """Ids of one message: role with newline, then contents."""
        ids = [self.start]
        for part in parts:
            ids.extend(self.text(part) if isinstance(part, str) else part)
        return [*ids, self.end, *self.text("\n")]

    def pictures(self, number: int, size: Size) -> list[int]:
        """Ids that stand for pictures."""
        one = [self._picture_start, *[self.picture] * picture_tokens(size), self._picture_end]
        return one * number

    def prompt(self, question: str, number: int, size: Size) -> list[int]:
        """Ids of a question, pictures first, up to where the answer begins."""
        return [*self.message("user\n", self.pictures(number, size), question), *self._opening]

    def conversation(
        self, random: Random, turns: Sequence[Exchange], number: int, size: Size
    ) -> tuple[list[int], list[bool]]:
        """Ids of a conversation, and which are learned; pictures stand before or after the first question."""
        ids: list[int] = []
        learned: list[bool] = []

        def add(part: Sequence[int], *, learn: bool = False) -> None:
            ids.extend(part)
            learned.extend([learn] * len(part))

        if random.random() < SYSTEM_MESSAGE:
            add(self.message("system\n" + random.choice(SYSTEM_PROMPTS)))
        for index, turn in enumerate(turns):
            shown = self.pictures(number if index == 0 else 0, size)
            if index == 0 and random.random() < 0.4:
                add(self.message("user\n" + turn.question, shown))
            else:
                add(self.message("user\n", shown, turn.question))
            add(self._opening)
            add([*self.text(turn.answer), self.end], learn=True)
            add(self.text("\n"))
        return ids, learned

    def positions(self, ids: Sequence[int], size: Size) -> npt.NDArray[np.int64]:
        """[3, T] M-RoPE positions: a picture's tokens count rows and columns, text goes on behind it."""
        rows, columns = size[1] // STEP, size[0] // STEP
        taken = np.arange(rows * columns)
        places = np.zeros((3, len(ids)), np.int64)
        position = index = 0
        while index < len(ids):
            if ids[index] != self.picture:
                places[:, index] = position
                index, position = index + 1, position + 1
                continue
            here = slice(index, index + len(taken))
            places[:, here] = position + np.stack([taken * 0, taken // columns, taken % columns])
            index, position = here.stop, position + max(rows, columns)
        return places

    def padded(
        self, rows: Sequence[Sequence[int]], size: Size
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, T] ids and [3, B, T] positions; causal attention never sees the padding at the end."""
        length = max(len(row) for row in rows)
        ids = torch.full((len(rows), length), self.padding)
        positions = torch.zeros((3, len(rows), length), dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
            positions[:, index, : len(row)] = torch.from_numpy(self.positions(row, size))
        return ids, positions


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation, its pictures, each [N, 768] uint8, and the label of its only shape."""

    pictures: list[npt.NDArray[np.uint8]]
    turns: list[Exchange]
    label: tuple[int, int] = (UNLABELLED, UNLABELLED)


def label_of(scene: Scene) -> tuple[int, int]:
    """Kind and colour of the only shape, as indices into KINDS and COLOURS; UNLABELLED if there are none or more."""
    if len(scene.shapes) != 1:
        return UNLABELLED, UNLABELLED
    [shape] = scene.shapes
    return KINDS.index(shape.kind), list(COLOURS).index(shape.colour)


def invent_example(random: Random, size: Size, progress: float, number: int) -> Example:
    """A conversation about `number` pictures that the network sees at `size`.

    `progress` is the share of scenes with any number of shapes, the others have one, and moves the mix of tasks.
    """
    if number == 0:
        return Example([], [ask_without(random)])
    scenes = []
    for _ in range(number):
        width, height = draw_size(random, size) if random.random() < 0.5 else size
        shapes = None if random.random() < progress else 1
        scenes.append(invent(random, width, height, shapes))
    drawn = [patches(as_seen(render(scene, random.getrandbits(30)))) for scene in scenes]
    if number == 2:
        return Example(drawn, [ask_two(random, *scenes)])
    turns = [ask_about(random, scenes[0], progress)]
    while random.random() < FURTHER_TURN and len(turns) < MOST_TURNS:
        turns.append(ask_about(random, scenes[0], progress))
    return Example(drawn, turns, label_of(scenes[0]))


def make_look(seed: int, batch_size: int) -> Look:
    """The pictures of that seed."""
    random = Random(seed)
    size = random.choices(SIZES, SIZE_WEIGHTS)[0]
    scenes = [invent(random, *size, 1) for _ in range(batch_size)]
    drawn = [patches(as_seen(render(scene, random.getrandbits(30)))) for scene in scenes]
    labels = torch.tensor([label_of(scene) for scene in scenes])
    return Look(torch.from_numpy(np.stack(drawn)), patch_grid(size), labels)


def make_batch(codec: Codec, seed: int, progress: float, batch_size: int) -> Batch:
    """The batch of that seed; `progress` (0 to 1) is how far the curriculum is."""
    random = Random(seed)
    size = random.choices(SIZES, SIZE_WEIGHTS)[0]
    number = random.choices(PICTURES_PER_ROW, PICTURES_WEIGHTS)[0]
    rows, learned, drawn, labels = [], [], [], []
    for _ in range(batch_size):
        example = invent_example(random, size, progress, number)
        ids, learn = codec.conversation(random, example.turns, number, size)
        rows.append(ids)
        learned.append(learn)
        labels.append(example.label)
        if number:
            drawn.append(np.stack(example.pictures))
    token_ids, positions = codec.padded(rows, size)
    mask = torch.zeros(token_ids.shape, dtype=torch.bool)
    for index, learn in enumerate(learned):
        mask[index, : len(learn)] = torch.tensor(learn)
    pixels = torch.from_numpy(np.stack(drawn)) if drawn else None
    return Batch(token_ids, mask, positions, pixels, patch_grid(size), torch.tensor(labels))


def progress_at(step: int) -> float:
    """How far the curriculum is at a step, 0 to 1."""
    return min(MOST_PROGRESS, max(LEAST_PROGRESS, (step - EASY_STEPS) / RAMP_STEPS))


class Batches(IterableDataset[Batch]):
    """Batches without end: that of step i has the seed i."""

    def __init__(self, codec: Codec, first: int, batch_size: int) -> None:
        self._codec = codec
        self._first = first
        self._batch_size = batch_size

    def __iter__(self) -> Iterator[Batch]:
        for step in count(self._first):
            yield make_batch(self._codec, step, progress_at(step), self._batch_size)
