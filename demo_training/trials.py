"""Generates unseen images with questions, and scores answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
import json
from random import Random

from PIL import Image

from demo_training.examples import SIZE_WEIGHTS, SIZES, Size, invent_scene
from demo_training.images import draw_size, render
from demo_training.lettering import LONGEST
from demo_training.naming import LANGUAGES
from demo_training.placing import Box
from demo_training.questions import TWO_IMAGE_TASKS, Exchange, ask_about, ask_two
from demo_training.scenes import Scene
from demo_training.tasks import TASK_BY_NAME


UNSEEN_SEED = "unseen"  # seeds of the training are numbers
SECOND_TURN = "second_turn"

Scores = dict[tuple[str, str], tuple[float, int]]
"""(task, language) -> (sum of scores, number of questions)."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A question about images.

    Attributes:
        exchange: The question and its correct answer.
        images: The images, RGB.
        size: Width and height of the images for the model.
        before: The previous turns, with their correct answers.
    """

    exchange: Exchange
    images: tuple[Image.Image, ...]
    size: Size
    before: tuple[Exchange, ...] = ()


def _scenes(random: Random) -> Iterator[tuple[Scene, Size]]:
    while True:
        size = random.choices(SIZES, SIZE_WEIGHTS)[0]
        yield invent_scene(random, *draw_size(random, size)), size


def _rendered(random: Random, *scenes: Scene) -> tuple[Image.Image, ...]:
    return tuple(render(scene, random.getrandbits(30)) for scene in scenes)


def unseen_trials(task: str, language: str, number: int) -> list[Trial]:
    """Questions of one task about images that are not in the training nor in the trials of other tasks.

    The same arguments give the same trials on every machine; words are in Pillow's built-in font.

    Args:
        task: Name of a task; `compare` or `one_of_two` for two images; `second_turn` for any task after
            another one; `read:4` for words of up to 4 characters.
        language: `en` or `zh`.
        number: Number of trials.

    Raises:
        ValueError: There is no such task or language.
    """
    name, _, limit = task.partition(":")
    if name not in (*TASK_BY_NAME, *TWO_IMAGE_TASKS, SECOND_TURN):
        raise ValueError(f"unknown task {name!r}")
    if language not in LANGUAGES:
        raise ValueError(f"unknown language {language!r}; known: {', '.join(LANGUAGES)}")
    random = Random(f"{UNSEEN_SEED}/{task}/{language}")
    scenes = _scenes(random)
    trials = (_trial(random, scenes, name) for _ in count())
    fitting = (
        trial
        for trial in trials
        if trial.exchange.language == language
        and name in (SECOND_TURN, trial.exchange.task)
        and (name != "read" or len(trial.exchange.answer) <= int(limit or LONGEST))
    )
    return list(islice(fitting, number))


def _trial(random: Random, scenes: Iterator[tuple[Scene, Size]], task: str) -> Trial:
    """A trial of a task, or of another one if the scene does not allow it."""
    scene, size = next(scenes)
    if task in TWO_IMAGE_TASKS:
        other = invent_scene(random, *size)
        return Trial(ask_two(random, scene, other), _rendered(random, scene, other), size)
    if task == SECOND_TURN:
        before = (ask_about(random, scene),)
        return Trial(ask_about(random, scene), _rendered(random, scene), size, before)
    return Trial(ask_about(random, scene, task), _rendered(random, scene), size)


def judge(exchange: Exchange, answer: str) -> float:
    """Scores an answer: 1 if it equals the correct answer, else 0; for boxes their overlap with the correct ones.

    Returns:
        0 to 1; for boxes the mean intersection over union, with 0 for a box that is missing, has another label, or is
        not in order from left to right.
    """
    wanted = _boxes(exchange.answer)
    if not wanted:
        return float(answer == exchange.answer)
    found = _boxes(answer)
    overlaps = [
        iou(box, found[index][0]) if index < len(found) and found[index][1] == name else 0.0
        for index, (box, name) in enumerate(wanted)
    ]
    return sum(overlaps) / max(len(wanted), len(found))


def _boxes(answer: str) -> list[tuple[Box, str]]:
    """The boxes and labels of an answer; empty if it is not a valid list of boxes."""
    try:
        found = [(item["bbox_2d"], item["label"]) for item in json.loads(answer)]
        return [((float(a), float(b), float(c), float(d)), label) for (a, b, c, d), label in found]
    except (ValueError, TypeError, KeyError):
        return []


def iou(one: Box, two: Box) -> float:
    """Intersection over union of two boxes (left, top, right, bottom), 0 to 1."""
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one, two)]
    return width * height / (sum(areas) - width * height)


def table(scores: Scores) -> str:
    """The scores as a Markdown table of percentages."""
    lines = ["| task | questions | English | Chinese |", "| --- | --- | --- | --- |"]
    for task in dict.fromkeys(task for task, _ in scores):
        shares = [100 * right / asked for right, asked in (scores[task, x] for x in LANGUAGES)]
        asked = sum(scores[task, language][1] for language in LANGUAGES)
        lines.append(f"| {task} | {asked} | {shares[0]:.1f} % | {shares[1]:.1f} % |")
    return "\n".join(lines)
