"""Generates training examples: image sizes, lessons, and conversations about generated images.

Defines their frequencies and their order in the training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from demo_training.images import as_seen, draw_size, patches, render
from demo_training.labels import SceneLabels, label
from demo_training.lettering import PILLOW_ONLY, Fonts
from demo_training.questions import Exchange, ask_about, ask_two, ask_without
from demo_training.scenes import Scene, invent


Size = tuple[int, int]

# Width and height in pixels of images for the network, and their weights.
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
IMAGES_PER_ROW = (1, 2, 0)
IMAGES_WEIGHTS = (0.72, 0.25, 0.03)
# Weights of the number of turns, which need no further images: more if more can be asked about the image.
TURN_WEIGHTS_OF_SHAPES: tuple[int, ...] = (10, 15, 20, 20, 20, 15)
TURN_WEIGHTS_OF_WORDS = (35, 25, 20, 20)
TURN_WEIGHTS_OF_TWO = (40, 30, 30)
# In characters; no turn follows such an answer, to limit the padding of the other rows of the batch.
LONG_ANSWER = 50
WORD_ONLY, WORD_TOO = 0.45, 0.1  # fractions of images with only a word, and with a word and shapes


class Lesson(NamedTuple):
    """One of the lessons at the beginning of a training.

    Attributes:
        until: The first seed after it.
        counts: Numbers of shapes in an image; 0 = only a word.
        tasks: Tasks of the questions; empty = all.
        turns: Maximum number of questions per image.
        images: Number of images of a conversation.
    """

    until: int
    counts: tuple[int, ...]
    tasks: tuple[str, ...]
    turns: int
    images: int = 1


# Trained on everything at once, the decoder first guesses colours, then describes the image but ignores which shape or
# image the question is about, and learns positions last. A few hundred steps on each of these alone help.
EVERYTHING_EVERY = 4  # pools, against forgetting
LESSONS = (
    Lesson(40, (1,), (), 4),
    Lesson(240, (2, 3), ("colour", "shape", "where"), 6),
    Lesson(400, (1, 2, 3), ("locate",), 3),
    Lesson(500, (0,), ("read",), 1),
    Lesson(580, (0, 1, 2, 3), ("compare", "one_of_two"), 3, images=2),
    Lesson(680, (2, 2, 3), ("relation",), 6),
)


def lesson_of(seed: int) -> Lesson | None:
    """The lesson of a seed; None = all tasks and images."""
    if seed % EVERYTHING_EVERY == 0:
        return None
    return next((lesson for lesson in LESSONS if seed < lesson.until), None)


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation, its images, each [N, 768] uint8, and their labels."""

    images: list[npt.NDArray[np.uint8]]
    turns: list[Exchange]
    labels: list[SceneLabels]


def invent_example(
    random: Random,
    size: Size,
    number: int,
    lesson: Lesson | None = None,
    fonts: Fonts = PILLOW_ONLY,
) -> Example:
    """A conversation about `number` images, resized to `size` for the network."""
    if number == 0:
        return Example([], [ask_without(random)], [])
    scenes: list[Scene] = []
    for _ in range(number):
        width, height = draw_size(random, size) if random.random() < 0.5 else size
        count = random.choice(lesson.counts) if lesson else None
        scenes.append(invent_scene(random, width, height, count, fonts=fonts))
    drawn = [patches(as_seen(render(scene, random.getrandbits(30)))) for scene in scenes]
    turns = _turns(random, scenes, lesson)
    return Example(drawn, turns, [label(scene, size) for scene in scenes])


def _turns(random: Random, scenes: Sequence[Scene], lesson: Lesson | None) -> list[Exchange]:
    if lesson is not None:
        weights = (1,) * lesson.turns
    elif len(scenes) > 1:
        weights = TURN_WEIGHTS_OF_TWO
    else:
        weights = TURN_WEIGHTS_OF_SHAPES if scenes[0].shapes else TURN_WEIGHTS_OF_WORDS
    turns: list[Exchange] = []
    for _ in range(1 + random.choices(range(len(weights)), weights)[0]):
        task = random.choice(lesson.tasks) if lesson and lesson.tasks else None
        if len(scenes) > 1:
            turns.append(ask_two(random, scenes[0], scenes[1], task))
        else:
            turns.append(ask_about(random, scenes[0], task))
        if lesson is None and len(turns[-1].answer) > LONG_ANSWER:
            break
    return turns


def invent_scene(
    random: Random,
    width: int,
    height: int,
    count: int | None = None,
    *,
    fonts: Fonts = PILLOW_ONLY,
) -> Scene:
    """A scene of shapes, a word, or both; if `count` is given, of that number of shapes, or a word for 0."""
    if count is not None:
        return invent(random, width, height, count, word=count == 0, fonts=fonts)
    draw = random.random()
    if draw < WORD_ONLY:
        return invent(random, width, height, 0, word=True, fonts=fonts)
    return invent(random, width, height, word=draw < WORD_ONLY + WORD_TOO, fonts=fonts)
