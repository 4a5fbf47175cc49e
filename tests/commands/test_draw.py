"""Boxes and labels on images."""

from __future__ import annotations

import json
import math
from pathlib import Path

from PIL import Image, ImageFont
import pytest

from inference_service.commands.draw import (
    DrawError,
    Fonts,
    draw_boxes,
    image_size,
    open_image,
    plan,
)
from inference_service.domain import ImageInfo
from inference_service.model_spec import BoxNotation
from inference_service.text.output.boxes import groundings
from qwenvl.inference.v1 import usage_pb2 as usage_pb


GOLDEN = Path(__file__).parents[1] / "golden" / "qwen_vl_v1" / "grounding.json"
CASES = [case for case in json.loads(GOLDEN.read_text())["draw"] if case["calls"]]
CIRCLE = "圆"
BDF = """\
STARTFONT 2.1
FONT -test-test-medium-r-normal--15-150-72-72-c-150-iso10646-1
SIZE 15 72 72
FONTBOUNDINGBOX 15 15 0 0
STARTPROPERTIES 3
FONT_ASCENT 15
FONT_DESCENT 0
DEFAULT_CHAR 32
ENDPROPERTIES
CHARS 2
STARTCHAR nothing
ENCODING 32
SWIDTH 1000 0
DWIDTH 15 0
BBX 15 15 0 0
BITMAP
{nothing}ENDCHAR
STARTCHAR circle
ENCODING 22278
SWIDTH 1000 0
DWIDTH 15 0
BBX 15 15 0 0
BITMAP
{rows}ENDCHAR
ENDFONT
"""


def boxes(*items: tuple[str, tuple[float, float, float, float]]) -> list[usage_pb.Grounding]:
    return [
        usage_pb.Grounding(
            label=label,
            box=usage_pb.BoundingBox(x_min=box[0], y_min=box[1], x_max=box[2], y_max=box[3]),
        )
        for label, box in items
    ]


@pytest.fixture
def no_fontconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.fixture
def chinese_font(tmp_path: Path) -> Path:
    """A font of one character, a full square of 15 pixels."""
    path = tmp_path / "circle.bdf"
    path.write_text(BDF.format(nothing="0000\n" * 15, rows="FFFE\n" * 15))
    return path


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["response"][:40])
def test_edges_and_sizes_are_those_of_the_original_code(case: dict) -> None:
    width, height = case["output_size"]["ok"]
    image = ImageInfo(
        original_width=width,
        original_height=height,
        processed_width=448,
        processed_height=448,
        tokens=256,
    )
    found = groundings(case["response"], BoxNotation.REF_BOX, (image,))
    marks = plan(
        boxes(*[(g.label, (g.x_min, g.y_min, g.x_max, g.y_max)) for g in found]), width, height
    )
    drawn = [call for call in case["calls"] if call["op"] == "box"]
    assert [mark.edges for mark in marks] == [tuple(call["xyxy"]) for call in drawn]
    assert [mark.line_width for mark in marks] == [call["line_width"] for call in drawn]
    written = [call for call in case["calls"] if call["op"] == "text"]
    assert [(m.label, m.edges[:2], m.font_size) for m in marks if m.label] == [
        (call["text"], tuple(call["at"]), call["font_size"]) for call in written
    ]


def test_labels_grow_with_the_image() -> None:
    [mark] = plan(boxes(("x", (0, 0, 9, 9))), 3000, 1200)
    assert mark.font_size == 1897 // 30
    assert mark.line_width == pytest.approx(63 / 4)


def test_edges_are_drawn_and_the_rest_is_left(no_fontconfig: None) -> None:
    image = Image.new("RGB", (100, 80), "white")
    drawn, legend = draw_boxes(image, boxes(("cat", (20, 10, 90, 70)), ("", (0, 0, 10, 75))), None)
    assert image.getpixel((20, 40)) == (255, 255, 255)  # a copy was drawn on
    for edge in ((20, 40), (90, 40), (55, 10), (55, 70), (0, 40)):
        assert drawn.getpixel(edge) != (255, 255, 255)
    for apart in ((15, 40), (70, 60), (95, 40), (55, 78)):
        assert drawn.getpixel(apart) == (255, 255, 255)
    label = drawn.crop((24, 14, 45, 24)).getcolors()
    assert label is not None
    assert len(label) > 1  # letters on a ground
    assert legend == {}


def test_a_label_stays_on_the_image(chinese_font: Path) -> None:
    image = Image.new("RGB", (60, 40), "black")
    drawn, legend = draw_boxes(image, boxes((CIRCLE, (55, 35, 59, 39))), chinese_font)
    assert drawn.getpixel((46, 26)) == (255, 255, 255)
    assert legend == {}


def test_a_font_of_ones_own_writes_chinese(chinese_font: Path) -> None:
    image = Image.new("RGB", (60, 40), "black")
    drawn, legend = draw_boxes(image, boxes((CIRCLE, (10, 5, 50, 35))), chinese_font)
    assert drawn.getpixel((18, 12)) == (255, 255, 255)
    assert legend == {}


