"""What the model is examined in, and how answers are judged."""

from __future__ import annotations

import pytest

from demo_training.questions import Exchange
from demo_training.trials import iou, judge, table, unseen_trials


BOX = '{{"bbox_2d": [{0}], "label": "{1}"}}'


def test_unseen_questions_are_the_same_every_time():
    first, second = (unseen_trials("count", "zh", 3) for _ in range(2))

    assert [t.exchange for t in first] == [t.exchange for t in second]
    assert all(t.exchange.task == "count" and t.exchange.language == "zh" for t in first)


def test_no_two_kinds_of_questions_share_an_image():
    kinds = [(t, x) for t in ("colour", "read:4", "read:6", "describe") for x in ("en", "zh")]
    shown = [p.tobytes() for kind in kinds for t in unseen_trials(*kind, 8) for p in t.images]

    assert len(set(shown)) == len(shown) == 8 * len(kinds)


@pytest.mark.parametrize(("task", "language"), [("juggle", "en"), ("count", "fr")])
def test_unknown_tasks_and_languages_are_told(task, language):
    with pytest.raises(ValueError, match=f"{task}|{language}"):
        unseen_trials(task, language, 1)


def test_short_words_are_short():
    answers = [trial.exchange.answer for trial in unseen_trials("read:4", "en", 10)]

    assert max(map(len, answers)) <= 4


@pytest.mark.parametrize(
    ("task", "images"), [("compare", 2), ("one_of_two", 2), ("second_turn", 1)]
)
def test_some_trials_show_two_images_or_have_a_turn_before(task, images):
    for trial in unseen_trials(task, "en", 5):
        assert len(trial.images) == images
        assert len(trial.before) == (task == "second_turn")


@pytest.mark.parametrize(
    ("task", "right", "answer", "judgement"),
    [
        ("count", "Two.", "Two.", 1.0),
        ("count", "Two.", "two", 0.0),
        ("locate", [("0, 0, 100, 100", "red star")], [("0, 0, 100, 100", "red star")], 1.0),
        ("locate", [("0, 0, 100, 100", "red star")], [("0, 0, 100, 50", "red star")], 0.5),
        ("locate", [("0, 0, 100, 100", "red star")], [("0, 0, 100, 100", "red circle")], 0.0),
        ("locate", [("0, 0, 100, 100", "red star")], [("0, 0, 100", "red star")], 0.0),
        ("locate", [("0, 0, 100, 100", "red star")], "the star", 0.0),
        ("locate", [("0, 0, 100, 100", "red star")], '[{"bbox_2d": null, "label": "x"}]', 0.0),
        ("locate", [("0, 0, 100, 100", "red star")], [('"a", 0, 9, 9', "red star")], 0.0),
        ("locate", [("0, 0, 100, 100", "red star")], "7", 0.0),
        (
            "locate_all",
            [("0, 0, 100, 100", "a"), ("200, 0, 300, 100", "b")],
            [("200, 0, 300, 100", "b"), ("0, 0, 100, 100", "a")],
            0.0,
        ),
        ("one_of_two", [("0, 0, 100, 100", "red star")], [("0, 0, 100, 50", "red star")], 0.5),
        ("read", "512", "512", 1.0),
        (
            "locate_all",
            [("0, 0, 100, 100", "a"), ("200, 0, 300, 100", "b")],
            [("0, 0, 100, 100", "a")],
            0.5,
        ),
    ],
)
def test_answers_are_judged_word_for_word_and_boxes_by_their_overlap(
    task, right, answer, judgement
):
    def text(boxes):
        if isinstance(boxes, str):
            return boxes
        return "[" + ", ".join(BOX.format(*box) for box in boxes) + "]"

    assert judge(Exchange(task, "en", "?", text(right)), text(answer)) == judgement


def test_boxes_apart_do_not_overlap():
    assert iou((0, 0, 10, 10), (20, 0, 30, 10)) == 0


def test_scores_become_a_table():
    assert table({("a", "en"): (1, 2), ("a", "zh"): (2, 2)}).splitlines()[-1] == (
        "| a | 4 | 50.0 % | 100.0 % |"
    )
