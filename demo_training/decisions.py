"""Measures how often the served demo model decides rightly about unseen images, and how honest its probabilities are.

    python -m demo_training.decisions --target 127.0.0.1:50051 --images 200

Each image is asked both questions in one request, by gRPC like any client.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
import hashlib
import io
import json
from random import Random
from typing import Final

from PIL import Image

from demo_training.evaluate import AT_ONCE
from demo_training.examples import SIZE_WEIGHTS, SIZES, invent_scene
from demo_training.images import draw_size, render
from demo_training.palette import COLOURS
from demo_training.trials import UNSEEN_SEED
from qwenvl import Client, Decision, Error, choice, image, predicate, user


PREDICATE: Final = "is there a red circle?"
CHOICE: Final = "which colour is the square?"


@dataclass(frozen=True, slots=True)
class DecisionTrial:
    """An image with one square, and the right answers to both questions.

    Attributes:
        image: The image, RGB.
        has_red_circle: Whether it has a red circle.
        square: The colour of its square.
    """

    image: Image.Image
    has_red_circle: bool
    square: str

    @property
    def png(self) -> bytes:
        """The image as PNG."""
        held = io.BytesIO()
        self.image.save(held, "PNG")
        return held.getvalue()


def decision_trials(number: int) -> list[DecisionTrial]:
    """Trials that are not in the training; the same on every machine. Every other image has a red circle."""
    random = Random(f"{UNSEEN_SEED}/decisions")
    return [_trial(random, wanted=index % 2 == 0) for index in range(number)]


def _trial(random: Random, *, wanted: bool) -> DecisionTrial:
    while True:
        size = random.choices(SIZES, SIZE_WEIGHTS)[0]
        scene = invent_scene(random, *draw_size(random, size))
        squares = [shape for shape in scene.shapes if shape.kind == "square"]
        found = any(s.kind == "circle" and s.colour == "red" for s in scene.shapes)
        if len(squares) == 1 and found is wanted:
            image = render(scene, random.getrandbits(30))
            return DecisionTrial(image, found, squares[0].colour)


def digest(trials: Iterable[DecisionTrial]) -> str:
    """SHA-256 of all pixels and right answers, in hexadecimal digits."""
    sha = hashlib.sha256()
    for trial in trials:
        sha.update(json.dumps([trial.image.size, trial.has_red_circle, trial.square]).encode())
        sha.update(trial.image.tobytes())
    return sha.hexdigest()


@dataclass(frozen=True, slots=True)
class Verdict:
    """How good one answer is.

    Attributes:
        right: The most likely option is the right one.
        brier: Sum over all options of (probability - truth) squared, halved: 0 = certain and right, 1 = certain and
            wrong. For a predicate that is (probability - truth) squared.
    """

    right: bool
    brier: float

    @classmethod
    def of(cls, probabilities: Sequence[float], truth: int) -> Verdict:
        """The verdict on the probabilities of all options, of which the one at `truth` is right."""
        best = max(range(len(probabilities)), key=lambda index: probabilities[index])
        errors = [p - (index == truth) for index, p in enumerate(probabilities)]
        return cls(best == truth, sum(error * error for error in errors) / 2)


def verdicts(trial: DecisionTrial, answers: Sequence[Decision]) -> tuple[Verdict, Verdict]:
    """The verdicts on both answers; a refusal counts as an even guess that is wrong."""
    there, colour = answers
    p, names = there.probability, list(COLOURS)
    chances = [q for _, q in colour.probabilities] or [1 / len(names)] * len(names)
    truth = names.index(trial.square)
    first = Verdict.of((p, 1 - p), int(not trial.has_red_circle)) if p is not None else None
    second = Verdict.of(chances, truth)
    return (
        first or Verdict(right=False, brier=0.25),
        Verdict(right=False, brier=second.brier) if colour.refused else second,
    )


def ask(client: Client, trials: Sequence[DecisionTrial]) -> Iterator[tuple[Verdict, Verdict]]:
    """Asks both questions about every image, some images concurrently.

    Raises:
        Error: A call failed.
    """
    questions = [predicate(PREDICATE), choice(CHOICE, list(COLOURS))]

    def decide(trial: DecisionTrial) -> tuple[Verdict, Verdict]:
        return verdicts(trial, client.decide(user(image(trial.png)), questions).answers)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from pool.map(decide, trials)


def table(found: Sequence[tuple[Verdict, Verdict]]) -> str:
    """The share of right answers and the mean Brier score as a Markdown table."""
    lines = ["| question | images | right | Brier score |", "| --- | --- | --- | --- |"]
    for text, column in zip((PREDICATE, CHOICE), zip(*found, strict=True), strict=True):
        right = 100 * sum(verdict.right for verdict in column) / len(column)
        brier = sum(verdict.brier for verdict in column) / len(column)
        lines.append(f"| {text} | {len(column)} | {right:.1f} % | {brier:.4f} |")
    return "\n".join(lines)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description="Measure the decisions of a served demo model.")
    parser.add_argument("--target", default="127.0.0.1:50051", help="address of the gRPC service")
    parser.add_argument("--images", type=int, default=200, help="number of images")
    arguments = parser.parse_args()
    trials = decision_trials(arguments.images)
    with Client(arguments.target) as client:
        try:
            print(table(list(ask(client, trials))))
        except Error as error:
            raise SystemExit(f"{arguments.target}: {error}") from None
    print(f"\nsha256:{digest(trials)}")


if __name__ == "__main__":
    main()
