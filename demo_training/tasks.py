"""The tasks: questions about one scene, their frequencies and their correct answers.

Answers are short, regular sentences that a small model can learn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import json
from random import Random

from demo_training.labels import hundredths
from demo_training.lettering import Word
from demo_training.naming import (
    EN_NUMBER,
    ZH_COLOUR,
    ZH_KIND,
    ZH_NUMBER,
    chinese,
    english,
    full_name,
    grouped,
    joined,
    listing,
    name_by_colour,
    name_by_kind,
    sentence,
    unique_shape,
    with_article,
)
from demo_training.palette import COLOURS, KINDS
from demo_training.scenes import Scene
from demo_training.shapes import Shape
from demo_training.wordings import WORDINGS


Made = tuple[str, str] | None
Maker = Callable[[Random, Scene, str], Made]


def printed(word: Word, language: str) -> str:
    """`the text "STOP"`."""
    return f'the text "{word.text}"' if language == "en" else f"文字“{word.text}”"


def described(scene: Scene, language: str) -> str:
    """The content of the image as a list: shapes from left to right, then the word."""
    parts = grouped(list(map(_named(language), scene.shapes)), language)
    if scene.word is not None:
        parts.append(printed(scene.word, language))
    return joined(parts, language) if parts else ("nothing" if language == "en" else "空白")


def _named(language: str) -> Callable[[Shape], str]:
    return english if language == "en" else chinese


def description(scene: Scene, language: str) -> str:
    """The full answer to `What is in this picture?`."""
    count = len(scene.shapes)
    if count == 0 and scene.word is None:
        return "There is nothing in the picture." if language == "en" else "图片里什么都没有。"
    named = described(scene, language)
    if count < 2:
        return sentence(named, language)
    if language == "en":
        return f"There are {EN_NUMBER[count]} shapes: {named}."
    return f"有{ZH_NUMBER[count]}个形状：{named}。"


def ask(random: Random, task: str, language: str, **names: str) -> str:
    """A random wording of the task with its names filled in."""
    names.setdefault("color", "colour" if random.random() < 0.4 else "color")
    names.setdefault("picture", random.choice(("picture", "picture", "image", "image", "photo")))
    return random.choice(WORDINGS[language].questions[task]).format(**names)


def roughen(random: Random, question: str, language: str, *, hint: bool = False) -> str:
    """Varies a question like typed text: a request for brevity (if `hint`), lower case, no final punctuation."""
    draw = random.random()
    if hint and draw < 0.12:
        return question + random.choice(WORDINGS[language].hints)
    if draw < 0.2:
        question = question.rstrip("?.!？。！")
    elif language == "zh" and draw < 0.26:
        question = question.replace("？", "?")
    if language == "en" and random.random() < 0.1:
        question = question[0].lower() + question[1:]
    return question


def _describe(random: Random, scene: Scene, language: str) -> Made:
    return ask(random, "describe", language), description(scene, language)


def _colour(random: Random, scene: Scene, language: str) -> Made:
    if not scene.shapes:
        return None
    shape = random.choice(scene.shapes)
    name = name_by_kind(random, scene, shape, language)
    if name is None:
        return None
    answer = shape.colour if language == "en" else ZH_COLOUR[shape.colour]
    return ask(random, "colour", language, it=name), sentence(answer, language)


def _shape(random: Random, scene: Scene, language: str) -> Made:
    if not scene.shapes:
        return None
    shape = random.choice(scene.shapes)
    name = name_by_colour(random, scene, shape, language)
    if name is None:
        return None
    answer = with_article(shape.kind) if language == "en" else ZH_KIND[shape.kind]
    return ask(random, "shape", language, it=name), sentence(answer, language)


def _colours(random: Random, scene: Scene, language: str) -> Made:
    if len(scene.shapes) < 2:
        return None
    names = list(
        dict.fromkeys(s.colour if language == "en" else ZH_COLOUR[s.colour] for s in scene.shapes)
    )
    return ask(random, "colours", language), sentence(joined(names, language), language)


def _shapes(random: Random, scene: Scene, language: str) -> Made:
    if not scene.shapes:
        return None
    names = [s.kind if language == "en" else ZH_KIND[s.kind] for s in scene.shapes]
    answer = joined(grouped(names, language), language)
    return ask(random, "shapes", language), sentence(answer, language)


def _number(count: int, language: str) -> str:
    if language == "en":
        return sentence("none" if count == 0 else EN_NUMBER[count], "en")
    return "没有。" if count == 0 else f"{ZH_NUMBER[count]}个。"


def _count(random: Random, scene: Scene, language: str) -> Made:
    return ask(random, "count", language), _number(len(scene.shapes), language)


def _count_some(random: Random, scene: Scene, language: str) -> Made:
    here = [s.kind for s in scene.shapes] if random.random() < 0.75 else []
    if random.random() < 0.65:
        kind = random.choice(here or KINDS)
        those = kind + "s" if language == "en" else ZH_KIND[kind]
        count = sum(s.kind == kind for s in scene.shapes)
    else:
        colour = random.choice([s.colour for s in scene.shapes] if here else list(COLOURS))
        those = f"{colour} shapes" if language == "en" else f"{ZH_COLOUR[colour]}的形状"
        count = sum(s.colour == colour for s in scene.shapes)
    return ask(random, "count_some", language, those=those), _number(count, language)


def _exists(random: Random, scene: Scene, language: str) -> Made:
    present = bool(scene.shapes) and random.random() < 0.5
    if present:
        shape = random.choice(scene.shapes)
        kind, colour = shape.kind, shape.colour
    else:
        kind, colour = random.choice(KINDS), random.choice(list(COLOURS))
        if scene.shapes and random.random() < 0.5:  # a partial match is harder to deny
            near = random.choice(scene.shapes)
            kind, colour = (near.kind, colour) if random.random() < 0.5 else (kind, near.colour)
    full = random.random() < 0.5
    found = any(s.kind == kind and (not full or s.colour == colour) for s in scene.shapes)
    if language == "en":
        one = with_article(f"{colour} {kind}") if full else with_article(kind)
        answer = "Yes." if found else "No."
    else:
        one = f"{ZH_COLOUR[colour]}的{ZH_KIND[kind]}" if full else ZH_KIND[kind]
        answer = "有。" if found else "没有。"
    return ask(random, "exists", language, one=one), answer


def _is_colour(random: Random, scene: Scene, language: str) -> Made:
    if not scene.shapes:
        return None
    shape = random.choice(scene.shapes)
    name = name_by_kind(random, scene, shape, language)
    if name is None:
        return None
    colour = shape.colour if random.random() < 0.5 else random.choice(list(COLOURS))
    that = colour if language == "en" else ZH_COLOUR[colour]
    yes, no = (
        ("Yes.", f"No, it is {shape.colour}.")
        if language == "en"
        else ("是的。", f"不，是{ZH_COLOUR[shape.colour]}。")
    )
    question = ask(random, "is_colour", language, it=name, that=that)
    return question, yes if colour == shape.colour else no


SIDES = {
    "left": (("to the left of", "left of"), "左边"),
    "right": (("to the right of", "right of"), "右边"),
    "above": (("above", "over"), "上面"),
    "below": (("below", "under"), "下面"),
}


def _side_of(shape: Shape, other: Shape) -> str | None:
    """The side of `other` on which this shape is, if it is clear."""
    dx, dy = shape.cx - other.cx, shape.cy - other.cy
    if abs(dx) > 1.4 * abs(dy):
        return "left" if dx < 0 else "right"
    if abs(dy) > 1.4 * abs(dx):
        return "above" if dy < 0 else "below"
    return None


def _beside(random: Random, scene: Scene, language: str) -> Made:
    if len(scene.shapes) != 2:
        return None
    shape, other = random.sample(scene.shapes, 2)
    side = _side_of(shape, other)
    if side is None or (shape.kind, shape.colour) == (other.kind, other.colour):
        return None
    name = full_name(other, language)
    if shape.kind != other.kind and random.random() < 0.5:
        name = f"the {other.kind}" if language == "en" else ZH_KIND[other.kind]
    words = random.choice(SIDES[side][0]) if language == "en" else SIDES[side][1]
    answer = listing([shape], language)
    return ask(random, "beside", language, it=name, side=words), sentence(answer, language)


def _relation(random: Random, scene: Scene, language: str) -> Made:
    if len(scene.shapes) < 2:
        return None
    shape, other = random.sample(scene.shapes, 2)
    side = _side_of(shape, other)
    names = [(s.kind, s.colour) for s in scene.shapes]
    if side is None or len(set(names)) < len(names):
        return None
    question = ask(
        random,
        "relation",
        language,
        it=full_name(shape, language),
        other=full_name(other, language),
    )
    answer = SIDES[side][0][0].removesuffix(" of") if language == "en" else "在" + SIDES[side][1]
    return question, sentence(answer, language)


PLACES_EN = (
    ("at the top left", "at the top", "at the top right"),
    ("on the left", "in the center", "on the right"),
    ("at the bottom left", "at the bottom", "at the bottom right"),
)
PLACES_ZH = (("左上角", "上方", "右上角"), ("左边", "中间", "右边"), ("左下角", "下方", "右下角"))


def _third(at: float) -> int | None:
    """Index of the third, or None near a border."""
    for index, (low, high) in enumerate(((-0.1, 0.31), (0.37, 0.63), (0.69, 1.1))):
        if low < at < high:
            return index
    return None


def _where(random: Random, scene: Scene, language: str) -> Made:
    shape = unique_shape(random, scene)
    if shape is None:
        return None
    row, column = _third(shape.cy / scene.height), _third(shape.cx / scene.width)
    if row is None or column is None:
        return None
    name = name_by_kind(random, scene, shape, language) or full_name(shape, language)
    answer = PLACES_EN[row][column] if language == "en" else "在" + PLACES_ZH[row][column]
    return ask(random, "where", language, it=name), sentence(answer, language)


def _read(random: Random, scene: Scene, language: str) -> Made:
    if scene.word is None:
        return None
    return ask(random, "read", language), scene.word.text


def _text_colour(random: Random, scene: Scene, language: str) -> Made:
    if scene.word is None:
        return None
    colour = scene.word.colour if language == "en" else ZH_COLOUR[scene.word.colour]
    return ask(random, "text_colour", language), sentence(colour, language)


def _boxes_of(scene: Scene, shapes: Sequence[Shape], language: str) -> str:
    """Qwen3-VL's JSON, in thousandths of the image's sides, in steps of ten."""
    found = [
        {"bbox_2d": [10 * at for at in hundredths(s.box, scene)], "label": _named(language)(s)}
        for s in shapes
    ]
    return json.dumps(found, ensure_ascii=False)


def _locate(random: Random, scene: Scene, language: str) -> Made:
    shape = unique_shape(random, scene)
    if shape is None:
        return None
    name = full_name(shape, language)
    if random.random() < 0.5:
        name = name_by_kind(random, scene, shape, language) or name
    question = ask(random, "locate", language, it=name)
    return question, _boxes_of(scene, [shape], language)


def _locate_all(random: Random, scene: Scene, language: str) -> Made:
    if not scene.shapes:
        return None
    return ask(random, "locate_all", language), _boxes_of(scene, scene.shapes, language)


def hello(random: Random, language: str) -> tuple[str, str]:
    """A greeting and its answer."""
    return ask(random, "hello", language), WORDINGS[language].hello_answer


def other(random: Random, language: str) -> tuple[str, str]:
    """A question on another subject than shapes and words, and the fixed answer to it."""
    fillers = {name: random.choice(them) for name, them in WORDINGS[language].fillers.items()}
    return ask(random, "other", language, **fillers), WORDINGS[language].other_answer


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of question.

    Attributes:
        name: Name of the task and of its wordings.
        make: Generates question and answer, or None if the scene does not allow it.
        of_shapes: Weight for images with shapes.
        of_words: Weight for images with only a word.
        hint: Whether a request for brevity may be added.
    """

    name: str
    make: Maker
    of_shapes: float
    of_words: float
    hint: bool = False


TASKS: tuple[Task, ...] = (
    Task("describe", _describe, 1.5, 1.2),
    Task("colour", _colour, 2.0, 0.0, hint=True),
    Task("shape", _shape, 2.0, 0.0, hint=True),
    Task("count", _count, 1.0, 0.1, hint=True),
    Task("colours", _colours, 0.5, 0.0),
    Task("shapes", _shapes, 0.7, 0.0),
    Task("count_some", _count_some, 0.7, 0.0, hint=True),
    Task("exists", _exists, 0.6, 0.1),
    Task("is_colour", _is_colour, 0.4, 0.0),
    Task("beside", _beside, 1.0, 0.0),
    Task("relation", _relation, 0.9, 0.0),
    Task("where", _where, 1.0, 0.0),
    Task("locate", _locate, 4.5, 0.0),
    Task("locate_all", _locate_all, 0.5, 0.0),
    Task("read", _read, 1.5, 5.0),
    Task("text_colour", _text_colour, 0.3, 0.7),
    Task("hello", lambda random, _, language: hello(random, language), 0.05, 0.05),
    Task("other", lambda random, _, language: other(random, language), 0.7, 0.5),
)
TASK_BY_NAME = {task.name: task for task in TASKS}
