"""The wordings of both languages (`wordings_en`, `wordings_zh`) under one type."""

from __future__ import annotations

from dataclasses import dataclass

from demo_training import wordings_en, wordings_zh


@dataclass(frozen=True, slots=True, kw_only=True)
class Wordings:
    """Texts of one language.

    Attributes:
        questions: For each task its questions, with names in braces.
        fillers: Possible values of each name in the questions on other subjects.
        hints: Requests for brevity, appended to a question.
        hello_answer: The answer to a greeting.
        other_answer: The answer to questions on other subjects.
        no_image_answer: The answer to a question about an image that was not sent.
    """

    questions: dict[str, tuple[str, ...]]
    fillers: dict[str, tuple[str, ...]]
    hints: tuple[str, ...]
    hello_answer: str
    other_answer: str
    no_image_answer: str


WORDINGS = {
    "en": Wordings(
        questions=wordings_en.ASK,
        fillers=wordings_en.FILLERS,
        hints=wordings_en.HOW,
        hello_answer=wordings_en.HELLO_ANSWER,
        other_answer=wordings_en.OTHER_ANSWER,
        no_image_answer=wordings_en.NO_IMAGE_ANSWER,
    ),
    "zh": Wordings(
        questions=wordings_zh.ASK,
        fillers=wordings_zh.FILLERS,
        hints=wordings_zh.HOW,
        hello_answer=wordings_zh.HELLO_ANSWER,
        other_answer=wordings_zh.OTHER_ANSWER,
        no_image_answer=wordings_zh.NO_IMAGE_ANSWER,
    ),
}
