"""What the tests in a browser do with the page."""

from __future__ import annotations

import json
from typing import Any

from playwright.sync_api import FilePayload, Page, Route, expect

from tests.support.browser import TIMEOUT_MS


expect.set_options(timeout=TIMEOUT_MS)
USAGE = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}


def question(page: Page) -> Any:
    """The field of the question that is shown."""
    return page.get_by_role("textbox", name="Question")


def ask(page: Page, text: str, *, number: int = 0) -> None:
    """Asks by keyboard, and waits for the end of that answer."""
    question(page).fill(text)
    page.keyboard.press("Enter")
    expect(page.locator(".usage")).to_have_count(number + 1)


def choose(page: Page, body: bytes, *names: str, media_type: str = "image/png") -> None:
    """Chooses files in the dialog of the browser, and waits until the page has read them."""
    shown = page.locator(".thumbnail button:visible")
    count = shown.count()
    page.locator("input[type=file][multiple]").last.set_input_files(
        [FilePayload(name=name, mimeType=media_type, buffer=body) for name in names]
    )
    if media_type.startswith("image/"):
        expect(shown).to_have_count(count + len(names))


def answers(page: Page) -> list[str]:
    """The answers as they are shown."""
    return page.locator(".markdown").all_inner_texts()


def change_model(page: Page, *, features: tuple[str, ...] = (), **limits: Any) -> None:
    """Loads the page again with other features and limits of the model."""

    def changed(route: Route) -> None:
        models = route.fetch().json()
        for model in models["data"]:
            model["features"] = list(features)
            model["image_limits"] |= limits
        route.fulfill(json=models)

    page.route("**/v1/models", changed)
    page.reload()
    expect(page.locator("header select")).to_be_visible()


def answer_with(
    page: Page, boxes: list[tuple[int, str, tuple[float, float, float, float]]]
) -> None:
    """Answers every question with boxes: index of the image, label, corners."""
    grounding = [
        {"image_index": index, "label": label, "box": corners} for index, label, corners in boxes
    ]
    choice = {"index": 0, "delta": {"content": "There."}, "finish_reason": "stop"}
    chunks = [{"choices": [choice | {"grounding": grounding}]}, {"choices": [], "usage": USAGE}]
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    page.unroute("**/v1/chat/completions")
    page.route(
        "**/v1/chat/completions",
        lambda route: route.fulfill(
            body="".join([*lines, "data: [DONE]\n\n"]), content_type="text/event-stream"
        ),
    )
