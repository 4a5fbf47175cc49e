"""The page by keyboard alone, over plain HTTP from another machine, and over a network that breaks."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import socket
import struct
import threading

from playwright.sync_api import Browser, FilePayload, Page, expect

from tests.rest_adapter.conftest import Adapter
from tests.rest_adapter.playground.page import answer_with, answers, ask, choose, question
from tests.support.browser import PLAIN_HOST, Visit, visit
from tests.support.images import draw


RED = draw("red", "circle").png
# What has the focus, as a screen reader says it.
FOCUSED = r"""() => {
    const { activeElement: it } = document;
    return it.getAttribute("aria-label") ?? (it.labels?.[0] ?? it).innerText.trim().split("\n")[0];
}"""


def walk_to(page: Page, name: str, key: str = "Tab") -> None:
    """Presses a key until the element of this name has the focus."""
    passed = []
    for _ in range(60):
        page.keyboard.press(key)
        passed.append(page.evaluate(FOCUSED))
        if passed[-1] == name:
            return
    raise AssertionError(f"{name!r} is not among {passed}")


def test_the_keyboard_alone_suffices(visited: Visit) -> None:
    page = visited.page
    ask_by_keyboard(page)
    use_answer_by_keyboard(page)


def ask_by_keyboard(page: Page) -> None:
    """Theme, settings, an image and a question, each as it comes."""
    page.on("filechooser", lambda _: None)  # else the browser may ignore the first
    answer_with(page, [(0, "circle", (9, 9, 99, 99))])
    expect(question(page)).to_be_focused()
    walk_to(page, "Theme: as the system")
    page.keyboard.press("Enter")
    expect(page.locator("html")).to_have_attribute("data-theme", "light")
    walk_to(page, "Temperature")
    page.keyboard.type("0.5")
    walk_to(page, "Pixels per image")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("aside")).not_to_contain_text("at most 1,000,000 pixels")
    walk_to(page, "System message")
    walk_to(page, "What is in this picture?")
    walk_to(page, "Add images")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(FilePayload(name="red.png", mimeType="image/png", buffer=RED))
    expect(page.locator(".composer .thumbnail")).to_have_count(1)
    expect(question(page)).to_be_focused()
    walk_to(page, "Remove red.png", "Shift+Tab")
    walk_to(page, "Question")
    page.keyboard.type("Where?")
    page.keyboard.press("Enter")
    expect(page.locator(".box")).to_have_count(1)


def use_answer_by_keyboard(page: Page) -> None:
    """Cuts out a box, edits the question, and deletes the conversation."""
    walk_to(page, "Cut out: circle", "Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.locator(".box")).to_be_focused()
    page.keyboard.press("Enter")
    walk_to(page, "Ask about it")
    page.keyboard.press("Enter")
    expect(page.locator(".composer .thumbnail")).to_contain_text("circle.png")
    walk_to(page, "Remove circle.png", "Shift+Tab")
    page.keyboard.press("Space")
    expect(page.locator(".composer .thumbnail")).to_have_count(0)
    expect(question(page)).to_be_focused()
    for name in ("Copy answer", "Code", "Ask again", "Edit"):
        walk_to(page, name, "Shift+Tab")
    page.keyboard.press("Enter")
    expect(question(page)).to_have_value("Where?")
    expect(question(page)).to_be_focused()
    walk_to(page, "Cancel", "Shift+Tab")
    page.keyboard.press("Enter")
    expect(question(page)).to_be_focused()
    walk_to(page, "New conversation")
    page.keyboard.press("Enter")
    walk_to(page, "Where?")
    walk_to(page, "Delete “Where?”")
    page.keyboard.press("Enter")
    expect(page.locator(".history li")).to_have_count(0)


def test_on_a_phone_the_menu_is_apart_from_the_page(browser: Browser, adapter: Adapter) -> None:
    with visit(browser, adapter.url, viewport={"width": 390, "height": 800}) as found:
        page = found.page
        expect(page.locator("select")).to_be_visible()
        menu = page.get_by_role("button", name="History and settings")
        menu.focus()
        page.keyboard.press("Enter")
        close = page.get_by_role("button", name="Close")
        expect(close).to_be_focused()
        for _ in range(12):  # nothing behind it can be reached
            page.keyboard.press("Tab")
            assert page.evaluate("document.activeElement.closest('header, main')") is None
        page.keyboard.press("Escape")
        expect(close).to_be_hidden()
        expect(menu).to_be_focused()
        choose(page, RED, *(f"{number}.png" for number in range(8)))
        expect(page.get_by_role("button", name="Send")).to_be_in_viewport(ratio=1)
        menu.click()
        page.set_viewport_size({"width": 1200, "height": 800})
        ask(page, "wide")
        assert found.complaints == []


def test_what_is_copied_over_plain_http_arrives(browser: Browser, adapter: Adapter) -> None:
    with visit(browser, f"http://{PLAIN_HOST}:{adapter.port}/") as found:
        page = found.page
        assert page.evaluate("navigator.clipboard") is None
        ask(page, "*two*\nlines")
        page.get_by_role("button", name="Copy answer").click()
        expect(page.get_by_role("button", name="Copied")).to_be_visible()
        question(page).focus()
        page.keyboard.press("Control+V")
        expect(question(page)).to_have_value("*two*\nlines")
        question(page).fill("")
        page.get_by_role("button", name="Code", exact=True).click()
        expect(page.locator("dialog pre")).to_contain_text(PLAIN_HOST)
        page.get_by_role("button", name="Copy", exact=True).click()
        expect(page.get_by_role("dialog").get_by_role("button", name="Copied")).to_be_visible()
        code = page.locator("dialog pre").inner_text()
        page.keyboard.press("Escape")
        question(page).focus()
        page.keyboard.press("Control+V")
        assert question(page).input_value() == code
        # Such pages have one protection less, of which there is no need.
        assert [line for line in found.complaints if "Opener-Policy" not in line] == []


class Relay:
    """Passes connections on to the adapter until they are cut."""

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self._open += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=pair, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """Resets all connections, as where a cable is pulled and a router answers."""
        for connection in self._open:
            with contextlib.suppress(OSError):
                option = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
                connection.shutdown(socket.SHUT_RD)
            connection.close()
        self._open.clear()

    def close(self) -> None:
        """Ends it."""
        self._listener.close()
        self.cut()


@contextlib.contextmanager
def relay(adapter: Adapter) -> Iterator[Relay]:
    made = Relay(adapter.port)
    try:
        yield made
    finally:
        made.close()


def test_a_network_that_breaks_leaves_what_arrived(browser: Browser, adapter: Adapter) -> None:
    with relay(adapter) as between, visit(browser, f"http://127.0.0.1:{between.port}/") as found:
        page = found.page
        choose(page, RED, "red.png")
        question(page).fill("hang-after 4")
        page.keyboard.press("Enter")
        expect(page.locator(".markdown")).to_have_text("hang")
        between.cut()
        alert = page.locator(".answer").get_by_role("alert")
        expect(alert).to_contain_text("Is the server running?")
        assert answers(page) == ["hang"]
        expect(page.get_by_role("button", name="Send")).to_be_visible()
        ask(page, "next")
        assert answers(page) == ["hang", "next"]
        expect(page.locator("main > .access")).to_have_count(0)
        found.context.set_offline(True)
        question(page).fill("offline")
        page.keyboard.press("Enter")
        expect(alert).to_have_count(2)
        expect(page.locator("header select")).to_be_visible()  # the models are still known
        found.context.set_offline(False)
        page.locator(".answer").last.get_by_role("button", name="Ask again").click()
        expect(page.locator(".markdown")).to_have_text(["hang", "next", "offline"])
        expect(page.locator("main > .access")).to_have_count(0)