def name_of(font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str | None:
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font.getname()[0]


def test_without_fontconfig_labels_are_in_the_font_of_pillow(no_fontconfig: None) -> None:
    assert name_of(Fonts.load("cat", 15, None).letters) == "Aileron"


def test_no_test_sees_the_fonts_of_this_machine() -> None:
    assert name_of(Fonts.load("cat", 15, None).letters) == "Aileron"


def test_fontconfig_finds_a_font(
    chinese_font: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "fc-match"
    program.write_text(f'#!/bin/sh\n[ "$2" = ":charset=5706" ] && printf {chinese_font}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Fonts.load(CIRCLE * 2, 15, None).letters.getbbox(CIRCLE) == (0, 0, 15, 15)


def test_labels_that_a_font_lacks_are_numbered(
    chinese_font: Path, no_fontconfig: None, tmp_path: Path
) -> None:
    image = Image.new("RGB", (120, 80), "white")
    found = boxes(
        ("cat", (1, 1, 40, 40)),
        (f"a {CIRCLE}", (50, 1, 90, 40)),
        ("猫", (1, 50, 40, 79)),
        (f"a {CIRCLE}", (60, 50, 110, 79)),
    )
    drawn, legend = draw_boxes(image, found, None)
    assert legend == {"1": f"a {CIRCLE}", "2": "猫"}
    for left, top in ((50, 1), (1, 50), (60, 50)):  # a number on a ground at each
        colours = drawn.crop((left + 5, top + 5, left + 12, top + 15)).getcolors()
        assert colours is not None
        assert len(colours) > 1
    _, legend = draw_boxes(image, found, chinese_font)  # it has neither letters nor digits
    assert legend == {"1": "cat", "2": f"a {CIRCLE}", "3": "猫"}
    with pytest.raises(DrawError, match="not a usable font"):
        draw_boxes(image, boxes(("x", (1, 1, 9, 9))), tmp_path / "none.ttf")


def test_a_font_of_fontconfig_that_is_none_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "fc-match"
    program.write_text(f"#!/bin/sh\nprintf {program}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert name_of(Fonts.load("cat", 15, None).letters) == "Aileron"


def test_the_image_is_turned_as_the_service_turns_it(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    path = tmp_path / "turned.jpg"
    Image.new("RGB", (30, 20)).save(path, exif=exif)
    assert open_image(path, exif_transposed=True).size == (20, 30)
    assert open_image(path, exif_transposed=False).size == (30, 20)


@pytest.mark.parametrize("exif_transposed", [True, False])
def test_the_image_has_the_pixels_that_the_service_sees(
    tmp_path: Path, exif_transposed: bool
) -> None:
    """Pillow itself makes a 16-bit image white."""
    path = tmp_path / "x.png"
    Image.new("I;16", (30, 20), 0x8000).save(path)
    assert open_image(path, exif_transposed=exif_transposed).getpixel((0, 0)) == (128,) * 3
    Image.new("RGBA", (30, 20), (255, 0, 0, 0)).save(path)
    shown = (255, 255, 255) if exif_transposed else (255, 0, 0)
    assert open_image(path, exif_transposed=exif_transposed).getpixel((0, 0)) == shown
    path.write_bytes(path.read_bytes()[:-12])  # without the end mark
    assert open_image(path, exif_transposed=exif_transposed).size == (30, 20)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"no image", "x.png: The image is text; it must be a JPEG"),
        (b"", "x.png: The image is empty"),
        (b"<svg></svg>", "x.png: The image is SVG"),
        (None, "x.png: No such file"),
    ],
)
def test_what_is_no_image_is_told(tmp_path: Path, data: bytes | None, words: str) -> None:
    path = tmp_path / "x.png"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DrawError, match=words):
        open_image(path, exif_transposed=True)
    assert image_size(path) is None


EDGES = [
    ((50, 60, 10, 20), (10, 20, 50, 60)),
    ((-5, -1e30, 1e30, 500), (0, 0, 100, 80)),
    ((300, 300, 400, 400), (100, 80, 100, 80)),
    ((0.6, 0.4, 1.9, 1), (0, 0, 1, 1)),
]


@pytest.mark.parametrize(("box", "edges"), EDGES)
def test_a_box_is_drawn_within_the_image(
    box: tuple[float, float, float, float], edges: tuple[int, ...], no_fontconfig: None
) -> None:
    assert plan(boxes(("", box)), 100, 80)[0].edges == edges
    draw_boxes(Image.new("RGB", (100, 80)), boxes(("cat", box)), None)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_box_without_coordinates_is_refused(value: float) -> None:
    with pytest.raises(DrawError, match="a box without coordinates"):
        plan(boxes(("", (0, 0, value, 1))), 100, 80)


@pytest.mark.parametrize(
    ("label", "printed"),
    [("a\r\n\r\nb", "a b"), ("\r\n", ""), ("\x1b[31mred\0", "[31mred"), ("a\u202eb", "ab")],
)
def test_a_label_is_one_line_without_control_characters(
    label: str, printed: str, no_fontconfig: None
) -> None:
    found = boxes((label, (0, 0, 9, 9)))
    assert plan(found, 100, 80)[0].label == printed
    draw_boxes(Image.new("RGB", (100, 80)), found, None)


def test_an_image_without_boxes_stays_as_it_is(no_fontconfig: None) -> None:
    image = Image.new("RGB", (9, 9), "red")
    assert draw_boxes(image, [], None)[0].tobytes() == image.tobytes()
