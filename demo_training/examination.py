"""The examination of the demo model: the same unseen questions and images on every machine.

    python -m demo_training.examination --questions 1000 OUT_DIR

writes the images (PNG) and the questions with their correct answers (`questions.jsonl`), and prints the same digest as
`evaluate` for the same number of questions.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
import hashlib
import json
from pathlib import Path

from demo_training.naming import LANGUAGES
from demo_training.trials import Trial, unseen_trials


# Share of each task in the examination.
SHARES = {
    **dict.fromkeys(("describe", "colour", "shape", "count", "locate", "read:4", "read:6"), 5),
    **dict.fromkeys(("where", "beside", "relation", "compare", "one_of_two", "second_turn"), 2),
    **dict.fromkeys(("colours", "shapes", "count_some", "exists", "is_colour", "locate_all"), 1),
    **dict.fromkeys(("text_colour", "hello", "other"), 1),
}


@dataclass(frozen=True, slots=True)
class Part:
    """The questions of one task in one language."""

    task: str
    language: str
    trials: tuple[Trial, ...]


def examination(questions: int) -> Iterator[Part]:
    """Generates about that many questions, for every task in both languages; every question has new images."""
    unit = questions / sum(SHARES.values()) / len(LANGUAGES)
    for task, share in SHARES.items():
        number = max(1, round(unit * share))
        for language in LANGUAGES:
            yield Part(task, language, tuple(unseen_trials(task, language, number)))


def digest(parts: Iterable[Part]) -> str:
    """SHA-256 of all questions, correct answers and pixels, in hexadecimal digits."""
    sha = hashlib.sha256()
    for trial in (trial for part in parts for trial in part.trials):
        for turn in (*trial.before, trial.exchange):
            sha.update(json.dumps([turn.question, turn.answer]).encode())
        for image in trial.images:
            sha.update(json.dumps(image.size).encode())
            sha.update(image.tobytes())  # not the PNG: its bytes depend on the compressor
    return sha.hexdigest()


def write(parts: Iterable[Part], out_dir: Path) -> None:
    """Writes images and questions; files of the same names are replaced."""
    out_dir.mkdir(parents=True, exist_ok=True)
    with (out_dir / "questions.jsonl").open("w", encoding="utf-8") as lines:
        for part in parts:
            for index, trial in enumerate(part.trials):
                stem = f"{part.task.replace(':', '_')}-{part.language}-{index:03}"
                files = [f"{stem}-{place}.png" for place in range(len(trial.images))]
                for file, image in zip(files, trial.images, strict=True):
                    image.save(out_dir / file)
                record = {
                    "task": part.task,
                    "language": part.language,
                    "images": files,
                    "before": [[turn.question, turn.answer] for turn in trial.before],
                    "question": trial.exchange.question,
                    "answer": trial.exchange.answer,
                }
                lines.write(json.dumps(record, ensure_ascii=False) + "\n")


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description="Write the images and questions of an examination."
    )
    parser.add_argument(
        "--questions", type=int, default=1000, help="approximate number of questions"
    )
    parser.add_argument(
        "out_dir", type=Path, nargs="?", help="output folder; none = print the digest only"
    )
    arguments = parser.parse_args()
    parts = list(examination(arguments.questions))
    if arguments.out_dir is not None:
        write(parts, arguments.out_dir)
    print(f"sha256:{digest(parts)}")


if __name__ == "__main__":
    main()
