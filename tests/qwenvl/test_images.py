"""Images of a request in every form that a program may have them in."""

from __future__ import annotations

import base64
import io
from pathlib import Path
import re
import subprocess
import sys
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image
import pytest

from qwenvl import image, user, video
from qwenvl.images import images_of
from qwenvl.inference.v1 import message_pb2 as message_pb
from tests.support.images import draw


PNG = draw("red", "circle", size=(40, 30)).png
RNG = np.random.default_rng(5)


def decoded(made: message_pb.Image) -> Image.Image:
    with Image.open(io.BytesIO(made.data)) as picture:
        picture.load()
        return picture


@pytest.fixture
def path(tmp_path: Path) -> Path:
    target = tmp_path / "x y.png"
    target.write_bytes(PNG)
    return target


def test_encoded_bytes_and_files_are_sent_as_they_are(path: Path) -> None:
    with path.open("rb") as file:
        sources: list[Any] = [
            *(PNG, bytearray(PNG), memoryview(PNG)),
            *(path, str(path), file, io.BytesIO(PNG), message_pb.Image(data=PNG)),
        ]
        assert [image(source).data == PNG for source in sources] == [True] * len(sources)


@pytest.mark.parametrize(
    "url",
    [
        f"data:image/png;base64,{base64.b64encode(PNG).decode()}",
        f"DATA:image/png;charset=x;BASE64, {base64.encodebytes(PNG).decode()}",
        f"data:image/png,{quote(PNG)}",
        f"data:image/png;base64,{quote(base64.b64encode(PNG).decode())}",
    ],
)
def test_data_urls_are_decoded(url: str) -> None:
    made = image(url)
    assert (made.data, made.mime_type) == (PNG, "image/png")


@pytest.mark.parametrize("url", ["https://host/x.png", "HTTP://host/x", "file:///data/x.png"])
def test_other_urls_are_for_the_service(url: str) -> None:
    assert image(f" {url}\n") == message_pb.Image(uri=url)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_pillow_images_are_sent_losslessly(mode: str) -> None:
    picture = Image.fromarray(RNG.integers(0, 256, (7, 5, 4), dtype=np.uint8)).convert(mode)
    sent = decoded(image(picture)).convert("RGBA")
    assert sent.tobytes() == picture.convert("RGBA").tobytes()


def test_pillow_images_in_16_bits_keep_them() -> None:
    picture = Image.fromarray(np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000)
    assert np.array_equal(np.asarray(decoded(image(picture))), np.asarray(picture))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "HSV"])
def test_pillow_images_that_png_does_not_know_are_converted(mode: str) -> None:
    picture = Image.new("RGB", (4, 4), (200, 30, 40)).convert(mode)
    assert decoded(image(picture)).mode == "RGB"


def test_a_pillow_image_keeps_its_orientation() -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(buffer, "JPEG", exif=exif)
    with Image.open(buffer) as picture:
        assert decoded(image(picture)).getexif()[0x0112] == 6


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 3), (5, 4, 4), (1, 1), (1, 900, 3)])
def test_arrays_are_sent_losslessly(shape: tuple[int, ...]) -> None:
    pixels = RNG.integers(0, 256, shape, dtype=np.uint8)
    assert np.array_equal(
        np.asarray(decoded(image(pixels))), pixels.squeeze(axis=2) if shape[2:] == (1,) else pixels
    )


