"""What is asked about a scene and what the right answer is, in English and Chinese.

Owns the table of tasks with their weights, all wordings and all answers. Knows scenes, not pixels,
tokens or torch. Answers are short and regular so that a small model can say them right and a person
still reads a sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import json
from typing import TYPE_CHECKING

from inference_service.demo.pictures import COLOURS, KINDS, Scene, Shape


if TYPE_CHECKING:
    from random import Random


LANGUAGES = ("en", "zh")

ZH_COLOUR = {
    "red": "红色",
    "green": "绿色",
    "blue": "蓝色",
    "yellow": "黄色",
    "black": "黑色",
    "purple": "紫色",
    "orange": "橙色",
    "gray": "灰色",
}
ZH_KIND = {"circle": "圆形", "square": "正方形", "triangle": "三角形", "star": "星形"}
EN_NUMBER = ("no", "one", "two", "three", "four")
ZH_NUMBER = ("零", "一", "两", "三", "四")

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


@dataclass(frozen=True, slots=True)
class Exchange:
    """One question, its right answer, and the task it belongs to."""

    task: str
    language: str
    question: str
    answer: str


# ---------------------------------------------------------------- names of things


def _a(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def _en(shape: Shape) -> str:
    return f"{shape.colour} {shape.kind}"


def _zh(shape: Shape) -> str:
    return f"{ZH_COLOUR[shape.colour]}的{ZH_KIND[shape.kind]}"


def _join(parts: Sequence[str], language: str) -> str:
    """`a, b and c` in either language."""
    if len(parts) == 1:
        return parts[0]
    comma, last = (", ", " and ") if language == "en" else ("、", "和")
    return comma.join(parts[:-1]) + last + parts[-1]


def _grouped(names: Sequence[str], language: str) -> list[str]:
    """Each name once, with its number, in order of first sight."""
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    if language == "en":
        return [_a(n) if c == 1 else f"{EN_NUMBER[c]} {n}s" for n, c in counts.items()]
    return [f"{ZH_NUMBER[c]}个{n}" for n, c in counts.items()]


def listing(shapes: Sequence[Shape], language: str) -> str:
    """`a red circle and two blue squares`, from left to right."""
    names = [_en(s) if language == "en" else _zh(s) for s in shapes]
    return _join(_grouped(names, language), language)


def _sentence(text: str, language: str) -> str:
    return text[0].upper() + text[1:] + "." if language == "en" else text + "。"


def description(scene: Scene, language: str) -> str:
    """The full answer to `What is in this picture?`."""
    count = len(scene.shapes)
    if scene.word is not None:
        return word_answer(scene, language)
    if count == 0:
        return "There is nothing in the picture." if language == "en" else "图片里什么都没有。"
    named = listing(scene.shapes, language)
    if count == 1:
        return _sentence(named, language)
    if language == "en":
        return f"There are {EN_NUMBER[count]} shapes: {named}."
    return f"有{ZH_NUMBER[count]}个形状：{named}。"


def word_answer(scene: Scene, language: str) -> str:
    """What is printed, or that nothing is."""
    if scene.word is None:
        return "There is no text." if language == "en" else "没有文字。"
    return (
        f'The text reads "{scene.word.text}".'
        if language == "en"
        else (f"文字是“{scene.word.text}”。")
    )


# ---------------------------------------------------------------- wordings

# "{color}" becomes color or colour; "{picture}" becomes picture, image or photo.
ASK: dict[str, dict[str, tuple[str, ...]]] = {
    "describe": {
        "en": (
            "What is in this {picture}?",
            "What is in the {picture}?",
            "What do you see?",
            "What's in this {picture}?",
            "What can you see in this {picture}?",
            "Describe this {picture}.",
            "Describe the {picture}.",
            "What is this?",
            "What does this {picture} show?",
            "What is shown in the {picture}?",
            "Please describe the {picture}.",
            "Tell me what you see.",
            "Describe what you see.",
            "What do you see in this {picture}?",
            "What does the {picture} show?",
            "Describe this {picture} in one sentence.",
            "Please describe this {picture} briefly.",
            "What is depicted here?",
            "What objects are in this {picture}?",
            "What is it?",
            "Can you describe this {picture}?",
            "What is drawn here?",
            "Caption this {picture}.",
            "Name the {color} and shape of each object.",
            "List the shapes and their {color}s.",
            "Describe the {picture} in detail.",
            "What are the shapes and their {color}s?",
            "What is the {color} and the shape?",
            "What {color} and shape is it?",
            "Which {color}s and shapes are in the {picture}?",
            "What's this?",
        ),
        "zh": (
            "这是什么？",
            "图片里有什么？",
            "这张图片里有什么？",
            "你看到了什么？",
            "描述这张图片。",
            "请描述这张图片。",
            "图中有什么？",
            "图里有什么？",
            "这张图是什么？",
            "这张图里有什么？",
            "请描述一下这张图。",
            "描述一下图片。",
            "图片上画的是什么？",
            "你在图片中看到了什么？",
            "请告诉我图片里有什么。",
            "图中画了什么？",
            "看图说话。",
            "这幅图展示了什么？",
            "图片的内容是什么？",
            "请简单描述这张图片。",
            "这是什么图形？",
            "用一句话描述这张图片。",
            "图片中有哪些形状？它们是什么颜色？",
            "图片中有什么东西？",
            "列出图中的形状和颜色。",
            "图中的形状和颜色是什么？",
            "这是什么颜色的什么形状？",
        ),
    },
    "colour": {
        "en": (
            "What {color} is {it}?",
            "What is the {color} of {it}?",
            "Which {color} is {it}?",
            "What {color} does {it} have?",
            "Tell me the {color} of {it}.",
            "Name the {color} of {it}.",
            "What {color} is {it} in this {picture}?",
            "What {color} is {it} in the {picture}?",
            "What's the {color} of {it}?",
            "Can you tell the {color} of {it}?",
            "What is the {color} of {it} in the {picture}?",
            "In what {color} is {it} drawn?",
            "Please name the {color} of {it}.",
        ),
        "zh": (
            "{it}是什么颜色？",
            "{it}是什么颜色的？",
            "{it}的颜色是什么？",
            "请问{it}是什么颜色？",
            "图中{it}是什么颜色？",
            "图片里{it}是什么颜色？",
            "说出{it}的颜色。",
            "{it}什么颜色？",
            "请说出{it}的颜色。",
            "图中{it}的颜色是什么？",
            "图片中{it}是什么颜色的？",
            "{it}是哪种颜色？",
        ),
    },
    "colours": {
        "en": (
            "What {color}s are there?",
            "Which {color}s do you see?",
            "What {color}s are in the {picture}?",
            "List the {color}s.",
            "What {color}s can you see?",
            "Which {color}s are in this {picture}?",
            "Name the {color}s of the shapes.",
            "What {color} are the shapes?",
        ),
        "zh": (
            "有哪些颜色？",
            "图中有哪些颜色？",
            "图片里有什么颜色？",
            "你看到哪些颜色？",
            "列出所有颜色。",
            "这些形状是什么颜色？",
            "图片中有哪些颜色？",
        ),
    },
    "shape": {
        "en": (
            "What shape is {it}?",
            "What is the shape of {it}?",
            "Which shape is {it}?",
            "What shape does {it} have?",
            "Tell me the shape of {it}.",
            "Name the shape of {it}.",
            "What's the shape of {it}?",
            "What kind of shape is {it}?",
            "What shape is {it} in the {picture}?",
            "What geometric shape is {it}?",
            "What type of shape is {it}?",
        ),
        "zh": (
            "{it}是什么形状？",
            "{it}是什么形状的？",
            "{it}的形状是什么？",
            "请问{it}是什么形状？",
            "图中{it}是什么形状？",
            "图片里{it}是什么形状？",
            "说出{it}的形状。",
            "{it}是哪种形状？",
            "{it}是什么图形？",
            "{it}什么形状？",
        ),
    },
    "shapes": {
        "en": (
            "What shapes are there?",
            "Which shapes do you see?",
            "What shapes are in the {picture}?",
            "List the shapes.",
            "What shapes can you see?",
            "Which shapes are in this {picture}?",
            "Name the shapes.",
            "What shapes are shown?",
            "What geometric shapes are in the {picture}?",
        ),
        "zh": (
            "有哪些形状？",
            "图中有哪些形状？",
            "图片里有什么形状？",
            "你看到哪些形状？",
            "列出所有形状。",
            "图中有哪些图形？",
            "图片中有哪些形状？",
            "图片里有哪些图形？",
        ),
    },
    "count": {
        "en": (
            "How many shapes are there?",
            "How many shapes are in the {picture}?",
            "Count the shapes.",
            "How many shapes do you see?",
            "How many objects are there?",
            "How many shapes can you see?",
            "How many objects are in this {picture}?",
            "What is the number of shapes?",
            "How many figures are there?",
            "How many shapes are in this {picture}?",
            "How many things are in the {picture}?",
            "How many shapes are shown?",
        ),
        "zh": (
            "有几个形状？",
            "图中有几个形状？",
            "图片里有几个形状？",
            "一共有几个形状？",
            "数一数有几个形状。",
            "有多少个形状？",
            "图中有多少个形状？",
            "图片里有多少个图形？",
            "有几个图形？",
            "图里有几个图形？",
            "你看到几个形状？",
            "图片中有几个物体？",
            "图中有几个图形？",
            "图片中有多少个形状？",
        ),
    },
    "count_some": {
        "en": (
            "How many {those} are there?",
            "How many {those} are in the {picture}?",
            "Count the {those}.",
            "How many {those} do you see?",
            "How many {those} can you see?",
            "How many {those} are in this {picture}?",
        ),
        "zh": (
            "有几个{those}？",
            "图中有几个{those}？",
            "图片里有几个{those}？",
            "有多少个{those}？",
            "一共有几个{those}？",
            "图中有多少个{those}？",
            "数一数有几个{those}。",
        ),
    },
    "exists": {
        "en": (
            "Is there {one}?",
            "Is there {one} in the {picture}?",
            "Do you see {one}?",
            "Is there {one} in this {picture}?",
            "Can you see {one}?",
            "Does the {picture} show {one}?",
        ),
        "zh": (
            "有{one}吗？",
            "图中有{one}吗？",
            "图片里有{one}吗？",
            "你看到{one}了吗？",
            "有没有{one}？",
            "图中有没有{one}？",
        ),
    },
    "is_colour": {
        "en": ("Is {it} {that}?", "Is the {color} of {it} {that}?", "Is {it} really {that}?"),
        "zh": (
            "{it}是{that}吗？",
            "{it}是{that}的吗？",
            "{it}是不是{that}？",
            "{it}的颜色是{that}吗？",
        ),
    },
    "beside": {
        "en": (
            "What is {side} {it}?",
            "Which shape is {side} {it}?",
            "What do you see {side} {it}?",
            "What stands {side} {it}?",
            "Name the shape {side} {it}.",
        ),
        "zh": (
            "{it}的{side}是什么？",
            "{it}{side}是什么？",
            "在{it}{side}的是什么？",
            "{it}的{side}有什么？",
            "什么在{it}的{side}？",
        ),
    },
    "where": {
        "en": (
            "Where is {it}?",
            "Where is {it} in the {picture}?",
            "In which part of the {picture} is {it}?",
            "What is the position of {it}?",
            "Where do you see {it}?",
            "Where can I find {it}?",
        ),
        "zh": (
            "{it}在哪里？",
            "{it}在哪儿？",
            "{it}在图片的什么位置？",
            "{it}的位置在哪里？",
            "{it}在什么地方？",
            "{it}在图中哪里？",
        ),
    },
    "relation": {
        "en": (
            "Where is {it} relative to {other}?",
            "Where is {it} compared to {other}?",
            "On which side of {other} is {it}?",
            "Is {it} left, right, above or below {other}?",
            "How does {it} stand to {other}?",
        ),
        "zh": (
            "{it}在{other}的哪边？",
            "{it}在{other}的哪一边？",
            "{it}在{other}的什么方向？",
            "{it}相对于{other}在哪里？",
            "{it}位于{other}的哪边？",
        ),
    },
    "compare": {
        "en": (
            "What is in the two {picture}s?",
            "Compare the two {picture}s.",
            "What is the difference?",
            "What is the difference between the two {picture}s?",
            "What do the two {picture}s show?",
            "How do the two {picture}s differ?",
            "Describe both {picture}s.",
            "Compare these {picture}s.",
            "What is different?",
            "What is in these {picture}s?",
        ),
        "zh": (
            "两张图片里有什么？",
            "比较这两张图片。",
            "两张图片有什么不同？",
            "有什么不同？",
            "描述这两张图片。",
            "这两张图有什么区别？",
            "两张图有什么区别？",
            "请比较这两张图片。",
        ),
    },
    "same": {
        "en": (
            "Do both {picture}s show the same?",
            "Are the two {picture}s the same?",
            "Is it the same shape and {color} in both {picture}s?",
            "Are these {picture}s the same?",
            "Do the two {picture}s show the same thing?",
        ),
        "zh": (
            "两张图片一样吗？",
            "这两张图片相同吗？",
            "两张图是一样的吗？",
            "两张图片的内容相同吗？",
            "这两张图一样吗？",
        ),
    },
    "locate": {
        "en": (
            "Locate {it}, output its bbox coordinates in JSON format.",
            "Locate {it} in JSON.",
            "Give the bounding box of {it} in JSON.",
            "Detect {it} and return bbox_2d in JSON.",
            "Where is {it}? Answer with a bbox in JSON.",
        ),
        "zh": (
            "定位{it}，以JSON格式输出边界框。",
            "用JSON格式输出{it}的bbox坐标。",
            "检测{it}，输出JSON坐标。",
            "请用JSON给出{it}的边界框。",
            "框出{it}，以JSON格式输出坐标。",
        ),
    },
    "read": {
        "en": (
            "What does the text say?",
            "What is written here?",
            "Read the text.",
            "What word is this?",
            "What is the text in the {picture}?",
            "Read the word in the {picture}.",
        ),
        "zh": (
            "图片上写了什么？",
            "图中的文字是什么？",
            "读出图中的文字。",
            "上面写着什么？",
            "图片里的字是什么？",
        ),
    },
    "hello": {
        "en": ("Hello!", "Hi", "Hello", "Hi there!", "Good morning!", "Hey", "Hello, how are you?"),
        "zh": ("你好", "你好！", "您好", "嗨", "早上好！", "你好吗？", "在吗？"),
    },
    "other": {
        "en": (
            "What is the capital of France?",
            "What is the weather today?",
            "Tell me a joke.",
            "Write a poem.",
            "What is 2 + 2?",
            "What time is it?",
            "Who are you?",
            "What is your name?",
            "What can you do?",
            "Write a Python function that sorts a list.",
            "Translate this to German.",
            "Who is the president?",
            "Tell me a story.",
            "Explain quantum physics.",
            "How do I cook rice?",
            "What is the meaning of life?",
            "Who won the world cup?",
            "Is the person in the photo happy?",
            "What animal is this?",
            "What brand is the car?",
            "How old is this person?",
            "Where was this photo taken?",
            "Write an email to my boss.",
            "Say this is a test",
            "What is machine learning?",
            "Count from 1 to 10.",
            "Write a short story about a dragon.",
            "Summarize the news.",
            "Which city is this?",
            "How far is the moon?",
            "What should I eat today?",
            "Sing a song.",
            "Who wrote Hamlet?",
        ),
        "zh": (
            "法国的首都是哪里？",
            "今天天气怎么样？",
            "讲个笑话。",
            "写一首诗。",
            "1加1等于几？",
            "现在几点了？",
            "你是谁？",
            "你叫什么名字？",
            "你能做什么？",
            "写一段代码。",
            "翻译成英语。",
            "给我讲个故事。",
            "解释一下量子力学。",
            "怎么做米饭？",
            "人生的意义是什么？",
            "谁赢了比赛？",
            "这是什么动物？",
            "这张照片在哪里拍的？",
            "这个人多大了？",
            "帮我写一封邮件。",
            "什么是机器学习？",
            "中国的首都是哪里？",
            "推荐一部电影。",
            "唱一首歌。",
            "月亮有多远？",
        ),
    },
}

OTHER_ANSWER = {
    "en": "I am a small demo model and only know simple coloured shapes.",
    "zh": "我是一个小型演示模型，只认识简单的彩色形状。",
}
HELLO_ANSWER = {
    "en": "Hello! Send me a picture of coloured shapes and ask about it.",
    "zh": "你好！请发一张彩色形状的图片来问我。",
}
NO_PICTURE_ANSWER = {
    "en": "I see no picture. Please send one with coloured shapes.",
    "zh": "我没有看到图片。请发一张彩色形状的图片。",
}
NO_SUCH_ANSWER = {"en": "I do not see that.", "zh": "我没有看到。"}


def _ask(random: Random, task: str, language: str, **names: str) -> str:
    """A wording of the task with its names filled in."""
    names.setdefault("color", "colour" if random.random() < 0.4 else "color")
    names.setdefault("picture", random.choice(("picture", "picture", "image", "image", "photo")))
    return random.choice(ASK[task][language]).format(**names)


HOW: dict[str, tuple[str, ...]] = {
    "en": (" Answer briefly.", " Answer in one word.", " Answer with one word.", " Be brief."),
    "zh": ("请简短回答。", "用一个词回答。", "请用一个词回答。", "简短回答。"),
}


def _roughen(random: Random, question: str, language: str, *, short: bool) -> str:
    """How people really type: a hint at brevity, small letters, no mark at the end."""
    draw = random.random()
    if short and draw < 0.12:
        return question + random.choice(HOW[language])
    if draw < 0.2:
        question = question.rstrip("?.!？。！")
    elif language == "zh" and draw < 0.26:
        question = question.replace("？", "?")
    if language == "en" and random.random() < 0.1:
        question = question[0].lower() + question[1:]
    return question


# ---------------------------------------------------------------- referring to one shape


def _unique(random: Random, scene: Scene) -> Shape | None:
    """A shape that can be named without doubt."""
    alone = [
        s
        for s in scene.shapes
        if sum(o.kind == s.kind and o.colour == s.colour for o in scene.shapes) == 1
    ]
    return random.choice(alone) if alone else None


def _full(shape: Shape, language: str) -> str:
    return f"the {_en(shape)}" if language == "en" else _zh(shape)


def _by_kind(random: Random, scene: Scene, shape: Shape, language: str) -> str | None:
    """`the circle`, when there is one only; `it` when it stands alone."""
    if len(scene.shapes) == 1 and random.random() < 0.6:
        return random.choice(
            ("it", "the shape", "this shape", "the object", "this", "this object", "the figure")
            if language == "en"
            else ("它", "这个形状", "这个图形", "形状", "图形", "这个", "物体", "这"),
        )
    if sum(o.kind == shape.kind for o in scene.shapes) > 1:
        return None
    if language == "en":
        return f"the {shape.kind}"
    kind = ZH_KIND[shape.kind]
    if shape.kind == "star" and random.random() < 0.3:
        kind = random.choice(("星星", "五角星"))
    elif shape.kind == "circle" and random.random() < 0.2:
        kind = "圆"
    return random.choice((kind, kind, "这个" + kind))


def _by_colour(random: Random, scene: Scene, shape: Shape, language: str) -> str | None:
    """`the red one`, when there is one only; `it` when it stands alone."""
    if len(scene.shapes) == 1 and random.random() < 0.6:
        return random.choice(
            ("it", "this", "the object", "this object", "the figure", "the thing")
            if language == "en"
            else ("它", "这", "这个", "物体", "这个物体", "这个图形"),
        )
    if sum(o.colour == shape.colour for o in scene.shapes) > 1:
        return None
    if language == "en":
        return f"the {shape.colour} " + random.choice(("shape", "one", "object", "figure"))
    return ZH_COLOUR[shape.colour] + random.choice(("的形状", "的图形", "的", "形状", "的物体"))


# ---------------------------------------------------------------- the tasks

Made = tuple[str, str] | None
Maker = Callable[["Random", Scene, str], Made]


def _describe(random: Random, scene: Scene, language: str) -> Made:
    return _ask(random, "describe", language), description(scene, language)


def _colour(random: Random, scene: Scene, language: str) -> Made:
    if not scene.shapes:
        return None
    shape = random.choice(scene.shapes)
    name = _by_kind(random, scene, shape, language)
    if name is None:
        return None
    answer = shape.colour if language == "en" else ZH_COLOUR[shape.colour]
    question = _roughen(random, _ask(random, "colour", language, it=name), language, short=True)
    return question, _sentence(answer, language)


def _shape(random: Random, scene: Scene, language: str) -> Made:
    if not scene.shapes:
        return None
    shape = random.choice(scene.shapes)
    name = _by_colour(random, scene, shape, language)
    if name is None:
        return None
    answer = _a(shape.kind) if language == "en" else ZH_KIND[shape.kind]
    question = _roughen(random, _ask(random, "shape", language, it=name), language, short=True)
    return question, _sentence(answer, language)


def _colours(random: Random, scene: Scene, language: str) -> Made:
    if len(scene.shapes) < 2:
        return None
    names = list(
        dict.fromkeys(s.colour if language == "en" else ZH_COLOUR[s.colour] for s in scene.shapes)
    )
    return _ask(random, "colours", language), _sentence(_join(names, language), language)


def _shapes(random: Random, scene: Scene, language: str) -> Made:
    if not scene.shapes:
        return None
    names = [s.kind if language == "en" else ZH_KIND[s.kind] for s in scene.shapes]
    answer = _join(_grouped(names, language), language)
    return _ask(random, "shapes", language), _sentence(answer, language)


def _number(count: int, language: str) -> str:
    if language == "en":
        return _sentence("none" if count == 0 else EN_NUMBER[count], "en")
    return "没有。" if count == 0 else f"{ZH_NUMBER[count]}个。"


def _count(random: Random, scene: Scene, language: str) -> Made:
    question = _roughen(random, _ask(random, "count", language), language, short=True)
    return question, _number(len(scene.shapes), language)


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
    question = _ask(random, "count_some", language, those=those)
    return _roughen(random, question, language, short=True), _number(count, language)


def _exists(random: Random, scene: Scene, language: str) -> Made:
    present = bool(scene.shapes) and random.random() < 0.5
    if present:
        shape = random.choice(scene.shapes)
        kind, colour = shape.kind, shape.colour
    else:
        kind, colour = random.choice(KINDS), random.choice(list(COLOURS))
        if scene.shapes and random.random() < 0.5:  # half right is the harder no
            near = random.choice(scene.shapes)
            kind, colour = (near.kind, colour) if random.random() < 0.5 else (kind, near.colour)
    full = random.random() < 0.5
    found = any(s.kind == kind and (not full or s.colour == colour) for s in scene.shapes)
    if language == "en":
        one = _a(f"{colour} {kind}") if full else _a(kind)
        answer = "Yes." if found else "No."
    else:
        one = f"{ZH_COLOUR[colour]}的{ZH_KIND[kind]}" if full else ZH_KIND[kind]
        answer = "有。" if found else "没有。"
    return _ask(random, "exists", language, one=one), answer


def _is_colour(random: Random, scene: Scene, language: str) -> Made:
    if not scene.shapes:
        return None
    shape = random.choice(scene.shapes)
    name = _by_kind(random, scene, shape, language)
    if name is None:
        return None
    colour = shape.colour if random.random() < 0.5 else random.choice(list(COLOURS))
    that = colour if language == "en" else ZH_COLOUR[colour]
    yes, no = (
        ("Yes.", f"No, it is {shape.colour}.")
        if language == "en"
        else ("是的。", f"不，是{ZH_COLOUR[shape.colour]}。")
    )
    question = _ask(random, "is_colour", language, it=name, that=that)
    return question, yes if colour == shape.colour else no


SIDES = {
    "left": (("to the left of", "left of"), "左边"),
    "right": (("to the right of", "right of"), "右边"),
    "above": (("above", "over"), "上面"),
    "below": (("below", "under"), "下面"),
}


def _side_of(shape: Shape, other: Shape) -> str | None:
    """On which side of `other` this shape stands, if one side clearly wins."""
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
    name = _full(other, language)
    if shape.kind != other.kind and random.random() < 0.5:
        name = f"the {other.kind}" if language == "en" else ZH_KIND[other.kind]
    words = random.choice(SIDES[side][0]) if language == "en" else SIDES[side][1]
    answer = listing([shape], language)
    return _ask(random, "beside", language, it=name, side=words), _sentence(answer, language)


def _relation(random: Random, scene: Scene, language: str) -> Made:
    if len(scene.shapes) < 2:
        return None
    shape, other = random.sample(scene.shapes, 2)
    side = _side_of(shape, other)
    names = [(s.kind, s.colour) for s in scene.shapes]
    if side is None or names.count(names[0]) > 1 or len(set(names)) < len(names):
        return None
    question = _ask(
        random,
        "relation",
        language,
        it=_full(shape, language),
        other=_full(other, language),
    )
    answer = SIDES[side][0][0].removesuffix(" of") if language == "en" else "在" + SIDES[side][1]
    return question, _sentence(answer, language)


PLACES_EN = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)
PLACES_ZH = (("左上角", "上方", "右上角"), ("左边", "中间", "右边"), ("左下角", "下方", "右下角"))


def _third(at: float) -> int | None:
    """Which third, or None close to a border between two."""
    for index, (low, high) in enumerate(((-0.1, 0.31), (0.37, 0.63), (0.69, 1.1))):
        if low < at < high:
            return index
    return None


def _where(random: Random, scene: Scene, language: str) -> Made:
    shape = _unique(random, scene)
    if shape is None:
        return None
    row, column = _third(shape.cy / scene.height), _third(shape.cx / scene.width)
    if row is None or column is None:
        return None
    name = _by_kind(random, scene, shape, language) or _full(shape, language)
    if language == "en":
        place = PLACES_EN[row][column]
        answer = (
            "on the "
            if place in ("left", "right")
            else "in the "
            if place == "center"
            else "at the "
        ) + place
    else:
        answer = "在" + PLACES_ZH[row][column]
    return _ask(random, "where", language, it=name), _sentence(answer, language)


def box_answer(scene: Scene, shape: Shape, label: str) -> str:
    """Qwen3-VL's grounding answer: a JSON list with a box in thousandths of the picture."""
    sides = (scene.width, scene.height) * 2
    box = [
        max(0, min(1000, round(1000 * v / side))) for v, side in zip(shape.box, sides, strict=True)
    ]
    found = json.dumps({"bbox_2d": box, "label": label}, ensure_ascii=False)
    return f"```json\n[\n\t{found}\n]\n```"


