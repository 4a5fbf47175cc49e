"""Boxes in answers, in the notation of each family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
import pytest

from inference_service.domain import Grounding, ImageInfo
from inference_service.families.registry import FAMILIES
from inference_service.model_spec import BoxNotation
from inference_service.text.output.boxes import groundings, read_boxes, tag_tokens
from inference_service.text.output.loose_json import JsonObject, find_json


GOLDEN = Path(__file__).parents[2] / "golden" / "qwen_vl_v1" / "grounding.json"
CASES = json.loads(GOLDEN.read_text())["parse"]
WIDE = ImageInfo(
    original_width=800, original_height=400, processed_width=400, processed_height=196, tokens=1
)
TALL = ImageInfo(
    original_width=100, original_height=1000, processed_width=56, processed_height=560, tokens=1
)
CAT = {"bbox_2d": [100, 50, 200, 100], "label": "cat"}


def boxes(text: str, notation: BoxNotation) -> list[tuple[str, tuple[float, ...]]]:
    return [(box.label, box.corners) for box in read_boxes(text, notation)]


def edges(found: Grounding) -> tuple[float, float, float, float]:
    return found.x_min, found.y_min, found.x_max, found.y_max


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["text"][:40])
def test_the_first_family_reads_as_its_original_code(case: dict) -> None:
    found = boxes(case["text"], BoxNotation.REF_BOX)
    if "ok" in case["boxes"]:
        expected = [(box.get("ref", ""), tuple(box["box"])) for box in case["boxes"]["ok"]]
        assert found == expected
    elif "<|im_start|>" not in case["text"]:  # never part of an answer
        assert found == []  # the original fails on the whole text


def test_a_broken_box_costs_only_itself() -> None:
    text = "<ref>a</ref><box>(1,2),(3)</box><box>(1,2),(3,4)</box><box>(1.5,2),(3,4)</box>"
    assert boxes(text, BoxNotation.REF_BOX) == [("", (1, 2, 3, 4))]


def test_a_label_of_qwen2_holds_for_all_its_boxes() -> None:
    one = "<|box_start|>(1,2),(3,4)<|box_end|>"
    text = f"the <|object_ref_start|> two cats<|object_ref_end|>{one}{one} and {one}"
    assert [label for label, _ in boxes(text, BoxNotation.OBJECT_REF)] == [
        "two cats",
        "two cats",
        "",
    ]


@pytest.mark.parametrize("notation", [BoxNotation.JSON_PIXELS, BoxNotation.JSON_PER_MILLE])
@pytest.mark.parametrize(
    "text",
    [
        json.dumps([CAT]),
        json.dumps(CAT),
        json.dumps({"objects": [CAT]}, indent=1),
        f"```json\n[\n\t{json.dumps(CAT)}\n]\n```",
        f"Here it is: {json.dumps(CAT)}, and that is all.",
        json.dumps([CAT])[:-2],  # cut off behind the label
        "[{'bbox_2d': [100, 50, 200, 100], 'label': 'cat'}]",
        '{"label": "cat", "bbox_2d": [100.0,50,200 ,100]}',
    ],
)
def test_json_as_models_write_it(notation: BoxNotation, text: str) -> None:
    assert boxes(text, notation) == [("cat", (100, 50, 200, 100))]


A, B = (1.0, 2.0, 3.0, 4.0), (5.0, 6.0, 7.0, 8.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Keys of labels.
        ('[{"bbox_2d": [1, 2, 3, 4], "text_content": "Total"}]', [("Total", A)]),
        ('{"bbox": [1, 2, 3, 4], "text": "Total"}', [("Total", A)]),
        ('{"box": [1, 2, 3, 4], "name": "cat"}', [("cat", A)]),
        ('{"Bbox-2D": [1, 2, 3, 4], "Label": "cat"}', [("cat", A)]),
        ('{"bbox_2d": [1, 2, 3, 4], "label": 7}', [("7", A)]),
        ('{"bbox_2d": [1, 2, 3, 4], "label": null, "text": "a"}', [("a", A)]),
        ('{"bbox_2d": [1, 2, 3, 4], "label": "", "text_content": "a"}', [("a", A)]),
        ('{"text": "b", "bbox_2d": [1, 2, 3, 4], "label": "a"}', [("a", A)]),
        # Attributes beside a box, before it and behind it.
        ('{"bbox_2d": [1, 2, 3, 4], "attributes": {"colour": "red"}, "label": "a"}', [("a", A)]),
        ('{"label": "a", "attributes": {"colour": {"hue": 3}}, "bbox_2d": [1, 2, 3, 4]}', [("a", A)]),
        ('{"bbox_2d": [1, 2, 3, 4], "tags": ["x", {"y": []}], "label": "a"}', [("a", A)]),
        ('{"bbox_2d": [1, 2, 3, 4], "label": "a {b} [c]", "score": 0.9, "ok": true}',
         [("a {b} [c]", A)]),
        # Several boxes.
        ('{"bbox_2d": [[1, 2, 3, 4], [5, 6, 7, 8]], "label": "a"}', [("a", A), ("a", B)]),
        ('{"bboxes": [[1, 2, 3, 4], [5, 6, 7, 8]], "labels": ["a", "b"]}', [("a", A), ("b", B)]),
        ('{"label": "a", "boxes": [{"bbox_2d": [1, 2, 3, 4]}, {"box": [5, 6, 7, 8], "label": "b"}]}',
         [("a", A), ("b", B)]),
        ('{"a": {"bbox_2d": [1, 2, 3, 4]}, "b": {"bbox_2d": [5, 6, 7, 8]}}', [("", A), ("", B)]),
        ('{"bbox_2d": [1, 2, 3, 4], "parts": [{"bbox_2d": [5, 6, 7, 8], "label": "b"}], "label": "a"}',
         [("a", A), ("b", B)]),
        ('{"bbox_2d": [1,2,3,4], "label": "a"}\n{"bbox_2d": [5,6,7,8], "label": "b"}',
         [("a", A), ("b", B)]),
        ('{"bbox_2d": [1,2,3,4], "bbox_2d": [5,6,7,8]}', [("", A), ("", B)]),
        # Other forms of a box.
        ('{"bbox_2d": [[1, 2], [3, 4]], "label": "a"}', [("a", A)]),
        ('{"points": [[1, 2], [3, 2], [3, 4], [1, 4]], "label": "a"}', [("a", A)]),
        ('{"box": {"x1": 1, "y1": 2, "x2": 3, "y2": 4}, "label": "a"}', [("a", A)]),
        ('{"bounding_box": {"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4}}', [("", A)]),
        ('{"bbox_2d": "[1, 2, 3, 4]", "label": "a"}', [("a", A)]),
        ('{"bbox_2d": "1,2,3,4", "label": "a"}', [("a", A)]),
        # In prose and in fences.
        ('I see {two} [things]: it\'s {"bbox_2d": [1, 2, 3, 4], "label": "a"} [1].', [("a", A)]),
        ('```json\n[{"bbox_2d": [1,2,3,4], "label": "a"}]\n```\n```\n{"bbox_2d": [5,6,7,8]}\n```',
         [("a", A), ("", B)]),
        # Broken, and cut off.
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "a"}, {"bbox_2d": [5, 6,', [("a", A)]),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "a"}, {"bbox_2d": [5, 6, 7, 8], "label": "bl',
         [("a", A), ("", B)]),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "a"', [("a", A)]),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "a",}, {"bbox_2d": [5, 6, 7, 8], "label": "b",},]',
         [("a", A), ("b", B)]),
        ('[{"bbox_2d": [1, 2, 3, 4] "label": "a"} {"bbox_2d": [5, 6, 7, 8] "label": "b"}]',
         [("a", A), ("b", B)]),
        ('[{"bbox_2d": [1, 2, 3, 4}, {"bbox_2d": [5, 6, 7, 8], "label": "b"}]', [("", A), ("b", B)]),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "5" tall"}, {"bbox_2d": [5, 6, 7, 8]}]',
         [("5", A), ("", B)]),
        ('[{"bbox_2d": [1, 2, 3, 4]}, // the other\n {"bbox_2d": [5, 6, 7, 8]}]', [("", A), ("", B)]),
        ('{bbox_2d: [1, 2, 3, 4], label: "a"}', [("a", A)]),
        ("[{'bbox_2d': [1, 2, 3, 4], 'label': \"cat's\"}, {'bbox_2d': [5, 6, 7, 8], 'label': 'it\\'s'}]",
         [("cat's", A), ("it's", B)]),
    ],
)  # fmt: skip
def test_forms_of_boxes_and_labels(text: str, expected: list) -> None:
    assert boxes(text, BoxNotation.JSON_PIXELS) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("(1,2),(3,4),(5,6),(7,8)", [A, B]),
        ("(1,2),(3,4)(5,6),(7,8)", [A, B]),
        ("\n(1, 2), (3, 4);\n(5, 6), (7, 8)\n", [A, B]),
        ("(1.0,2),(3,4.0)", [A]),
        ("(1,2),(3,4),(5,6)", [A]),
        ("[1,2],[3,4]", [A]),
        ("(1,2)", []),
        ("", []),
        ("nothing", []),
    ],
)
def test_several_corners_in_one_tag(content: str, expected: list) -> None:
    text = f"<|object_ref_start|>a<|object_ref_end|><|box_start|>{content}<|box_end|>"
    wanted = [("a", corners) for corners in expected]
    assert boxes(text, BoxNotation.OBJECT_REF) == wanted
    assert boxes(text.removesuffix("<|box_end|>"), BoxNotation.OBJECT_REF) == wanted
    qwen_vl = f"<ref>a</ref><box>{content}</box>"
    if len(expected) > 1:  # its original code takes two corners
        assert boxes(qwen_vl, BoxNotation.REF_BOX) == []


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=20,
)


def plain(value: object) -> object:
    """What the reader found, as a decoder gives it; true, false and null are the same."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, JsonObject):
        return {key: plain(item) for key, item in value.pairs}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return None if isinstance(value, bool) else value


