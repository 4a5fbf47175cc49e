"""Unseen pictures with questions, and the judgement of an answer.

Owns what the model is examined in. Must not know networks, engines or training: whoever can answer can be examined.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
import json
from random import Random

from PIL import Image

from inference_service.demo.examples import SIZE_WEIGHTS, SIZES, Size, invent_scene, next_to
from inference_service.demo.lettering import LONGEST
from inference_service.demo.naming import LANGUAGES
from inference_service.demo.pictures import draw_size, render
from inference_service.demo.questions import TWO_PICTURE_TASKS, Exchange, ask_about, ask_two
from inference_service.demo.scenes import Scene


UNSEEN_SEED = 2 * 10**9  # the training counts its seeds from 0 and from 10**9, and never comes here

Scores = dict[tuple[str, str], tuple[float, int]]
"""(task, language) -> sum of the judgements, questions."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A question about pictures.

    Attributes:
        exchange: The question and its right answer.
        pictures: The pictures, RGB.
        size: Width and height at which the model sees them.
        before: The turns before, with their right answers.
    """

    exchange: Exchange
    pictures: tuple[Image.Image, ...]
    size: Size
    before: tuple[Exchange, ...] = ()


def _scenes(random: Random) -> Iterator[tuple[Scene, Size]]:
    while True:
        size = random.choices(SIZES, SIZE_WEIGHTS)[0]
        yield invent_scene(random, *draw_size(random, size)), size


def _rendered(random: Random, *scenes: Scene) -> tuple[Image.Image, ...]:
    return tuple(render(scene, random.getrandbits(30)) for scene in scenes)


def unseen_trials(task: str, language: str, number: int) -> list[Trial]:
    """Questions of one kind about pictures that the training never showed; the same arguments give the same ones.

    Args:
        task: Name of a task; `compare`, `one_of_two` or `same` for two pictures; `second_turn` for any task after
            another one; `read:4` for words of up to 4 characters.
        language: `en` or `zh`.
        number: How many.
    """
    random = Random(UNSEEN_SEED)
    scenes = _scenes(random)
    trials = (_trial(random, scenes, task.partition(":")[0]) for _ in count())
    limit = int(task.partition(":")[2] or LONGEST)
    fitting = (
        trial
        for trial in trials
        if trial.exchange.language == language
        and (task == "second_turn" or trial.exchange.task == task.partition(":")[0])
        and (not task.startswith("read") or len(trial.exchange.answer) <= limit)
    )
    return list(islice(fitting, number))


def _trial(random: Random, scenes: Iterator[tuple[Scene, Size]], task: str) -> Trial:
    """A question of that kind, or of another one where the scene allows none."""
    scene, size = next(scenes)
    if task in TWO_PICTURE_TASKS:
        other = next_to(random, scene, invent_scene(random, *size))
        return Trial(ask_two(random, scene, other), _rendered(random, scene, other), size)
    if task == "second_turn":
        before = (ask_about(random, scene),)
        return Trial(ask_about(random, scene), _rendered(random, scene), size, before)
    return Trial(ask_about(random, scene, task), _rendered(random, scene), size)


def judge(exchange: Exchange, answer: str) -> float:
    """1 for an answer that is word for word the right one, else 0; for boxes their overlap with the right ones.

    Returns:
        0 to 1; for boxes the mean intersection over union, 0 for one that is missing or has another label.
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


def _boxes(answer: str) -> list[tuple[Sequence[float], str]]:
    try:
        return [(item["bbox_2d"], item["label"]) for item in json.loads(answer)]
    except (ValueError, TypeError, KeyError):
        return []


def iou(one: Sequence[float], two: Sequence[float]) -> float:
    """Intersection over union of two boxes (left, top, right, bottom)."""
    if len(one) != 4 or len(two) != 4:
        return 0.0
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
