"""The playground in a real Chromium, with the fake service behind the adapter: it answers with the question."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Browser, expect
import pytest

from tests.rest_adapter.conftest import Adapter, open_adapter
from tests.rest_adapter.playground.page import answers, ask, choose
from tests.rest_adapter.scripted_answers import script
from tests.support.browser import Visit, assert_accessible, hand_over, visit
from tests.support.images import draw


KEY = "right-key"
ATTACKS = (
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(2)><script>alert(3)</script></svg>",
    "[link](javascript:alert(4))",
    "<a href='data:text/html,<script>alert(5)</script>'>data</a>",
    "![image](https://example.com/track.png)",
    "<p style='background:url(https://example.com/x)' onclick=alert(6)>text</p>",
    "<iframe srcdoc='<script>alert(7)</script>'></iframe>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(8)></style></mglyph></table>",
    "<form action=https://example.com><button>x</button></form>",
)


def test_turns_are_asked_again_edited_and_kept(visited: Visit, adapter: Adapter) -> None:
    page = visited.page
    ask(page, "first")
    ask(page, "second", number=1)
    assert answers(page) == ["first", "second"]
    roles = [message.role for message in adapter.spec.messages]
    assert len(roles) == 3

    page.get_by_role("button", name="Ask again").nth(0).click()
    expect(page.get_by_role("status")).to_contain_text("The former answer was replaced.")
    assert answers(page) == ["first", "second"]
    assert len(adapter.spec.messages) == 1
    page.get_by_role("button", name="Edit").nth(0).click()
    expect(page.get_by_label("Question")).to_have_value("first")
    expect(page.locator(".composer .note")).to_contain_text("drops the turn after it")
    ask(page, "changed")
    assert answers(page) == ["changed"]
    assert len(adapter.spec.messages) == 1
    expect(page.get_by_role("status")).to_contain_text("The turn after it was dropped.")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator(".markdown")).to_have_text(["first", "second"])
    page.get_by_role("button", name="Edit").nth(0).click()
    ask(page, "changed")

    page.reload()
    page.get_by_role("button", name="first", exact=True).click()
    expect(page.locator(".markdown")).to_have_text(["changed"])
    page.get_by_role("button", name="Delete “first”").click()
    expect(page.locator(".history li")).to_have_count(0)
    page.reload()
    expect(page.get_by_text("Nothing yet.")).to_be_visible()


def test_an_answer_can_be_stopped(visited: Visit, adapter: Adapter) -> None:
    page = visited.page
    for key in (None, "Escape"):
        page.get_by_label("Question").fill("hang")
        page.keyboard.press("Enter")
        stop = page.get_by_role("button", name="Stop")
        expect(stop).to_be_visible()
        page.get_by_label("Question").fill("draft")
        page.keyboard.press(key) if key else stop.click()
        expect(page.locator(".note").last).to_have_text("Stopped.")
        send = page.get_by_role("button", name="Send")
        expect(send).to_be_visible()
        expect(page.get_by_label("Question")).to_have_value("draft")
        if key is None:
            expect(send).to_be_focused()
    expect(page.locator(".note")).to_have_count(2)
    assert "draft" not in [spec.messages[-1].parts[0].text for spec in adapter.seen.specs]


def test_what_is_deleted_while_it_is_answered_stays_deleted(visited: Visit) -> None:
    page = visited.page
    page.get_by_label("Question").fill("hang")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    page.get_by_role("button", name="Delete “hang”").click()
    expect(page.get_by_role("button", name="Stop")).to_have_count(0)
    ask(page, "next")
    page.reload()
    expect(page.locator(".history li")).to_have_count(1)
    expect(page.get_by_role("button", name="next", exact=True)).to_be_visible()


def test_reasoning_is_beside_the_answer(visited: Visit) -> None:
    page = visited.page
    usage = {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
    ask(page, script({"reasoning": "<b>Hm"}, "Yes.", usage=usage))
    assert answers(page) == ["Yes."]
    page.locator("summary").click()
    expect(page.locator(".reasoning .text")).to_have_text("<b>Hm")
    expect(page.locator(".usage li").nth(3)).to_have_text("output 3 tokens")
    expect(page.locator(".usage li").nth(4)).to_contain_text("first token after")


def test_an_answer_nested_too_deeply_is_shown_as_text(visited: Visit) -> None:
    ask(visited.page, "> " * 6000 + "deep")
    assert "deep" in answers(visited.page)[0]


def test_images_are_chosen_pasted_shown_and_sent(visited: Visit, adapter: Adapter) -> None:
    page = visited.page
    red = draw("red", "circle").png
    choose(page, red, "one.png", "two.png")
    thumbnails = page.locator(".composer .thumbnail")
    expect(thumbnails).to_have_count(2)
    expect(thumbnails.first).to_contain_text("256 × 256")
    page.get_by_role("button", name="Remove one.png").click()
    expect(thumbnails).to_have_count(1)
    choose(page, b"no image", "text.png", media_type="text/plain")
    expect(page.get_by_role("alert")).to_contain_text("text.png is not an image")
    blue = draw("blue", "square").png
    hand_over(page, "paste", "pasted.png", blue)
    expect(thumbnails).to_have_count(2)
    ask(page, "what")
    (message,) = adapter.spec.messages
    assert [part.image.data for part in message.parts if part.HasField("image")] == [red, blue]


def test_what_is_set_is_sent(visited: Visit, adapter: Adapter) -> None:
    page = visited.page
    for label, value in (("Temperature", "0.5"), ("Maximum tokens", "7"), ("Seed", "3")):
        page.get_by_label(label).fill(value)
    page.get_by_label("System message").fill("be brief")
    ask(page, "what")
    sampling = adapter.spec.sampling
    assert (sampling.temperature, sampling.max_tokens, sampling.seed) == (0.5, 7, 3)
    assert adapter.spec.messages[0].parts[0].text == "be brief"
    page.reload()
    expect(page.get_by_label("Temperature")).to_have_value("0.5")


def test_errors_are_shown_as_the_api_says_them(visited: Visit) -> None:
    page = visited.page
    page.get_by_label("Question").fill("fail CONTEXT_LENGTH_EXCEEDED")
    page.keyboard.press("Enter")
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("It is CONTEXT_LENGTH_EXCEEDED.")
    expect(alert).to_contain_text("HTTP 400 · context_length_exceeded")
    expect(alert).to_contain_text("request id")
    expect(alert).to_contain_text("Begin a new conversation")
    page.get_by_label("Question").fill("fail-after 4")
    page.keyboard.press("Enter")
    expect(alert.last).to_contain_text("overloaded")
    assert answers(page) == ["fail"]
    # The console tells of the status itself.
    visited.complaints[:] = [line for line in visited.complaints if "status of 400" not in line]


def test_answers_and_file_names_cannot_do_anything(visited: Visit) -> None:
    page = visited.page
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    choose(page, draw("red", "circle").png, ATTACKS[0] + ".png")
    expect(page.locator(".composer .thumbnail")).to_contain_text(ATTACKS[0])
    for number, attack in enumerate(ATTACKS):
        ask(page, attack, number=number)
    bad = page.locator(
        ".markdown :is(img, svg, script, style, iframe, form, math, [onclick], [onerror], [style],"
        " [href^=javascript], [href^=data])"
    )
    expect(bad).to_have_count(0)
    expect(page.locator(".markdown").first).to_have_text(ATTACKS[0])
    ask(page, "**bold** and [link](https://example.com)", number=len(ATTACKS))
    expect(page.locator(".markdown strong")).to_have_text("bold")
    link = page.locator(".markdown a[href^=https]")
    expect(link).to_have_attribute("rel", "noopener noreferrer nofollow")
    assert not [url for url in asked if "example.com" in url]


def test_a_key_is_asked_for(browser: Browser, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    with (
        open_adapter(api_key_file=str(keys)) as adapter,
        visit(browser, adapter.url) as found,
    ):
        page = found.page
        field = page.get_by_label("API key")
        expect(field).to_be_visible()
        field.fill("ключ")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("No API key has the character “к”")
        field.fill("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("The API key is invalid.")
        field.fill(KEY)
        page.keyboard.press("Enter")
        expect(page.locator("select")).to_be_visible()
        expect(page.get_by_role("alert")).to_have_count(0)
        ask(page, "hello")
        assert answers(page) == ["hello"]
        page.get_by_role("button", name="Code", exact=True).click()
        expect(page.locator("dialog pre")).to_contain_text("$API_KEY")
        expect(page.locator("dialog pre")).not_to_contain_text(KEY)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("language", ["en-US", "zh-CN"])
def test_everybody_can_use_it(
    browser: Browser, adapter: Adapter, language: str, theme: str
) -> None:
    size = {"width": 390, "height": 800} if theme == "dark" else {"width": 1200, "height": 900}
    options = {"locale": language, "color_scheme": theme, "viewport": size}
    with visit(browser, adapter.url, **options) as found:
        page = found.page
        expect(page.locator(".examples li")).to_have_count(5)
        expect(page.locator("html")).to_have_attribute("lang", language.removesuffix("-US"))
        assert_accessible(page)
        page.locator("textarea").last.fill("# Title\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n`code`")
        page.keyboard.press("Enter")
        expect(page.locator(".usage")).to_have_count(1)
        page.locator(".question button").click()  # it is edited, and something is wrong
        choose(page, b"no image", "text.png", media_type="text/plain")
        expect(page.locator(".notice")).to_be_visible()
        assert_accessible(page)
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= size["width"]
        assert found.complaints == []