@given(value=VALUES, indent=st.sampled_from([None, 2]), ascii_only=st.booleans())
def test_valid_json_is_read_as_by_a_decoder(value: object, indent: Any, ascii_only: bool) -> None:
    text = json.dumps({"x": value}, indent=indent, ensure_ascii=ascii_only)
    for with_ends in (False, True):
        [found] = find_json(f"so: {text} etc.", with_ends=with_ends)
        assert plain(found) == plain(json.loads(text))
    assert isinstance(found, JsonObject)
    assert found.end == len(text) + 4


MANY = st.lists(
    st.tuples(st.tuples(*[st.integers(0, 999)] * 4), st.text("abc\"'{}[]\\\n ", max_size=5)),
    max_size=4,
)


@given(found=MANY, data=st.data())
def test_an_answer_that_is_cut_off_loses_only_its_end(found: list, data: st.DataObject) -> None:
    text = json.dumps([{"bbox_2d": box, "label": label} for box, label in found])
    whole = boxes(text, BoxNotation.JSON_PER_MILLE)
    assert whole == [(label, tuple(map(float, box))) for box, label in found]
    length = data.draw(st.integers(0, len(text)))
    cut_off = boxes(text[:length], BoxNotation.JSON_PER_MILLE)
    assert [corners for _, corners in cut_off] == [corners for _, corners in whole[: len(cut_off)]]
    assert all(label in (full, "") for (label, _), (full, _) in zip(cut_off, whole, strict=False))


