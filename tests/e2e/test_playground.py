"""The playground in a real Chromium with the demo model behind it, and its examples over the API."""

from __future__ import annotations

import base64
from collections.abc import Iterator
import io
import json
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, expect
import pytest
import requests

from tests.e2e.conftest import ROOT, Served
from tests.support.browser import TIMEOUT_MS, assert_accessible, hand_over, open_browser, visit
from tests.support.images import COLOURS, Placed, draw_scene


expect.set_options(timeout=TIMEOUT_MS)
EXAMPLES = ROOT / "rest_adapter" / "playground" / "page" / "examples"
SHAPES = [
    Placed("red", "circle", 0.2, 0.5, 0.14),
    Placed("blue", "square", 0.5, 0.5, 0.12),
    Placed("green", "triangle", 0.8, 0.5, 0.14),
]
SIDE = 256


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


def colour_in(image: Image.Image, box: tuple[float, float, float, float], rgb: Any) -> float:
    """The share of pixels within a box that have about this colour."""
    left, top, right, bottom = map(round, box)
    pixels = np.asarray(image.convert("RGB"), dtype=int)[top:bottom, left:right]
    return float((np.abs(pixels - rgb).max(axis=2) < 40).mean())


def test_an_image_is_dropped_and_the_boxes_lie_on_its_shapes(
    browser: Browser, served: Served
) -> None:
    with visit(browser, served.http) as found:
        page = found.page
        hand_over(page, "drop", "shapes.png", draw_scene(SHAPES, SIDE))
        expect(page.locator(".composer .thumbnail")).to_contain_text("256 × 256")
        expect(page.locator(".composer .thumbnail")).to_contain_text("≈ 16 tokens")
        page.get_by_role("textbox", name="Question").fill("Locate all shapes.")
        page.keyboard.press("Enter")
        expect(page.locator(".usage")).to_contain_text("image 16")
        boxes = page.locator(".box")
        expect(boxes).to_have_count(len(SHAPES))
        assert_accessible(page)

        page.get_by_label("Labels").uncheck()
        expect(page.locator(".box .label")).to_have_count(0)
        seen = Image.open(io.BytesIO(page.screenshot()))
        for shape in SHAPES:
            box = page.get_by_label(f"Cut out: {shape.colour} {shape.shape}").bounding_box()
            assert box is not None
            edges = (box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"])
            rgb = COLOURS[shape.colour][0]
            inside = colour_in(seen, edges, rgb)
            margin = 0.5 * box["width"]
            wide = (edges[0], edges[1] - margin, edges[2], edges[3] + margin)
            around = colour_in(seen, wide, rgb)
            # The shape fills its box, and there is little of it above and below.
            assert inside > 0.4
            assert around < 0.75 * inside
        page.get_by_label("Boxes", exact=True).uncheck()
        expect(boxes).to_have_count(0)
        page.get_by_label("Boxes", exact=True).check()

        page.get_by_label("Cut out: blue square").click()
        expect(page.locator("dialog img.crop")).to_be_visible()
        assert_accessible(page)
        page.get_by_role("button", name="Ask about it").click()
        expect(page.locator(".composer .thumbnail")).to_contain_text("blue square.png")

        page.reload()  # the history has the image and the boxes
        history = page.get_by_role("navigation", name="History")
        history.get_by_role("button", name="Locate all shapes.", exact=True).click()
        expect(boxes).to_have_count(len(SHAPES))
        assert found.complaints == []


def test_the_same_request_as_programs(browser: Browser, served: Served) -> None:
    with visit(browser, served.http) as found:
        page = found.page
        page.get_by_role("button", name="What is in this picture?").click()
        expect(page.locator(".markdown")).to_have_text("A purple star.")
        page.get_by_role("button", name="Code", exact=True).click()
        programs = {}
        for name, begin in (
            ("curl", "curl -sN"),
            ("openai (Python)", "import base64"),
            ("gRPC (Python)", "import base64"),
        ):
            page.get_by_role("button", name=name).click()
            expect(page.get_by_role("button", name=name)).to_have_attribute("aria-pressed", "true")
            expect(page.locator("dialog pre")).to_contain_text(
                {"curl": "JSON", "openai (Python)": "OpenAI", "gRPC (Python)": "qwenvl"}[name]
            )
            programs[name] = page.locator("dialog pre").inner_text()
            assert programs[name].startswith(begin)
        assert found.complaints == []
    programs["gRPC (Python)"] = programs["gRPC (Python)"].replace(
        "127.0.0.1:50051", served.grpc_target
    )
    for name, program in programs.items():
        if name == "curl" and shutil.which("curl") is None:
            continue
        command = ["sh", "-s"] if name == "curl" else [sys.executable, "-"]
        done = subprocess.run(
            command, input=program, capture_output=True, text=True, timeout=120, check=False
        )
        assert "star" in done.stdout, (name, done.stderr)
        assert done.stderr == ""


def test_decisions_are_bars_of_probability(browser: Browser, served: Served) -> None:
    models = requests.get(f"{served.http}/v1/models", timeout=30).json()["data"]
    with visit(browser, served.http) as found:
        page = found.page
        expect(page.locator("select")).to_be_visible()
        if "decisions" not in models[0]["features"]:
            expect(page.get_by_role("button", name="Decisions")).to_have_count(0)
            return
        page.get_by_role("button", name="Decisions").click()
        for name in ("circle.png", "square.png"):
            hand_over(page, "drop", name, (EXAMPLES / name).read_bytes())
        expect(page.locator(".decide .thumbnail")).to_have_count(2)
        page.get_by_role("textbox", name="Question").fill("What color is the shape?")
        page.get_by_label("Classes").fill("orange\nblue\n")
        page.get_by_role("button", name="Decide", exact=True).click()
        most = page.locator(".bars .most .what")
        expect(most).to_have_text(["orange", "blue"])
        assert_accessible(page)
        assert found.complaints == []


def ask(served: Served, example: dict[str, Any], language: str) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    for name in example["images"]:
        data = base64.b64encode((EXAMPLES / name).read_bytes()).decode()
        url = f"data:image/png;base64,{data}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    parts.append({"type": "text", "text": example["question"][language]})
    body = {
        "model": "qwen-vl",
        "grounding": True,
        "messages": [{"role": "user", "content": parts}],
    }
    response = requests.post(f"{served.http}/v1/chat/completions", json=body, timeout=120)
    choice: dict[str, Any] = response.json()["choices"][0]
    return choice


def overlap(a: list[float], b: list[float]) -> float:
    """Intersection over union."""

    def area(box: list[float]) -> float:
        return max(0, box[2] - box[0]) * max(0, box[3] - box[1])

    both = area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])
    return both / (area(a) + area(b) - both)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_demo_model_answers_the_examples_truly(served: Served, language: str) -> None:
    examples = json.loads((EXAMPLES / "examples.json").read_text())
    assert {name for each in examples for name in each["images"]} == {
        path.name for path in EXAMPLES.glob("*.png")
    }
    for example in examples:
        choice = ask(served, example, language)
        if "answer" in example:
            assert choice["message"]["content"] == example["answer"][language]
            continue
        found = {each["label"]: each["box"] for each in choice["grounding"]}
        assert set(found) == {each["label"][language] for each in example["boxes"]}
        for each in example["boxes"]:
            assert overlap(found[each["label"][language]], each["box"]) > 0.4
