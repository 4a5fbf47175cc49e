"""Printed words."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from random import Random

import numpy as np
from PIL import ImageFont
import pytest

from demo_training.images import render
from demo_training.lettering import (
    LONGEST,
    PILLOW_FONT,
    Fonts,
    fit,
    has_letters,
    invent_text,
    open_font,
)
from demo_training.scenes import Scene, invent, invent_collage


WHITE, BLACK = (255, 255, 255), (0, 0, 0)
ROOM = (20.0, 40.0, 180.0, 100.0)


@pytest.mark.parametrize("seed", range(12))
def test_a_word_is_printed_where_it_says(seed):
    word = fit(Random(seed), "STOP", "black", BLACK, ROOM)
    scene = Scene(200, 140, (WHITE, WHITE), False, 0.0, False, None, None, (), (word,))

    ink = np.asarray(render(scene)).min(-1) < 128

    rows, columns = np.nonzero(ink)
    left, top, right, bottom = word.box
    assert len(rows) > 20
    assert left - 2 <= columns.min() < columns.max() <= right + 2
    assert top - 2 <= rows.min() < rows.max() <= bottom + 2
    assert list(word.centres) == sorted(word.centres)
    assert left < word.centres[0][0] < word.centres[-1][0] < right


@pytest.fixture
def font_files(tmp_path) -> Path:
    """A folder of font files, all of which are Pillow's own font under other names."""
    held = open_font(PILLOW_FONT, 20).path
    assert isinstance(held, BytesIO)
    (tmp_path / "deep").mkdir()
    for name in ("some.ttf", "deep/dejavu.otf", "symbol.ttf", "some.txt"):
        (tmp_path / name).write_bytes(held.getvalue())
    return tmp_path


def test_without_named_fonts_every_word_is_in_the_font_of_pillow():
    scenes = [invent(Random(seed), 128, 128, 0, word=True) for seed in range(40)]
    scenes += [invent_collage(Random(seed), 256, 256) for seed in range(10)]

    words = [word for scene in scenes for word in scene.words]
    assert len(words) > 50
    assert {word.font for word in words} == {PILLOW_FONT}


def test_named_fonts_are_used_besides(font_files):
    fonts = Fonts.under(font_files)

    dejavu, some = (str(font_files / name) for name in ("deep/dejavu.otf", "some.ttf"))
    assert fonts == Fonts(readable=(dejavu, some), common=(dejavu,))
    scenes = [invent_collage(Random(seed), 256, 256, fonts=fonts) for seed in range(40)]
    words = [word for scene in scenes for word in scene.words]
    times = [sum(word.font == file for word in words) for file in (dejavu, some, PILLOW_FONT)]
    assert min(times) > 0
    assert sum(times) == len(words)


def test_a_folder_without_readable_fonts_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"no readable .* under {tmp_path}"):
        Fonts.under(tmp_path)


def test_layout_needs_no_library_beside_pillow(font_files):
    for file in (PILLOW_FONT, str(font_files / "some.ttf")):
        assert open_font(file, 20).layout_engine == ImageFont.Layout.BASIC


def test_fonts_of_boxes_are_told_from_fonts_of_letters(monkeypatch):
    font = open_font(PILLOW_FONT, 20)
    assert has_letters(font)

    box = font.getmask("\uffff")  # what stands for a letter that a font lacks
    monkeypatch.setattr(font, "getmask", lambda _text: box)
    assert not has_letters(font)


def test_words_and_numbers_of_many_kinds_are_invented():
    texts = [invent_text(Random(seed)) for seed in range(400)]

    assert {len(text) for text in texts} == set(range(1, LONGEST + 1))
    for kind in (str.isdigit, str.isupper, str.islower, str.istitle):
        assert sum(map(kind, texts)) > 20


def test_a_word_stands_apart_from_the_shapes():
    for seed in range(60):
        scene = invent(Random(seed), 160, 128, 2, word=True)
        assert scene.word is not None
        left, top, right, bottom = scene.word.box
        for shape in scene.shapes:
            other = shape.box
            assert right < other[0] or other[2] < left or bottom < other[1] or other[3] < top, seed