ANSWERS = [
    (BoxNotation.JSON_PER_MILLE, json.dumps([CAT, CAT | {"label": "dog"}])),
    (BoxNotation.REF_BOX, "<ref>cat</ref><box>(100,50),(200,100)</box>"),
    (
        BoxNotation.OBJECT_REF,
        "<|object_ref_start|>cat<|object_ref_end|><|box_start|>(100,50),(200,100)<|box_end|>",
    ),
]


@pytest.mark.parametrize(("notation", "text"), ANSWERS)
def test_a_box_that_the_request_began_is_whole(notation: BoxNotation, text: str) -> None:
    """Wherever the request stops and the model goes on; what the request contains whole is not in the answer."""
    whole = groundings(text, notation, (WIDE,))
    assert whole[0].label == "cat"
    ends = [len(text)] if len(whole) == 1 else [text.index("}") + 1, text.rindex("}") + 1]
    for length in range(len(text)):
        found = groundings(text[length:], notation, (WIDE,), prefix=text[:length])
        assert found == whole[sum(end <= length for end in ends) :]


@pytest.mark.parametrize(
    "text",
    [
        '{"bbox_2d": [1, 2, 3]}',
        '{"bbox_2d": [1, 2, 3, 4, 5]}',
        '{"bbox_2d": [1, 2, 3, "x"]}',
        '{"bbox_2d": [1, 2, NaN, 4]}',
        '{"bbox_2d": [1, 2, 99999999999999999999, 4]}',
        '{"bbox_2d": null}',
        '{"point_2d": [1, 2]}',
        "[1, 2, 3, 4]",
        "",
    ],
)
def test_what_is_no_box_is_skipped(text: str) -> None:
    good = '{"bbox_2d": [1, 2, 3, 4], "label": "\\u732b \\"x\\""}'
    assert boxes(text, BoxNotation.JSON_PIXELS) == []
    assert boxes(text + good, BoxNotation.JSON_PIXELS) == [('猫 "x"', (1, 2, 3, 4))]


