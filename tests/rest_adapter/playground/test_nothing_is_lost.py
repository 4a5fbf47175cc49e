"""What is written, asked and answered on the page is kept, or the page says that it is not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
import time
from typing import Any

from playwright.sync_api import Page, Route, expect

from tests.rest_adapter.playground.page import (
    answers,
    ask,
    change_model,
    choose,
    question,
)
from tests.support.browser import Visit, assert_accessible
from tests.support.images import draw


RED = draw("red", "circle").png
STORAGE = "qwen-vl-playground"


def open_kept(page: Page, title: str) -> None:
    page.get_by_role("navigation", name="History").get_by_role(
        "button", name=title, exact=True
    ).click()


def test_a_draft_stays_whatever_else_is_done(visited: Visit) -> None:
    page = visited.page
    thumbnails = page.locator(".composer .thumbnail")

    def assert_draft() -> None:
        expect(question(page)).to_have_value("draft")
        expect(thumbnails).to_have_count(1)

    choose(page, RED, "red.png")
    question(page).fill("draft")
    page.locator(".examples button").first.click()
    expect(page.locator(".usage")).to_have_count(1)
    assert_draft()
    for edited in (None, "changed"):
        page.get_by_role("button", name="Edit").click()
        expect(question(page)).to_have_value("What is in this picture?")
        if edited:
            ask(page, edited)
        else:
            page.get_by_role("button", name="Cancel").click()
        assert_draft()
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("button", name="New conversation").click()
    assert_draft()
    open_kept(page, "What is in this picture?")
    assert_draft()
    # An edit that was begun becomes a question of its own where its turn is not.
    page.get_by_role("button", name="Edit").click()
    question(page).fill("begun")
    page.get_by_role("button", name="New conversation").click()
    expect(question(page)).to_have_value("begun")
    ask(page, "begun")
    assert_draft()


def test_an_answer_that_the_page_did_not_see_the_end_of_is_kept(visited: Visit) -> None:
    page = visited.page
    question(page).fill("hang-after 4")
    page.keyboard.press("Enter")
    expect(page.locator(".markdown")).to_have_text("hang")
    page.reload()
    open_kept(page, "hang-after 4")
    expect(page.locator(".markdown")).to_have_text("hang")
    expect(page.locator(".answer .note")).to_have_text("Stopped.")
    page.get_by_role("button", name="Delete “hang-after 4”").click()
    expect(page.locator(".history li")).to_have_count(0)
    assert page.evaluate("Object.keys(localStorage)") == [STORAGE]


def test_the_page_says_when_the_browser_keeps_nothing(visited: Visit) -> None:
    page = visited.page
    browser = visited.context.new_cdp_session(page)
    origin = {"origin": page.evaluate("location.origin")}
    expect(page.locator(".examples li")).to_have_count(5)
    browser.send("Storage.overrideQuotaForOrigin", origin | {"quotaSize": 1000})
    choose(page, RED, "red.png")
    ask(page, "first")
    notice = page.locator("aside .notice")
    expect(notice).to_contain_text("storage is full")
    assert_accessible(page)
    browser.send("Storage.overrideQuotaForOrigin", origin)
    page.get_by_role("button", name="New conversation").click()
    ask(page, "second")
    expect(notice).to_have_count(0)
    expect(page.locator(".history li")).to_have_count(2)  # the first was tried again
    page.add_init_script("indexedDB.open = () => { throw new DOMException('', 'SecurityError'); };")
    page.reload()
    expect(notice).to_contain_text("keeps no history here")
    ask(page, "third")
    assert answers(page) == ["third"]


def test_no_kept_setting_breaks_the_page(visited: Visit) -> None:
    page = visited.page
    for kept in (
        '{"language": "xx", "theme": 3, "temperature": [], "boxes": "no", "maxPixels": "many"}',
        '{"language": "constructor", "seed": "abc", "system": null, "model": {}, "maxPixels": -1}',
        "null",
        "[1]",
        '"text"',
        "{",
    ):
        page.evaluate("([name, kept]) => localStorage.setItem(name, kept)", [STORAGE, kept])
        page.reload()
        expect(page.locator("html")).to_have_attribute("data-theme", "auto")
        ask(page, "works")
        assert answers(page) == ["works"]


def is_length(found: list[Any], length: int) -> bool:
    return len(found) == length


def until(page: Page, condition: Callable[[], bool]) -> None:
    """Waits for what the browser tells; it tells nothing between two calls."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        page.wait_for_timeout(20)


def test_decisions_can_be_left_and_stopped(visited: Visit) -> None:
    page = visited.page
    change_model(page, features=("decisions",), max_images=1)
    page.get_by_role("button", name="Decisions").click()
    decide = page.get_by_role("button", name="Decide", exact=True)
    why = page.locator("#missing")
    expect(why).to_have_text("Add an image.")
    for name in ("one.png", "two.png"):
        choose(page, RED, name)
    expect(page.locator(".decide .notice")).to_have_count(0)  # each image is a request of its own
    expect(why).to_have_text("Write the question.")
    question(page).fill("Which colour?")
    page.get_by_label("Classes").fill("red\nred")
    expect(why).to_contain_text("One class leaves nothing to decide")
    expect(decide).to_be_disabled()
    expect(decide).to_have_attribute("aria-describedby", "missing")
    page.get_by_label("Classes").fill("red\nblue\ngreen")
    expect(why).to_be_empty()
    page.get_by_role("button", name="Chat").click()
    expect(page.locator(".composer .notice")).to_contain_text("at most 1 images in one request")
    page.get_by_role("button", name="Remove two.png").last.click()
    expect(page.locator(".composer .notice")).to_have_count(0)
    page.get_by_role("button", name="Decisions").click()
    expect(question(page)).to_have_value("Which colour?")

    held: list[Route] = []
    page.route("**/v1/decisions", lambda route: held.append(route))  # noqa: PLW0108 - not a built-in
    failed: list[str] = []
    page.on("requestfailed", lambda request: failed.append(request.url))
    for number, key in enumerate((None, "Escape"), 1):
        decide.click()
        stop = page.get_by_role("button", name="Stop")
        expect(stop).to_be_visible()
        until(page, partial(is_length, held, number))
        page.keyboard.press(key) if key else stop.click()
        expect(page.locator(".results .note")).to_have_text("Stopped.")
        until(page, partial(is_length, failed, number))
    page.unroute("**/v1/decisions")
    decide.click()
    expect(page.locator(".bars .most .what")).to_have_text("green")
    assert_accessible(page)
