"""Encodes conversations about generated images as token ids, and packs them into batches.

Batches have M-RoPE positions and a mask of the tokens to learn, and are determined by their seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, count, islice
from random import Random
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
import torch
from torch.utils.data import DataLoader, Dataset

from demo_training.examples import (
    IMAGES_PER_ROW,
    IMAGES_WEIGHTS,
    SIZE_WEIGHTS,
    SIZES,
    Example,
    Size,
    invent_example,
    invent_scene,
    lesson_of,
)
from demo_training.images import PATCH, STEP, as_seen, draw_size, patches, render
from demo_training.labels import SceneLabels, label
from demo_training.lettering import PILLOW_ONLY, Fonts
from demo_training.questions import SYSTEM_PROMPTS, Exchange
from demo_training.scenes import invent_collage
from demo_training.vocabulary import special_id


SYSTEM_MESSAGE = 0.15
POOL = 4  # batches that are generated together


class Truth(NamedTuple):
    """Labels of P images, see `labels.SceneLabels`; the images of a conversation are adjacent.

    Attributes:
        shapes: [P, N, 7] int64.
        boxes: [P, N, 4] float32.
        characters: [P, N, 2, 3] int64.
    """

    shapes: torch.Tensor
    boxes: torch.Tensor
    characters: torch.Tensor

    def to(self, device: torch.device) -> Truth:
        """A copy on a device."""
        return Truth(*(tensor.to(device) for tensor in self))

    @classmethod
    def of(cls, labels: Sequence[SceneLabels]) -> Truth:
        """Stacks the labels of images of one size."""
        return cls(
            torch.from_numpy(np.stack([known.shapes for known in labels])),
            torch.from_numpy(np.stack([known.boxes for known in labels])),
            torch.from_numpy(np.stack([known.characters for known in labels])),
        )


class Batch(NamedTuple):
    """Rows of equal image size and number of images, padded at the end.

    Attributes:
        token_ids: [B, T] int64.
        learned: [B, T] bool, true at tokens of answers.
        positions: [3, B, T] int64.
        patches: [B, images, N, 768] uint8, or None.
        grid: Rows and columns of patches.
        truth: Labels of the images; None without images.
    """

    token_ids: torch.Tensor
    learned: torch.Tensor
    positions: torch.Tensor
    patches: torch.Tensor | None
    grid: tuple[int, int]
    truth: Truth | None


class Look(NamedTuple):
    """Images without questions, for the auxiliary task: scenes, and collages of shapes and characters.

    Attributes:
        patches: [B, N, 768] uint8.
        grid: Rows and columns of patches.
        truth: Their labels.
    """

    patches: torch.Tensor
    grid: tuple[int, int]
    truth: Truth


def patch_grid(size: Size) -> tuple[int, int]:
    """Rows and columns of patches of an image (width, height)."""
    return size[1] // PATCH, size[0] // PATCH


def image_tokens(size: Size) -> int:
    """Number of tokens of an image (width, height)."""
    return (size[0] // STEP) * (size[1] // STEP)


class Codec:
    """Encodes conversations with the tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.start = special_id(tokenizer, "<|im_start|>")
        self.end = special_id(tokenizer, "<|im_end|>")
        self.padding = special_id(tokenizer, "<|endoftext|>")
        self.image = special_id(tokenizer, "<|image_pad|>")
        self._image_start = special_id(tokenizer, "<|vision_start|>")
        self._image_end = special_id(tokenizer, "<|vision_end|>")
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

    def images(self, number: int, size: Size) -> list[int]:
        """Ids of images."""
        one = [self._image_start, *[self.image] * image_tokens(size), self._image_end]
        return one * number

    def prompt(self, question: str, number: int, size: Size) -> list[int]:
        """Ids of a question, images first, up to the start of the answer."""
        return [*self.message("user\n", self.images(number, size), question), *self._opening]

    def conversation(
        self, random: Random, turns: Sequence[Exchange], number: int, size: Size
    ) -> tuple[list[int], list[bool]]:
        """Ids of a conversation, and which of them are learned; images are before or after the first question."""
        ids: list[int] = []
        learned: list[bool] = []

        def add(part: Sequence[int], *, learn: bool = False) -> None:
            ids.extend(part)
            learned.extend([learn] * len(part))

        if random.random() < SYSTEM_MESSAGE:
            add(self.message("system\n" + random.choice(SYSTEM_PROMPTS)))
        for index, turn in enumerate(turns):
            shown = self.images(number if index == 0 else 0, size)
            if index == 0 and random.random() < 0.4:
                add(self.message("user\n" + turn.question, shown))
            else:
                add(self.message("user\n", shown, turn.question))
            add(self._opening)
            add([*self.text(turn.answer), self.end], learn=True)
            add(self.text("\n"))
        return ids, learned

    def positions(self, ids: Sequence[int], size: Size) -> npt.NDArray[np.int64]:
        """[3, T] M-RoPE positions: rows and columns for image tokens, text continues after them."""
        rows, columns = size[1] // STEP, size[0] // STEP
        taken = np.arange(rows * columns)
        places = np.zeros((3, len(ids)), np.int64)
        position = index = 0
        while index < len(ids):
            if ids[index] != self.image:
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
        """[B, T] ids and [3, B, T] positions; causal attention ignores the padding at the end."""
        length = max(len(row) for row in rows)
        ids = torch.full((len(rows), length), self.padding)
        positions = torch.zeros((3, len(rows), length), dtype=torch.long)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
            positions[:, index, : len(row)] = torch.from_numpy(self.positions(row, size))
        return ids, positions