@pytest.mark.parametrize(
    ("notation", "text", "expected"),
    [
        (BoxNotation.REF_BOX, "<box>(100,50),(200,100)</box>", (80, 20, 160, 40)),
        (
            BoxNotation.OBJECT_REF,
            "<|box_start|>(100,50),(200,100)<|box_end|>",
            (80, 20, 160, 40),
        ),
        (BoxNotation.JSON_PER_MILLE, json.dumps(CAT), (80, 20, 160, 40)),
        (BoxNotation.JSON_PIXELS, json.dumps(CAT), (200, 50 / 196 * 400, 400, 100 / 196 * 400)),
    ],
)
def test_pixels_of_the_original_image(
    notation: BoxNotation, text: str, expected: tuple[float, ...]
) -> None:
    [found] = groundings(text, notation, (WIDE,))
    assert edges(found) == pytest.approx(expected)
    assert found.image_index == 0


def test_the_last_image_is_meant() -> None:
    [found] = groundings(json.dumps(CAT), BoxNotation.JSON_PER_MILLE, (WIDE, TALL))
    assert found.image_index == 1
    assert edges(found) == pytest.approx((10, 50, 20, 100))
    assert groundings(json.dumps(CAT), BoxNotation.JSON_PER_MILLE, ()) == ()


@pytest.mark.parametrize(
    ("corners", "expected"),
    [
        ([-5, 0, 1200, 999], (0, 0, 800, 399.6)),
        ([1001, 0, 1200, 10], None),
        ([10, 10, 10, 20], None),
        ([20, 10, 10, 20], None),
    ],
)
def test_boxes_are_cut_at_the_edges_and_empty_ones_left_out(
    corners: list[int], expected: tuple[float, ...] | None
) -> None:
    text = json.dumps({"bbox_2d": corners})
    found = groundings(text, BoxNotation.JSON_PER_MILLE, (WIDE,))
    assert [edges(one) for one in found] == ([] if expected is None else [pytest.approx(expected)])


def test_every_family_says_how_it_writes_boxes() -> None:
    notations = {name: family.boxes for name, family in FAMILIES.items()}
    assert notations.items() >= {
        ("qwen2_vl", BoxNotation.OBJECT_REF),
        ("qwen2_5_vl", BoxNotation.JSON_PIXELS),
        ("qwen3_vl", BoxNotation.JSON_PER_MILLE),
        ("qwen_vl", BoxNotation.REF_BOX),
    }
    assert tag_tokens(BoxNotation.JSON_PIXELS) == ()
    assert "<|box_start|>" in tag_tokens(BoxNotation.OBJECT_REF)


TAGS = "<ref> </ref> <box> </box> <quad> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|>"
JSON = (
    '{"bbox_2d": [1,2,3,4] "bbox_2d": "label": ```json { } [ ] ( ) , \' " \\ 1e999 - 猫 (1,2),(3,4)'
)
PIECES = st.sampled_from((TAGS + " " + JSON).split(" "))


@given(text=st.lists(st.one_of(PIECES, st.text(max_size=5)), max_size=60).map("".join))
def test_nothing_breaks_the_reader(text: str) -> None:
    for notation in BoxNotation:
        for found in groundings(text, notation, (WIDE,)):
            left, top, right, bottom = edges(found)
            assert 0 <= left < right <= 800
            assert 0 <= top < bottom <= 400


@pytest.mark.parametrize(
    "piece",
    [
        "<ref>",
        "<box>",
        "{",
        '{"bbox_2d":[',
        '{"label": "',
        "{'label': '\\",
        "<|object_ref_start|>a",
        "[",
        "[{",
        '{"a":',
        '{"a":[',
        '{"bbox_2d":[[1,',
        "[1,",
        '"',
        "{'",
        '{"',
        '{"\\',
        "{'\\\"",
        "[  ",
        "[,",
        "[a",
        "]}",
        '{"a" "b',
        "<|box_start|>(1,2),",
        "<|box_start|>",
    ],
)
def test_the_work_grows_with_the_length_only(piece: str) -> None:
    """A reader that looks at the rest of the text from every opening would take hours."""
    text = piece * (100_000 // len(piece)) + " "
    for notation in BoxNotation:
        assert boxes(text, notation) == []


@given(corners=st.tuples(*[st.integers(-2000, 2000)] * 4), label=st.text(max_size=20))
def test_what_is_written_is_read(corners: tuple[int, int, int, int], label: str) -> None:
    expected = tuple(map(float, corners))
    text = json.dumps({"bbox_2d": corners, "label": label})
    assert boxes(text, BoxNotation.JSON_PIXELS) == [(label, expected)]
    if "<" not in label:
        x1, y1, x2, y2 = corners
        text = f"<ref>{label}</ref><box>({x1},{y1}),({x2},{y2})</box>"
        assert boxes(text, BoxNotation.REF_BOX) == [(label.strip(), expected)]