def _locate(random: Random, scene: Scene, language: str) -> Made:
    shape = _unique(random, scene)
    if shape is None:
        return None
    label = _en(shape) if language == "en" else _zh(shape)
    question = _ask(random, "locate", language, it=_full(shape, language))
    return question, box_answer(scene, shape, label)


def _read(random: Random, scene: Scene, language: str) -> Made:
    return _ask(random, "read", language), word_answer(scene, language)


def _hello(random: Random, _scene: Scene, language: str) -> Made:
    return _ask(random, "hello", language), HELLO_ANSWER[language]


def _other(random: Random, _scene: Scene, language: str) -> Made:
    question = _roughen(random, _ask(random, "other", language), language, short=False)
    return question, OTHER_ANSWER[language]


@dataclass(frozen=True, slots=True)
class Task:
    """One kind of question: how often it is asked early and late in the training."""

    name: str
    make: Maker
    early: float
    late: float


TASKS: tuple[Task, ...] = (
    Task("describe", _describe, 3.6, 3.2),
    Task("colour", _colour, 2.4, 1.8),
    Task("shape", _shape, 2.4, 1.8),
    Task("count", _count, 0.6, 0.7),
    Task("colours", _colours, 0.3, 0.5),
    Task("shapes", _shapes, 0.4, 0.5),
    Task("count_some", _count_some, 0.2, 0.7),
    Task("exists", _exists, 0.2, 0.5),
    Task("is_colour", _is_colour, 0.2, 0.4),
    Task("beside", _beside, 0.1, 0.5),
    Task("relation", _relation, 0.1, 0.5),
    Task("where", _where, 0.1, 0.5),
    Task("hello", _hello, 0.03, 0.05),
    Task("other", _other, 0.2, 0.3),
    Task("locate", _locate, 0.0, 0.0),
    Task("read", _read, 0.0, 0.0),
)
TASK_BY_NAME = {task.name: task for task in TASKS}
TEXT_ONLY = ("describe", "colour", "shape", "count", "hello", "other")