def test_arrays_in_any_memory_order_and_masks() -> None:
    pixels = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    for view in (pixels[::-1, ::2], pixels.transpose(1, 0, 2), np.asfortranarray(pixels)):
        assert np.array_equal(np.asarray(decoded(image(view))), view)
    mask = np.array([[True, False], [False, True]])
    assert decoded(image(mask)).tobytes() == bytes([255, 0, 0, 255])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (RNG.random((4, 4, 3)), "uint8"),
        (np.zeros((4, 4, 3), np.uint16), "uint8"),
        (np.zeros((3, 40, 40), np.uint8), "shape"),
        (np.zeros((0, 4), np.uint8), "shape"),
        (np.zeros(4, np.uint8), "shape"),
        (Image.new("F", (2, 2)), "mode 'F'"),
        (b"", "empty"),
        (io.BytesIO(), "seek"),
        ("data:image/png;base64,####", "base64"),
        ("data:image/png;base64,", "no data"),
        ("data:image/png", "comma"),
    ],
)
def test_what_is_ambiguous_or_broken_is_refused(source: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image(source)


@pytest.mark.parametrize("source", [None, 5, 1.5, {}, [PNG], io.StringIO("x"), object()])
def test_what_is_no_image_is_refused(source: Any) -> None:
    with pytest.raises(TypeError):
        image(source)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        image("none.png")


def test_options_of_an_image() -> None:
    made = image(PNG, detail="low", min_pixels=16, max_pixels=99, uuid="a", oversized="reject")
    wanted = message_pb.Image(data=PNG, min_pixels=16, max_pixels=99, uuid="a")
    wanted.detail = message_pb.IMAGE_DETAIL_LOW
    wanted.oversized = message_pb.OVERSIZED_IMAGE_REJECT
    assert made == wanted
    assert image(made, uuid="b").max_pixels == 99
    assert made.uuid == "a"
    with pytest.raises(ValueError, match="detail is 'tiny'"):
        image(PNG, detail="tiny")  # type: ignore[arg-type]


def test_one_image_is_never_taken_apart(path: Path) -> None:
    one: list[Any] = [PNG, path, str(path), io.BytesIO(PNG), np.zeros((4, 4), np.uint8), image(PNG)]
    assert [len(images_of(source)) for source in one] == [1] * len(one)
    assert len(images_of([PNG, path, str(path)])) == 3
    assert len(images_of(np.zeros((3, 4, 4, 3), np.uint8))) == 3
    assert len(images_of(picture for picture in (PNG, PNG))) == 2
    assert images_of(None) == images_of(()) == []


def test_a_video_has_frames() -> None:
    made = video(np.zeros((3, 4, 4, 3), np.uint8), fps=2.5)
    assert (len(made.frames), made.fps) == (3, 2.5)
    assert user("What happens?", made).parts[1].video == made
    with pytest.raises(TypeError, match="list of images"):
        video("clip.mp4")


def test_neither_pillow_nor_numpy_is_imported() -> None:
    code = (
        "import sys\n"
        "from qwenvl import image, user\n"
        "user('x', image(b'x'))\n"
        "assert not {'PIL', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_pillow_images_in_16_bits_of_any_byte_order(mode: str) -> None:
    sent = Image.open(io.BytesIO(image(Image.new(mode, (2, 1), 40_000)).data))
    assert sent.getpixel((0, 0)) == 40_000


@pytest.mark.parametrize(
    "name", sorted(Image.MODES) if hasattr(Image, "MODES") else ["L", "La", "RGBa"]
)
def test_every_mode_of_pillow_is_sent_or_refused_clearly(name: str) -> None:
    try:
        assert image(Image.new(name, (4, 3))).data
    except ValueError as error:
        assert "is not defined; scale the image" in str(error)  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: image(b"x", min_pixels="a"), TypeError, "min_pixels is 'a'"),  # type: ignore[arg-type]  # on purpose
        (lambda: image(b"x", max_pixels=10**30), ValueError, "max_pixels is 1"),
        (lambda: image(b"x", uuid=5), TypeError, "uuid is 5"),  # type: ignore[arg-type]  # on purpose
        (lambda: image(" "), ValueError, "text is empty"),
        (lambda: image("~no-such-user/x.png"), FileNotFoundError, "~no-such-user/x.png"),
        (lambda: video([b"x"], fps="fast"), TypeError, "fps is 'fast'"),  # type: ignore[arg-type]  # on purpose
        (lambda: video(None), TypeError, "frames is an image or a list of images, not NoneType"),  # type: ignore[arg-type]  # on purpose
        (lambda: images_of(5), TypeError, "images is an image or a list of images, not int"),  # type: ignore[arg-type]  # on purpose
        (
            lambda: images_of({"a": 1}),
            TypeError,
            "images is an image or a list of images, not dict",
        ),
    ],
)
def test_what_is_wrong_is_named(call: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        call()


def test_a_file_without_end_is_not_read_for_ever() -> None:
    with pytest.raises(ValueError, match="/dev/zero has more than 32 MiB, the maximum size"):
        image("/dev/zero")
