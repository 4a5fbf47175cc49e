"""A real Chromium, that of the system, driven by Playwright: offline, with a new profile and one font.

The font is the one that Pillow carries, so that nothing depends on the fonts of the machine.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
import contextlib
from dataclasses import dataclass, field
import os
from pathlib import Path
import shutil
import subprocess
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from PIL import ImageFont
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
import pytest


NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PLAIN_HOST = "box"  # a name without dots of this machine; browsers trust its pages less than those of localhost
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    f"--host-resolver-rules=MAP {PLAIN_HOST} 127.0.0.1",
)
TIMEOUT_MS = 30_000
FONTS = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "urn:fontconfig:fonts.dtd">
<fontconfig><dir>{folder}</dir><cachedir>{folder}/cache</cachedir></fontconfig>
"""


def _fonts(folder: Path) -> Path:
    """The configuration of fontconfig with one font."""
    font = ImageFont.load_default(20)
    assert isinstance(font, ImageFont.FreeTypeFont)
    (folder / "font.ttf").write_bytes(font.font_bytes)
    configuration = folder / "fonts.conf"
    configuration.write_text(FONTS.format(folder=folder))
    return configuration


def _program() -> str | None:
    """The path of a Chromium that runs; Ubuntu has a program of this name that only recommends to install it."""
    for name in NAMES:
        if path := shutil.which(name):
            command = [path, "--version"]
            if not subprocess.run(command, capture_output=True, check=False, timeout=60).returncode:
                return path
    return None


@contextlib.contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """Chromium until it is left; skips the test where there is none.

    Use it for one folder at most: while it is open, no test of this thread can have an event loop.

    Args:
        folder: An empty folder for what it writes.
    """
    program = _program()
    if program is None:
        pytest.skip("There is no Chromium (Debian: apt-get install chromium).")
    environment: dict[str, Any] = os.environ | {
        "FONTCONFIG_FILE": str(_fonts(folder)),
        "HOME": str(folder),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "XDG_CACHE_HOME": str(folder / "cache"),
    }
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=list(FLAGS), env=environment, timeout=TIMEOUT_MS
        )
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """A page in a profile of its own, and what it complained about."""

    context: BrowserContext
    page: Page
    complaints: list[str] = field(default_factory=list)

    def listen(self) -> None:
        """Collects errors, warnings of the console (violations of the policy are), and requests that fail."""
        self.page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        self.page.on(
            "console",
            lambda said: (
                self.complaints.append(f"{said.type}: {said.text}")
                if said.type in ("error", "warning")
                else None
            ),
        )
        self.page.on("dialog", lambda dialog: self.complaints.append(f"dialog: {dialog.message}"))


@contextlib.contextmanager
def visit(browser: Browser, address: str, **options: Any) -> Iterator[Visit]:
    """Opens an address in a new profile."""
    options = {"viewport": {"width": 1200, "height": 900}, "locale": "en-US"} | options
    context = browser.new_context(**options)
    context.set_default_timeout(TIMEOUT_MS)
    try:
        found = Visit(context, context.new_page())
        found.listen()
        found.page.goto(address)
        yield found
    finally:
        context.close()


def hand_over(page: Page, how: str, name: str, png: bytes) -> None:
    """Drops a file on the page, or pastes it (`how`: `drop`, `paste`)."""
    page.evaluate(
        """([how, name, text]) => {
            const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
            const data = new DataTransfer();
            data.items.add(new File([bytes], name, { type: "image/png" }));
            const options = { bubbles: true, cancelable: true, dataTransfer: data, clipboardData: data };
            const events = how === "drop"
                ? [new DragEvent("dragover", options), new DragEvent("drop", options)]
                : [new ClipboardEvent("paste", options)];
            for (const event of events) document.body.dispatchEvent(event);
        }""",
        [how, name, base64.b64encode(png).decode()],
    )


def assert_accessible(page: Page) -> None:
    """Nothing that axe calls serious or critical, the contrast of WCAG AA included."""
    found = Axe().run(page).response["violations"]
    serious = [each for each in found if each["impact"] in ("serious", "critical")]
    assert serious == [], [
        (each["id"], [node["html"] for node in each["nodes"]]) for each in serious
    ]