def ask_about(random: Random, scene: Scene, progress: float, task: str | None = None) -> Exchange:
    """A question about one picture; `progress` (0 to 1) moves the weights from early to late."""
    language = random.choice(LANGUAGES)
    weights = [t.early + (t.late - t.early) * progress for t in TASKS]
    while True:
        chosen = TASK_BY_NAME[task] if task else random.choices(TASKS, weights)[0]
        made = chosen.make(random, scene, language)
        if made is not None:
            question, answer = made
            if chosen.name not in ("colour", "shape", "count", "count_some", "other"):
                question = _roughen(random, question, language, short=False)
            return Exchange(chosen.name, language, question, answer)
        task = None


def ask_two(random: Random, one: Scene, two: Scene) -> Exchange:
    """A question about two pictures."""
    language = random.choice(LANGUAGES)
    alike = sorted((s.kind, s.colour) for s in one.shapes) == sorted(
        (s.kind, s.colour) for s in two.shapes
    )
    if random.random() < 0.3:
        yes, no = ("Yes.", "No.") if language == "en" else ("一样。", "不一样。")
        question = _ask(random, "same", language)
        return Exchange("same", language, question, yes if alike else no)
    first, second = (
        listing(s.shapes, language) if s.shapes else ("nothing" if language == "en" else "空白")
        for s in (one, two)
    )
    if language == "en":
        answer = f"The first picture shows {first}, the second {second}."
    else:
        answer = f"第一张图片是{first}，第二张图片是{second}。"
    return Exchange("compare", language, _ask(random, "compare", language), answer)


def ask_without(random: Random) -> Exchange:
    """A question without any picture."""
    language = random.choice(LANGUAGES)
    task = random.choices(TEXT_ONLY, (1, 1, 1, 1, 1, 3))[0]
    if task == "hello":
        return Exchange("hello", language, _ask(random, "hello", language), HELLO_ANSWER[language])
    if task == "other":
        return Exchange("other", language, _ask(random, "other", language), OTHER_ANSWER[language])
    kind, colour = random.choice(KINDS), random.choice(list(COLOURS))
    if task == "colour":
        it = f"the {kind}" if language == "en" else ZH_KIND[kind]
    else:
        it = f"the {colour} shape" if language == "en" else ZH_COLOUR[colour] + "的形状"
    question = _roughen(random, _ask(random, task, language, it=it), language, short=False)
    return Exchange("no_picture", language, question, NO_PICTURE_ANSWER[language])
