"""What the demo model says about images that other code drew, and about those of its own examination.

Rates are minimum rates for images of other code, and the card's for its own; `tests.support.bounds` says what follows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations, product
import re
import subprocess
import sys

import pytest

from demo_training.evaluate import AT_ONCE, judgements
from demo_training.examination import SHARES, digest, examination
from demo_training.naming import ZH_COLOUR, ZH_KIND
from demo_training.trials import iou, unseen_trials
from qwenvl import Client
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from tests.e2e.conftest import Served
from tests.support.bounds import assert_mostly_right, card_rates
from tests.support.examples import one_in
from tests.support.images import Placed, draw_scene, gallery, print_word, scenes


NUMBERS = (("none", "没有"), ("one", "一"), ("two", "两"), ("three", "三"), ("four", "四"))
WORDS = (
    *("CAT", "42", "STOP", "GO", "2026", "OPEN", "SUN", "7", "TAXI", "SALE", "Hi", "book"),
    *("EXIT", "dog", "1984", "FREE", "red", "HOTEL", "No", "tree", "365", "BUS", "Menu", "PARK"),
)
# Sides, grounds and formats of the images; they take turns.
LOOKS = (
    (256, "white", "PNG"),
    (96, "white", "JPEG"),
    (640, "#f4f0e6", "PNG"),
    (320, "#e8f0f4", "JPEG"),
)

# Minutes in all: what is asked in Chinese as in English is asked in Chinese by `make test-full`.
LANGUAGES = ("en", pytest.param("zh", marks=pytest.mark.full))

Named = tuple[bytes, str, str, Collection[str]]
"""An image, a question, what the answer must hold, and the names of which it must hold none but that."""


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Client]:
    with Client(served.grpc_target) as opened:
        yield opened


def drawn() -> list[tuple[list[Placed], bytes]]:
    return [
        (scene, draw_scene(scene, *LOOKS[(index + index // 4) % len(LOOKS)]))
        for index, scene in enumerate(scenes())
    ]


def colours(language: str) -> list[Named]:
    asked: list[Named] = []
    for scene, picture in drawn():
        for shape in scene[:2]:
            if language == "en":
                question = f"What color is the {shape.shape}?"
                asked.append((picture, question, shape.colour, ZH_COLOUR.keys()))
            else:
                question, right = f"{ZH_KIND[shape.shape]}是什么颜色？", ZH_COLOUR[shape.colour]
                asked.append((picture, question, right, ZH_COLOUR.values()))
    return asked


def kinds(language: str) -> list[Named]:
    asked: list[Named] = []
    for scene, picture in drawn():
        for shape in scene[:2]:
            if language == "en":
                question = f"What shape is the {shape.colour} one?"
                asked.append((picture, question, shape.shape, ZH_KIND.keys()))
            else:
                question, right = (
                    f"{ZH_COLOUR[shape.colour]}的是什么形状？",
                    ZH_KIND[shape.shape],
                )
                asked.append((picture, question, right, ZH_KIND.values()))
    return asked


def counts(language: str) -> list[Named]:
    question = "How many shapes are there?" if language == "en" else "图中有几个形状？"
    names = [both[("en", "zh").index(language)] for both in NUMBERS]
    return [(picture, question, names[len(scene)], names) for scene, picture in drawn()]


def names_only(answer: str, right: str, names: Collection[str]) -> bool:
    """Whether the answer holds the right name, as a word of its own, and no other one."""

    def holds(name: str) -> bool:
        border = r"\b" if name.isascii() else ""
        return re.search(border + name + border, answer.lower()) is not None

    return [name for name in names if holds(name)] == [right]


def answers_to(client: Client, asked: Iterable[tuple[str, Sequence[bytes]]]) -> list[str]:
    """Asks questions about images greedily, some at once."""

    def ask(question: str, images: Sequence[bytes]) -> str:
        return client.chat(question, images=images, temperature=0, max_tokens=64).text

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(ask, *zip(*asked, strict=True)))


def named(client: Client, asked: list[Named]) -> list[bool]:
    """Whether each answer names the right thing and nothing else."""
    answers = answers_to(client, [(question, [image]) for image, question, _, _ in asked])
    return [
        names_only(answer, right, names)
        for answer, (_, _, right, names) in zip(answers, asked, strict=True)
    ]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("asked", [colours, kinds, counts])
def test_shapes_of_other_images(
    client: Client, asked: Callable[[str], list[Named]], language: str
) -> None:
    assert_mostly_right(named(client, asked(language)), 0.95)


@pytest.mark.parametrize("question", ["What does the text say?", "图中的文字是什么？"])
def test_words_of_other_images(client: Client, question: str) -> None:
    answers = answers_to(client, [(question, [print_word(word)]) for word in WORDS])

    hits = [answer == word for answer, word in zip(answers, WORDS, strict=True)]
    assert_mostly_right(hits, 0.9)


SIDES = {
    (-1, 0): ("left", "左"),
    (1, 0): ("right", "右"),
    (0, -1): ("above", "上"),
    (0, 1): ("below", "下"),
}


def sides(language: str) -> list[Named]:
    """Questions about two shapes of which one stands beside, above or below the other."""
    place = ("en", "zh").index(language)
    names = [both[place] for both in SIDES.values()]
    asked: list[Named] = []
    for scene, picture in drawn():
        for one, other in permutations(scene, 2):
            across, down = round(2 * (one.x - other.x)), round(2 * (one.y - other.y))
            if (across, down) not in SIDES:
                continue  # across a corner
            question = (
                f"Where is the {one.colour} {one.shape} relative to the {other.colour} {other.shape}?"
                if language == "en"
                else f"{chinese(one)}在{chinese(other)}的哪边？"
            )
            asked.append((picture, question, SIDES[across, down][place], names))
    return asked[::2]


def chinese(shape: Placed) -> str:
    return f"{ZH_COLOUR[shape.colour]}的{ZH_KIND[shape.shape]}"


@pytest.mark.parametrize("language", LANGUAGES)
def test_sides_of_other_images(client: Client, language: str) -> None:
    asked = sides(language)

    assert len({right for _, _, right, _ in asked}) == len(SIDES)
    assert_mostly_right(named(client, asked), 0.95)


# Each of the first twenty with one from the end, never with itself.
PAIRS = list(zip(gallery()[:20], gallery()[:7:-1], strict=False))


@pytest.mark.parametrize(
    ("question", "place"),
    [
        ("What is in the first picture?", 0),
        ("What is in the second picture?", 1),
        ("第一张图片里有什么？", 0),
        ("第二张图片里有什么？", 1),
    ],
)
def test_one_of_two_other_images(client: Client, question: str, place: int) -> None:
    answers = answers_to(client, [(question, [one.png, two.png]) for one, two in PAIRS])

    hits = [pair[place].is_named_in(text) for pair, text in zip(PAIRS, answers, strict=True)]
    assert_mostly_right(hits, 0.95)


@pytest.mark.parametrize(
    ("question", "middle"), [("Compare the two pictures.", "second"), ("比较这两张图片。", "第二")]
)
def test_two_other_images_compared(client: Client, question: str, middle: str) -> None:
    answers = answers_to(client, [(question, [one.png, two.png]) for one, two in PAIRS])

    hits = []
    for (one, two), answer in zip(PAIRS, answers, strict=True):
        first, _, second = answer.partition(middle)
        hits.append(one.is_named_in(first) and two.is_named_in(second))

    assert_mostly_right(hits, 0.95)


# None of these stands in the training's own questions, nor do most of the names in them.
ELSEWHERE = {
    "en": (
        "What is the capital of Germany?",
        "What is 7 times 8?",
        "Who was Isaac Newton?",
        "Write a SQL query that counts users.",
        "How do I clean my kitchen?",
        "Translate this into Italian.",
        "Recommend a museum.",
        "Is this person crying?",
        "Give me a recipe for pancakes.",
        "How deep is the ocean?",
    ),
    "zh": (
        "德国的首都是哪里？",
        "七乘八等于几？",
        "牛顿是谁？",
        "写一首关于春天的诗。",
        "怎么打扫厨房？",
        "翻译成意大利语。",
        "推荐一个博物馆。",
        "这个人在睡觉吗？",
        "煎饼怎么做？",
        "海洋有多深？",
    ),
}


@pytest.mark.parametrize("language", ELSEWHERE)
def test_of_anything_else_it_says_that_it_knows_only_shapes_and_words(
    client: Client, language: str
) -> None:
    shown: tuple[list[bytes], ...] = ([], [gallery()[0].png])
    answers = answers_to(client, product(ELSEWHERE[language], shown))

    wanted = ("only know", "shapes", "words") if language == "en" else ("只认识", "形状", "文字")
    assert_mostly_right([all(part in answer for part in wanted) for answer in answers], 0.95)


def edges(box: usage_pb.BoundingBox) -> tuple[float, float, float, float]:
    return box.x_min, box.y_min, box.x_max, box.y_max


def test_boxes_lie_on_the_shapes(client: Client) -> None:
    asked = [(scene, shape) for scene in scenes()[::2] for shape in scene]

    def overlap(scene: list[Placed], shape: Placed) -> float:
        name = f"{shape.colour} {shape.shape}"
        answer = client.chat(
            f"Locate the {name}.", images=[draw_scene(scene)], grounding=True, temperature=0
        )
        boxes = [g.box for g in answer.response.choices[0].groundings if g.label == name]
        return iou(edges(boxes[0]), shape.box(256)) if boxes else 0.0

    with ThreadPoolExecutor(AT_ONCE) as pool:
        overlaps = list(pool.map(overlap, *zip(*asked, strict=True)))
    assert_mostly_right(overlaps, 0.85)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("task", one_in(4, SHARES))
def test_answers_of_the_examination_are_as_often_right_as_the_card_tells(
    client: Client, task: str, language: str
) -> None:
    trials = unseen_trials(task, language, 30)

    assert_mostly_right(judgements(client, trials), card_rates()[task, language])


@pytest.mark.full
def test_the_examination_prints_every_task_and_its_digest(served: Served) -> None:
    command = [sys.executable, "-m", "demo_training.evaluate", "--questions", "40"]
    command += ["--target", served.grpc_target]
    printed = subprocess.run(command, check=True, timeout=600, capture_output=True, text=True)

    *lines, empty, last = printed.stdout.splitlines()
    rows = [line.split("|")[1:-1] for line in lines[2:]]
    assert [task.strip() for task, *_ in rows] == list(SHARES)
    assert all(0 <= float(share.strip(" %")) <= 100 for row in rows for share in row[2:])
    assert (empty, last) == ("", f"sha256:{digest(examination(40))}")
