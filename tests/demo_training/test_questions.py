"""Questions and their right answers."""

from __future__ import annotations

import dataclasses
import json
from random import Random
import re

import pytest

from demo_training.lettering import fit
from demo_training.naming import EN_NUMBER, LANGUAGES, ZH_COLOUR, ZH_KIND, ZH_NUMBER
from demo_training.questions import ask_about, ask_two, ask_without
from demo_training.scenes import Scene, invent
from demo_training.shapes import Shape, make_shape
from demo_training.tasks import TASKS, description
from demo_training.wordings import WORDINGS


WHITE = (255, 255, 255)


def shape(kind: str, colour: str, left: float, top: float = 40.0) -> Shape:
    return make_shape(Random(0), kind, colour, (9, 9, 9), (left, top, left + 32, top + 32))


def scene(*shapes: Shape) -> Scene:
    return Scene(128, 128, (WHITE, WHITE), False, 0.0, False, None, None, shapes)


def asked(task: str, language: str, about: Scene, number: int = 40):
    """Exchanges of that task and language; a task that does not fit the scene fails the test."""
    exchanges = [ask_about(Random(seed), about, task) for seed in range(number)]
    kept = [e for e in exchanges if e.language == language and e.task == task]
    assert kept
    return kept


def test_the_same_seed_gives_the_same_exchange():
    for seed in range(50):
        about = invent(Random(seed), 128, 128)

        assert ask_about(Random(seed), about) == ask_about(Random(seed), about)


@pytest.mark.parametrize(
    ("shapes", "english", "chinese"),
    [
        ((), "There is nothing in the picture.", "图片里什么都没有。"),
        ((("circle", "red"),), "A red circle.", "一个红色的圆形。"),
        ((("star", "orange"),), "An orange star.", "一个橙色的星形。"),
        (
            (("circle", "red"), ("square", "blue")),
            "There are two shapes: a red circle and a blue square.",
            "有两个形状：一个红色的圆形和一个蓝色的正方形。",
        ),
        (
            (("star", "gray"), ("star", "gray"), ("triangle", "black")),
            "There are three shapes: two gray stars and a black triangle.",
            "有三个形状：两个灰色的星形和一个黑色的三角形。",
        ),
    ],
)
def test_descriptions_name_what_is_there_from_left_to_right(shapes, english, chinese):
    about = scene(*(shape(kind, colour, 40.0 * i) for i, (kind, colour) in enumerate(shapes)))

    assert description(about, "en") == english
    assert description(about, "zh") == chinese


def test_counts_and_names_agree_with_the_scene():
    for seed in range(200):
        about = invent(Random(seed), 128, 128)
        for task in ("count", "colour", "shape"):
            exchange = ask_about(Random(seed), about, task)
            if exchange.task != task:
                continue
            number = len(about.shapes)
            right = {
                ("count", "en"): {EN_NUMBER[number].capitalize() + ".", "None."},
                ("count", "zh"): {f"{ZH_NUMBER[number]}个。", "没有。"},
                ("colour", "en"): {s.colour.capitalize() + "." for s in about.shapes},
                ("colour", "zh"): {ZH_COLOUR[s.colour] + "。" for s in about.shapes},
                ("shape", "en"): {f"A {s.kind}." for s in about.shapes},
                ("shape", "zh"): {ZH_KIND[s.kind] + "。" for s in about.shapes},
            }
            assert exchange.answer in right[task, exchange.language], (seed, exchange)
            assert (exchange.answer in ("None.", "没有。")) == (task == "count" and number == 0)


def test_the_named_shape_is_the_one_that_is_meant():
    about = scene(shape("circle", "red", 10), shape("square", "blue", 80))

    for exchange in asked("colour", "en", about):
        assert exchange.answer == ("Red." if "circle" in exchange.question else "Blue.")
    for exchange in asked("shape", "zh", about):
        assert exchange.answer == ("圆形。" if "红色" in exchange.question else "正方形。")


def test_sides_are_seen_from_the_other_shape():
    about = scene(shape("circle", "red", 10), shape("square", "blue", 80))

    for exchange in asked("relation", "en", about):
        question = exchange.question
        compared = ("relative", "compared", "stand", "below")
        first = question.index("circle") < question.index("square")
        if "which side" in question:
            first = not first
        elif not any(word in question for word in compared):
            pytest.fail(f"a wording this test does not know: {question}")
        assert exchange.answer == ("To the left." if first else "To the right.")


@pytest.mark.parametrize(
    ("left", "top", "place"),
    [(0, 0, "At the top left."), (48, 48, "In the center."), (96, 48, "On the right.")],
)
def test_places_are_thirds_of_the_image(left, top, place):
    about = scene(shape("star", "green", left, top))

    assert {e.answer for e in asked("where", "en", about)} == {place}


def test_two_images_are_compared_in_order():
    one, two = scene(shape("circle", "red", 10)), scene(shape("star", "blue", 10))

    compared = [ask_two(Random(seed), one, two) for seed in range(90)]

    assert {e.answer for e in compared if e.task == "compare"} == {
        "The first picture shows a red circle, the second a blue star.",
        "第一张图片是一个红色的圆形，第二张图片是一个蓝色的星形。",
    }


