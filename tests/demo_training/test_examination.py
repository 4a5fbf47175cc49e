"""The examination is the same on every machine."""

from __future__ import annotations

import json
import re
import sys

from PIL import Image
import pytest

from demo_training import examination
from demo_training.examination import SHARES, digest
from demo_training.naming import LANGUAGES
from tests.support.bounds import CARD


# A change of these numbers is a change of the examination: the card's table has to be made anew.
SMALL = "sha256:e304f586b8dacf91aa19c3887cc95cd35ebb7f2b9856a80da3553159b95792e9"


def run(monkeypatch, capsys, *arguments) -> str:
    monkeypatch.setattr(sys, "argv", ["examination", *map(str, arguments)])
    examination.main()
    return capsys.readouterr().out.strip()


def test_pixels_and_texts_are_pinned(monkeypatch, capsys):
    assert run(monkeypatch, capsys, "--questions", 40) == SMALL


@pytest.mark.full
def test_the_card_was_made_with_this_examination(monkeypatch, capsys):
    card = CARD.read_text()
    [questions] = set(re.findall(r"--questions (\d+)", card))

    assert run(monkeypatch, capsys, "--questions", questions) in card


def test_the_digest_knows_every_pixel_and_answer():
    parts = list(examination.examination(40))
    before = digest(parts)

    image = parts[0].trials[0].images[0]
    pixel = image.getpixel((0, 0))
    assert isinstance(pixel, tuple)
    image.putpixel((0, 0), (pixel[0] ^ 1, *pixel[1:]))

    assert digest(parts) != before
    assert digest(parts[1:]) != digest(parts[::-1])


def test_every_task_is_asked_in_both_languages():
    asked = [(part.task, part.language) for part in examination.examination(40)]

    assert asked == [(task, language) for task in SHARES for language in LANGUAGES]


def test_the_command_writes_images_and_questions(monkeypatch, capsys, tmp_path):
    assert run(monkeypatch, capsys, "--questions", 40, tmp_path) == SMALL

    lines = [json.loads(line) for line in (tmp_path / "questions.jsonl").read_text().splitlines()]
    parts = list(examination.examination(40))
    trials = [trial for part in parts for trial in part.trials]
    for line, trial in zip(lines, trials, strict=True):
        assert (line["question"], line["answer"]) == (
            trial.exchange.question,
            trial.exchange.answer,
        )
        for file, image in zip(line["images"], trial.images, strict=True):
            with Image.open(tmp_path / file) as written:
                assert written.tobytes() == image.tobytes()


def test_nothing_is_written_without_a_folder(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    run(monkeypatch, capsys, "--questions", 1)

    assert list(tmp_path.iterdir()) == []