LOOK_SEEDS = 10**9  # different from those of conversations
COLLAGES = 0.65  # fraction of the images without questions


def make_look(seed: int, batch_size: int, fonts: Fonts = PILLOW_ONLY) -> Look:
    """The images of a seed."""
    random = Random(seed)
    size = random.choices(SIZES, SIZE_WEIGHTS)[0]
    scenes, drawn = [], []
    for _ in range(batch_size):
        width, height = draw_size(random, size) if random.random() < 0.3 else size
        make = invent_collage if random.random() < COLLAGES else invent_scene
        scenes.append(make(random, width, height, fonts=fonts))
        drawn.append(patches(as_seen(render(scenes[-1], random.getrandbits(30)))))
    labels = [label(scene, size) for scene in scenes]
    return Look(torch.from_numpy(np.stack(drawn)), patch_grid(size), Truth.of(labels))


def make_batches(
    codec: Codec, seed: int, batch_size: int, fonts: Fonts = PILLOW_ONLY
) -> list[Batch]:
    """The POOL batches of a seed; rows are grouped by length to reduce padding."""
    random = Random(seed)
    size = random.choices(SIZES, SIZE_WEIGHTS)[0]
    lesson = lesson_of(seed)
    drawn = random.choices(IMAGES_PER_ROW, IMAGES_WEIGHTS)[0]
    number = lesson.images if lesson else drawn
    rows = []
    for _ in range(POOL * batch_size):
        example = invent_example(random, size, number, lesson, fonts)
        rows.append((*codec.conversation(random, example.turns, number, size), example))
    rows.sort(key=lambda row: len(row[0]))
    batches = [
        _batch(codec, rows[first : first + batch_size], size)
        for first in range(0, len(rows), batch_size)
    ]
    random.shuffle(batches)
    return batches


def _batch(
    codec: Codec, rows: Sequence[tuple[list[int], list[bool], Example]], size: Size
) -> Batch:
    token_ids, positions = codec.padded([ids for ids, _, _ in rows], size)
    mask = torch.zeros(token_ids.shape, dtype=torch.bool)
    for index, (_, learned, _) in enumerate(rows):
        mask[index, : len(learned)] = torch.tensor(learned)
    labels = [known for _, _, example in rows for known in example.labels]
    drawn = [np.stack(example.images) for _, _, example in rows if example.images]
    return Batch(
        token_ids,
        mask,
        positions,
        torch.from_numpy(np.stack(drawn)) if drawn else None,
        patch_grid(size),
        Truth.of(labels) if labels else None,
    )


class _Looks(Dataset[Look]):
    """The images of each seed."""

    def __init__(self, batch_size: int, fonts: Fonts) -> None:
        self._batch_size = batch_size
        self._fonts = fonts

    def __getitem__(self, seed: int) -> Look:
        return make_look(LOOK_SEEDS + seed, self._batch_size, self._fonts)


class _Pools(Dataset[list[Batch]]):
    """The batches of each seed."""

    def __init__(self, codec: Codec, batch_size: int, fonts: Fonts) -> None:
        self._codec = codec
        self._batch_size = batch_size
        self._fonts = fonts

    def __getitem__(self, seed: int) -> list[Batch]:
        return make_batches(self._codec, seed, self._batch_size, self._fonts)


def looks(
    first: int, batch_size: int, workers: int = 0, fonts: Fonts = PILLOW_ONLY
) -> Iterator[Look]:
    """Endless images without questions from a step on; the same for any number of worker processes."""
    seeds = _Looks(batch_size, fonts)
    return iter(DataLoader(seeds, batch_size=None, sampler=count(first), num_workers=workers))


def batches(
    codec: Codec, first: int, batch_size: int, workers: int = 0, fonts: Fonts = PILLOW_ONLY
) -> Iterator[Batch]:
    """Endless batches from a step on; the same for any number of worker processes."""
    seed, done = divmod(first, POOL)
    seeds = _Pools(codec, batch_size, fonts)
    pools = DataLoader(seeds, batch_size=None, sampler=count(seed), num_workers=workers)
    return islice(chain.from_iterable(pools), done, None)