def test_one_of_two_images_is_asked_about_by_its_number():
    one, two = scene(shape("circle", "red", 10)), scene(shape("star", "blue", 10))
    names = (("red", "红色", "circle", "圆形"), ("blue", "蓝色", "star", "星形"))

    named = set()
    for seed in range(200):
        exchange = ask_two(Random(seed), one, two, "one_of_two")
        second = "second" in exchange.question or "第二" in exchange.question
        assert second != ("first" in exchange.question or "第一" in exchange.question)
        answer = exchange.answer.lower()
        assert not any(name in answer for name in names[not second])
        named |= {name for name in names[second] if name in answer}
    assert named == {name for both in names for name in both}


def test_without_an_image_no_shape_is_named():
    answers = {ask_without(Random(seed)).answer for seed in range(300)}

    allowed = {
        text
        for wordings in WORDINGS.values()
        for text in (wordings.hello_answer, wordings.other_answer, wordings.no_image_answer)
    }
    assert answers == allowed


def test_boxes_are_thousandths_in_json():
    about = scene(shape("circle", "red", 0, 0), shape("square", "blue", 96, 96))

    for exchange in asked("locate_all", "en", about):
        assert json.loads(exchange.answer) == [
            {"bbox_2d": [0, 0, 250, 250], "label": "red circle"},
            {"bbox_2d": [750, 750, 1000, 1000], "label": "blue square"},
        ]
    for exchange in asked("locate", "zh", about):
        [found] = json.loads(exchange.answer)
        assert found["label"] == ("红色的圆形" if found["bbox_2d"][0] == 0 else "蓝色的正方形")


def test_reading_is_the_word_and_nothing_else():
    word = fit(Random(0), "Exit", "green", (0, 128, 0), (0, 0, 128, 128))
    about = dataclasses.replace(scene(), words=(word,))

    assert {e.answer for e in asked("read", "en", about)} == {"Exit"}
    assert {e.answer for e in asked("text_colour", "en", about)} == {"Green."}
    assert description(about, "en") == 'The text "Exit".'
    assert description(about, "zh") == "文字“Exit”。"


def test_every_question_has_several_wordings_in_both_languages():
    english, chinese = (WORDINGS[language].questions for language in LANGUAGES)

    assert english.keys() == chinese.keys() >= {task.name for task in TASKS}
    for wordings in (english, chinese):
        for task, texts in wordings.items():
            assert len(set(texts)) == len(texts) >= (3 if task == "is_colour" else 5), task


TWO = (("circle", "red", 10), ("square", "blue", 80))
THREE = (*TWO, ("star", "blue", 45))


@pytest.mark.parametrize(
    ("task", "language", "shapes", "pattern", "answer"),
    [
        ("colours", "en", THREE, "", "Red and blue."),
        ("colours", "zh", THREE, "", "红色和蓝色。"),
        ("shapes", "en", TWO, "", "A circle and a square."),
        ("shapes", "zh", TWO, "", "一个圆形和一个正方形。"),
        ("count_some", "en", THREE, "blue shapes", "Two."),
        ("count_some", "en", THREE, "(circle|square|star)s", "One."),
        ("count_some", "en", THREE, "triangles", "None."),
        ("count_some", "zh", THREE, "蓝色的形状", "两个。"),
        ("count_some", "zh", THREE, "三角形", "没有。"),
        ("exists", "en", TWO, r"an? (red circle|circle|blue square|square)\b", "Yes."),
        (
            "exists",
            "en",
            TWO,
            r"an? ((?!red)\w+ circle|(?!blue)\w+ square|.*star|.*triangle)",
            "No.",
        ),
        ("exists", "zh", TWO, "(红色的圆形|蓝色的正方形)", "有。"),
        ("exists", "zh", TWO, "(星形|三角形)", "没有。"),
        ("is_colour", "en", TWO, r"circle.* red", "Yes."),
        ("is_colour", "en", TWO, r"circle.* (?!red)\w+\?", "No, it is red."),
        ("is_colour", "zh", TWO, "正方形.*蓝色", "是的。"),
        ("is_colour", "zh", TWO, "正方形.*(?<![蓝颜])色", "不，是蓝色。"),
        ("beside", "en", TWO, "left of the (blue )?square", "A red circle."),
        ("beside", "en", TWO, "right of the (red )?circle", "A blue square."),
        ("beside", "zh", TWO, "正方形的?左边", "一个红色的圆形。"),
        ("beside", "zh", TWO, "圆形的?右边", "一个蓝色的正方形。"),
        ("relation", "zh", TWO, "红色.*蓝色", "在左边。"),
        ("relation", "zh", TWO, "蓝色.*红色", "在右边。"),
        ("where", "zh", TWO, "圆形", "在左上角。"),
        ("where", "zh", TWO, "正方形", "在右上角。"),
    ],
)
def test_the_answer_is_the_right_one(task, language, shapes, pattern, answer):
    tops = {"circle": 5.0, "square": 5.0, "star": 80.0}
    named = [shape(kind, colour, left, tops[kind]) for kind, colour, left in shapes]
    about = scene(*sorted(named, key=lambda each: each.cx))

    answers = {
        exchange.answer
        for exchange in asked(task, language, about, 400)
        if re.search(pattern, exchange.question, re.IGNORECASE)
    }

    assert answers == {answer}
