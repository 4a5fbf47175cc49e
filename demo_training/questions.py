"""Generates questions about one image, two images or no image, with their correct answers."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from demo_training.naming import LANGUAGES, ZH_COLOUR, ZH_KIND
from demo_training.palette import COLOURS, KINDS
from demo_training.scenes import Scene
from demo_training.tasks import (
    TASK_BY_NAME,
    TASKS,
    ask,
    described,
    description,
    hello,
    other,
    roughen,
)
from demo_training.wordings import WORDINGS


SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a helpful assistant",
    "You are Qwen, a helpful assistant.",
    "Answer briefly.",
    "你是一个有用的助手。",
    "你是一个乐于助人的助手。",
    "You answer questions about pictures.",
)
TWO_IMAGE_TASKS = ("compare", "one_of_two")
TEXT_ONLY = ("describe", "colour", "shape", "count", "read", "hello", "other")


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question, its correct answer, and its task."""

    task: str
    language: str
    question: str
    answer: str


def ask_about(random: Random, scene: Scene, task: str | None = None) -> Exchange:
    """A question about one image, of `task` if it is given and possible for the image, else of any task.

    Raises:
        KeyError: There is no such task.
    """
    language = random.choice(LANGUAGES)
    weights = [t.of_words if scene.word and not scene.shapes else t.of_shapes for t in TASKS]
    while True:
        chosen = TASK_BY_NAME[task] if task else random.choices(TASKS, weights)[0]
        made = chosen.make(random, scene, language)
        if made is not None:
            question, answer = made
            question = roughen(random, question, language, hint=chosen.hint)
            return Exchange(chosen.name, language, question, answer)
        task = None


def ask_two(random: Random, one: Scene, two: Scene, task: str | None = None) -> Exchange:
    """A question about two images: a description of both, or any question about one of them."""
    if (task or random.choice(TWO_IMAGE_TASKS)) == "one_of_two":
        return _ask_one_of(random, one, two)
    language = random.choice(LANGUAGES)
    first, second = described(one, language), described(two, language)
    if language == "en":
        answer = f"The first picture shows {first}, the second {second}."
    else:
        answer = f"第一张图片是{first}，第二张图片是{second}。"
    return Exchange("compare", language, ask(random, "compare", language), answer)


def _ask_one_of(random: Random, *scenes: Scene) -> Exchange:
    index = random.randrange(len(scenes))
    about = ask_about(random, scenes[index])
    language = about.language
    nth = (("first", "second") if language == "en" else ("一", "二"))[index]
    if random.random() < 0.5:
        question = ask(random, "describe_one", language, nth=nth)
        answer = description(scenes[index], language)
    else:
        question = ask(random, "ask_of_one", language, nth=nth, question=about.question)
        answer = about.answer
    return Exchange("one_of_two", language, question, answer)


def ask_without(random: Random) -> Exchange:
    """A question without any image."""
    language = random.choice(LANGUAGES)
    task = random.choices(TEXT_ONLY, (1, 1, 1, 1, 1, 1, 6))[0]
    if task in ("hello", "other"):
        question, answer = (hello if task == "hello" else other)(random, language)
        return Exchange(task, language, roughen(random, question, language), answer)
    kind, colour = random.choice(KINDS), random.choice(list(COLOURS))
    if task == "colour":
        it = f"the {kind}" if language == "en" else ZH_KIND[kind]
    else:
        it = f"the {colour} shape" if language == "en" else ZH_COLOUR[colour] + "的形状"
    question = roughen(random, ask(random, task, language, it=it), language)
    return Exchange("no_image", language, question, WORDINGS[language].no_image_answer)
