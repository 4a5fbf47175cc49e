"""Images on the page: pasted, too many, too large, turned by EXIF data, with boxes, and as files of a program."""

from __future__ import annotations

import io
from pathlib import Path
import re
import subprocess
import sys
import zlib

import numpy as np
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from tests.rest_adapter.conftest import Adapter
from tests.rest_adapter.playground.page import answer_with, ask, change_model, choose, question
from tests.support.browser import Visit, hand_over
from tests.support.images import COLOURS, Placed, draw, draw_scene


RED, BLUE = (254, 0, 0), (0, 0, 254)
COPY = """async ([text, kinds]) => {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 9;
    const picture = await new Promise((resolve) => canvas.toBlob(resolve));
    const items = { "text/plain": new Blob([text], { type: "text/plain" }), "image/png": picture };
    const chosen = Object.fromEntries(kinds.map((kind) => [kind, items[kind]]));
    await navigator.clipboard.write([new ClipboardItem(chosen)]);
}"""


def share_of(element: Locator, colour: tuple[int, int, int]) -> float:
    """The share of an element's pixels, without its edge, that have about this colour."""
    element.page.mouse.move(0, 0)  # a box looks otherwise below it
    seen = np.asarray(Image.open(io.BytesIO(element.screenshot())).convert("RGB"), dtype=int)
    high, wide = (max(4, side // 10) for side in seen.shape[:2])
    inner = seen[high:-high, wide:-wide]
    return float((np.abs(inner - colour).max(axis=2) < 40).mean())


def test_what_is_pasted_is_text_or_an_image(visited: Visit) -> None:
    page = visited.page
    visited.context.grant_permissions(["clipboard-read", "clipboard-write"])
    thumbnails = page.locator(".composer .thumbnail")

    def paste(text: str, *kinds: str) -> None:
        page.evaluate(COPY, [text, list(kinds)])
        question(page).focus()
        page.keyboard.press("Control+V")

    both = ("text/plain", "image/png")
    paste("a cell of a table", *both)
    expect(question(page)).to_have_value("a cell of a table")
    paste("https://example.com/cat.png", *both)
    expect(thumbnails).to_have_count(1)
    paste("", "image/png")
    expect(thumbnails).to_have_count(2)
    expect(question(page)).to_have_value("a cell of a table")
    page.evaluate(COPY, ["text", list(both)])
    page.get_by_role("button", name="Add images").focus()
    page.keyboard.press("Control+V")
    expect(thumbnails).to_have_count(3)  # the text has no field to go to


def bare_png(width: int, height: int) -> bytes:
    """A black PNG of 1 bit, compressed as far as can be, as Pillow would not open it."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content).to_bytes(4)
        return len(content).to_bytes(4) + name + content + check

    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    start = width.to_bytes(4) + height.to_bytes(4) + bytes((1, 0, 0, 0, 0))
    parts = (chunk(b"IHDR", start), chunk(b"IDAT", rows), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_notices_of_images_go_with_their_reason(visited: Visit) -> None:
    page = visited.page
    page.evaluate(
        "for (const name of ['createObjectURL', 'revokeObjectURL']) { const inner = URL[name];"
        " window[name] = 0; URL[name] = (it) => { window[name] += 1; return inner.call(URL, it); }; }"
    )
    notice = page.locator(".composer .notice")
    choose(page, bare_png(20_000, 20_000), "huge.png")
    expect(page.locator(".composer .thumbnail")).to_contain_text("20000 × 20000")
    expect(page.locator(".composer .thumbnail img")).to_have_count(0)
    expect(notice).to_contain_text("huge.png: too many pixels")
    expect(notice).to_contain_text("at most 50 million")
    remove = page.get_by_role("button", name="Remove huge.png")
    remove.click()
    expect(notice).to_have_count(0)
    expect(question(page)).to_be_focused()
    red = draw("red", "circle").png
    choose(page, red, *(f"{number}.png" for number in range(4)))
    choose(page, b"no image", "text.png", media_type="text/plain")
    expect(notice).to_contain_text("text.png is not an image")
    choose(page, red, "5.png")
    expect(notice).to_have_count(1)
    expect(notice).to_contain_text("at most 4 images")
    for number in (0, 1):
        page.get_by_role("button", name=f"Remove {number}.png").click()
        expect(notice).to_have_count(0)
    question(page).fill("what")
    page.keyboard.press("Enter")
    expect(page.locator(".usage")).to_have_count(1)
    choose(page, red, "6.png", "7.png")
    expect(notice).to_contain_text("at most 4 images")  # with those of the turn before
    # The addresses of images that are gone are given back.
    collector = visited.context.new_cdp_session(page)
    for _ in range(50):
        collector.send("HeapProfiler.collectGarbage")
        if page.evaluate("window.revokeObjectURL >= 2"):
            break
        page.wait_for_timeout(100)
    assert page.evaluate("[window.createObjectURL > 7, window.revokeObjectURL >= 2]") == [True] * 2


def test_boxes_lie_on_each_of_several_images(visited: Visit) -> None:
    page = visited.page
    first = [Placed("red", "square", 0.3, 0.3, 0.2), Placed("blue", "square", 0.7, 0.7, 0.2)]
    second = [Placed("green", "square", 0.3, 0.7, 0.2)]
    choose(page, draw_scene(first), "first.png")
    choose(page, draw_scene(second), "second.png")
    edges = [
        (number, placed.colour, placed.box(256))
        for number, scene in enumerate((first, second))
        for placed in scene
    ]
    answer_with(page, [*edges, (7, "nowhere", (0, 0, 9, 9))])
    ask(page, "Where?")
    expect(page.locator(".canvas")).to_have_count(2)
    page.get_by_label("Labels").uncheck()
    for _, colour, _ in edges:
        box = page.get_by_label(f"Cut out: {colour}")
        assert share_of(box, COLOURS[colour][0]) > 0.95
    # What is asked again keeps the images that each answer is about.
    page.get_by_role("button", name="Edit").click()
    page.get_by_role("button", name="Remove first.png").click()
    answer_with(page, [(0, "green", second[0].box(256))])
    ask(page, "And here?")
    assert share_of(page.get_by_label("Cut out: green"), COLOURS["green"][0]) > 0.95


def turned(kind: str, orientation: int) -> bytes:
    """80 x 40 pixels as they lie, the left half red; EXIF data turn them."""
    image = Image.new("RGB", (80, 40), BLUE)
    image.paste(RED, (0, 0, 40, 40))
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    lossless = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    image.save(buffer, kind, exif=exif, **lossless)
    return buffer.getvalue()


# 3 = upside down; 6 = the left side is the top. The page takes the data from WebP.
LYING = (80, 40, (0, 0, 40, 40))
UPRIGHT = {3: (80, 40, (40, 0, 80, 40)), 6: (40, 80, (0, 0, 40, 40))}


def test_boxes_lie_on_what_the_model_saw_of_a_turned_image(visited: Visit) -> None:
    page = visited.page
    images = [(kind, turn) for turn in UPRIGHT for kind in ("WEBP", "JPEG", "PNG")]
    for transposed in (True, False):
        change_model(page, exif_transposed=transposed, max_images=8)
        for kind, turn in images:
            media_type = f"image/{kind.lower()}"
            choose(page, turned(kind, turn), f"{kind}-{turn}", media_type=media_type)
        size = "40 × 80" if transposed else "80 × 40"
        expect(page.locator(".composer .thumbnail").last).to_contain_text(size)
        seen = [UPRIGHT[turn] if transposed and kind != "WEBP" else LYING for kind, turn in images]
        answer_with(page, [(n, f"red {n}", box) for n, (_, _, box) in enumerate(seen)])
        ask(page, "Where is red?")
        page.get_by_label("Labels").uncheck()
        for number, (wide, high, _) in enumerate(seen):
            box = page.get_by_label(f"Cut out: red {number}")
            assert share_of(box, RED) > 0.95, (images[number], transposed)
            canvas = page.locator(".canvas").nth(number).bounding_box()
            assert canvas is not None
            assert abs(canvas["width"] / canvas["height"] - wide / high) < 0.05
        page.get_by_label("Cut out: red 4").click()
        assert share_of(page.locator("dialog img.crop"), RED) > 0.9
        page.keyboard.press("Escape")


def noise(side: int) -> bytes:
    """A PNG too large to stand in a program."""
    pixels = np.random.default_rng(side).integers(0, 255, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def save_all(page: Page, folder: Path) -> list[str]:
    """Saves the files that a program of the page needs, as a reader would."""
    names = []
    for link in page.locator("dialog .files a").all():
        with page.expect_download() as download:
            link.click()
        names.append(download.value.suggested_filename)
        download.value.save_as(folder / names[-1])
    return names


def test_a_program_reads_the_images_that_the_page_saves(
    visited: Visit, adapter: Adapter, tmp_path: Path
) -> None:
    page = visited.page
    big, other = noise(150), noise(151)
    buffer = io.BytesIO()
    Image.open(io.BytesIO(noise(152))).save(buffer, "AVIF", quality=90)
    name = '../my "photo" 照片 \\.png'
    choose(page, big, name)
    choose(page, other, name)
    choose(page, buffer.getvalue(), "new.avif", media_type="image/avif")
    hand_over(page, "paste", "image.png", draw("red", "circle").png)
    ask(page, "what")
    sent = [part.image.data for part in adapter.spec.messages[0].parts if part.HasField("image")]
    assert sent[:2] == [big, other]
    page.get_by_role("button", name="Code", exact=True).click()
    expect(page.locator("dialog .files")).to_have_count(0)  # the command of curl has them all
    page.get_by_role("button", name="openai (Python)").click()
    code = page.locator("dialog pre")
    expect(code).to_contain_text("from openai import OpenAI")
    names = save_all(page, tmp_path)
    assert re.findall(r'pathlib\.Path\("([^"]+)"\)', code.inner_text()) == names
    assert len(set(names)) == 3
    assert names[2] == "image-3-new.png"
    program = code.inner_text()
    subprocess.run(
        [sys.executable, "-"], input=program, cwd=tmp_path, check=True, text=True, timeout=120
    )
    again = [part.image.data for part in adapter.spec.messages[0].parts if part.HasField("image")]
    assert len(adapter.seen.specs) == 2
    assert again == sent
