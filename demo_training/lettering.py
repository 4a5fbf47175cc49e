"""Generates and draws printed words: text, font, position.

By default every word is in Pillow's built-in font, so that the same `Random` gives the same pixels on every machine.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from random import Random
import string

from PIL import ImageDraw, ImageFont

from demo_training.palette import Rgb


# Symbol and handwriting fonts, and fonts with strokes too thin for small images.
UNREADABLE = (
    "symbol",
    "d05000",
    "z003",
    "emoji",
    "math",
    "thin",
    "hairline",
    "extralight",
    "jsmath",
    "cursor",
)
COMMON = ("dejavu", "liberation")  # used by most programs
COMMON_SHARE, PILLOW_SHARE = 0.35, 0.15
# Font sizes in pixels; few, so that opened fonts are reused.
SIZES = tuple(sorted({round(6 * 1.12**i) for i in range(48)}))

Box = tuple[float, float, float, float]
Font = ImageFont.FreeTypeFont
PILLOW_FONT = ""  # the name for Pillow's built-in font (Aileron)


@dataclass(frozen=True, slots=True)
class Fonts:
    """Font files for words, besides Pillow's built-in font.

    Attributes:
        readable: All fonts.
        common: Those of `COMMON` families.
    """

    readable: tuple[str, ...] = ()
    common: tuple[str, ...] = ()

    @classmethod
    def under(cls, directory: Path) -> Fonts:
        """The fonts with Latin letters in a directory and its subdirectories.

        Raises:
            ValueError: There is no such font.
        """
        files = sorted(str(p) for kind in ("*.ttf", "*.otf") for p in directory.rglob(kind))
        named = [f for f in files if not any(part in f.lower() for part in UNREADABLE)]
        readable = [f for f in named if has_letters(open_font(f, 24))]
        if not readable:
            raise ValueError(f"no readable .ttf or .otf font under {directory}")
        common = [f for f in readable if any(part in f.lower() for part in COMMON)]
        return cls(tuple(readable), tuple(common))

    def choose(self, random: Random) -> str:
        """A font file, or PILLOW_FONT."""
        if not self.readable:
            return PILLOW_FONT
        draw = random.random()
        if draw < PILLOW_SHARE:
            return PILLOW_FONT
        is_common = self.common and draw < PILLOW_SHARE + COMMON_SHARE
        return random.choice(self.common if is_common else self.readable)


PILLOW_ONLY = Fonts()

LONGEST = 8
LENGTH_WEIGHTS = (10, 16, 22, 24, 14, 10, 3, 2)  # of words with 1 to 8 characters
VOWELS, CONSONANTS = "aeiou", "bcdfghjklmnpqrstvwxyz"
SHORT_WORDS = (  # noqa: SIM905 - a word list is more readable as text
    "go no yes hi ok up on off in out cat dog sun sky sea car bus red blue key box cup hat pen map ice "
    "tea egg ant bee bat cow fox pig owl leaf tree rose fish bird bear lion wolf frog duck milk cake rice "
    "soup salt wind rain snow fire lake moon star hope love time work play stop exit open shut push pull "
    "left right east west north south door room home road park sale free menu book page code data test "
    "word text name note mail file hello world apple lemon water music table chair green black white "
    "happy house horse mouse sheep tiger zebra bread pizza cloud storm river stone paper train plane "
    "truck clock radio phone photo video robot python qwen summer winter spring monday friday sunday "
    "coffee orange yellow purple flower garden window school office market street bridge danger notice "
    "quick jump "
).split()


@dataclass(frozen=True, slots=True)
class Word:
    """One printed word; lengths in pixels of its scene.

    Attributes:
        text: The text.
        colour: Name of its colour.
        rgb: The colour.
        font: File of its font, or PILLOW_FONT.
        size: Size of the font.
        origin: Position of the "ls" anchor: left, on the baseline.
        box: Left, top, right, bottom of the ink.
        centres: Centre of each character from left to right, as (x, y).
    """

    text: str
    colour: str
    rgb: Rgb
    font: str
    size: int
    origin: tuple[float, float]
    box: Box
    centres: tuple[tuple[float, float], ...]


@lru_cache(maxsize=4096)
def open_font(file: str, size: int) -> Font:
    """A font of a size in pixels, with Pillow's basic layout, as Raqm may not be installed."""
    if file != PILLOW_FONT:
        return ImageFont.truetype(file, size, layout_engine=ImageFont.Layout.BASIC)
    font = ImageFont.load_default(size)
    assert isinstance(font, Font)  # Pillow is built with FreeType
    assert font.layout_engine == ImageFont.Layout.BASIC
    return font


def has_letters(font: Font) -> bool:
    """Whether the font has Latin letters; a font without them draws the same box for each."""
    return bytes(font.getmask("A")) != bytes(font.getmask("B"))


def invent_text(random: Random) -> str:
    """A random word or number: upper case, digits, lower case or capitalised."""
    draw = random.random()
    if draw < 0.25:
        word = random.choice(SHORT_WORDS)
        return random.choice((word, word.upper(), word.upper(), word.capitalize()))
    length = random.choices(range(1, LONGEST + 1), LENGTH_WEIGHTS)[0]
    if draw < 0.45:
        return "".join(random.choice(string.digits) for _ in range(length))
    if draw < 0.68:
        return "".join(random.choice(string.ascii_uppercase) for _ in range(length))
    first = random.random() < 0.5
    letters = "".join(
        random.choice(CONSONANTS if (i % 2 == 0) == first else VOWELS) for i in range(length)
    )
    return random.choice((letters, letters.upper(), letters.capitalize()))


def fit(
    random: Random, text: str, colour: str, rgb: Rgb, room: Box, *, fonts: Fonts = PILLOW_ONLY
) -> Word:
    """The word at a random place in `room` (left, top, right, bottom), in a random font and size."""
    left, top, right, bottom = room
    file = fonts.choose(random)
    probe = open_font(file, 64).getbbox(text, anchor="ls")
    largest = 64 * min(
        (right - left) / (probe[2] - probe[0]), (bottom - top) / (probe[3] - probe[1])
    )
    share = random.uniform(0.55, 0.98) if random.random() < 0.75 else random.uniform(0.3, 0.6)
    size = SIZES[max(0, bisect_right(SIZES, largest * share) - 1)]
    font = open_font(file, size)
    ink = font.getbbox(text, anchor="ls")
    slack = (max(0.0, right - left - ink[2] + ink[0]), max(0.0, bottom - top - ink[3] + ink[1]))
    centred = random.random() < 0.5
    x = left + slack[0] * (0.5 if centred else random.random()) - ink[0]
    y = top + slack[1] * (0.5 if centred else random.random()) - ink[1]
    ends = [font.getlength(text[:i]) for i in range(len(text) + 1)]
    middle = y + (ink[1] + ink[3]) / 2
    centres = tuple((x + (a + b) / 2, middle) for a, b in pairwise(ends))
    box = (x + ink[0], y + ink[1], x + ink[2], y + ink[3])
    return Word(text, colour, rgb, file, size, (x, y), box, centres)


def draw_word(draw: ImageDraw.ImageDraw, word: Word, scale: int) -> None:
    """Draws the word into an image that is `scale` times as large as its scene."""
    font = open_font(word.font, word.size * scale)
    x, y = word.origin
    draw.text((x * scale, y * scale), word.text, word.rgb, font, anchor="ls")
