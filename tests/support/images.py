"""Images of plain coloured shapes, drawn by other code than the demo model's own generator."""

from __future__ import annotations

import base64
from dataclasses import dataclass
import io
import math

from PIL import Image, ImageDraw, ImageFont


COLOURS = {
    "red": ((230, 20, 20), "红"),
    "green": ((20, 160, 40), "绿"),
    "blue": ((30, 60, 230), "蓝"),
    "yellow": ((250, 220, 20), "黄"),
    "black": ((10, 10, 10), "黑"),
    "purple": ((140, 30, 160), "紫"),
    "orange": ((255, 140, 0), "橙"),
    "gray": ((128, 128, 128), "灰"),
}
SCALE = 4  # images are drawn larger and reduced
SHAPES = {"circle": "圆", "square": "方", "triangle": "三角", "star": "星"}


@dataclass(frozen=True, slots=True)
class Drawn:
    """An image and what is in it."""

    png: bytes
    colour: str
    shape: str

    @property
    def data_uri(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.png).decode()

    def is_named_in(self, answer: str) -> bool:
        """Whether an answer names colour and shape, in either language."""
        english = self.colour in answer.lower() and self.shape in answer.lower()
        return english or (COLOURS[self.colour][1] in answer and SHAPES[self.shape] in answer)


def _encoded(image: Image.Image, size: tuple[int, int], kind: str = "PNG") -> bytes:
    """The image at that size; drawn larger, its edges become smooth."""
    buffer = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(buffer, kind, quality=85)
    return buffer.getvalue()


def _stamp(
    pen: ImageDraw.ImageDraw, colour: str, shape: str, middle: tuple[float, float], r: float
) -> None:
    fill, (x, y) = COLOURS[colour][0], middle
    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif shape == "square":
        pen.rectangle((x - r, y - r, x + r, y + r), fill=fill)
    elif shape == "triangle":
        pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=fill)
    else:
        points = []
        for k in range(10):
            reach = r if k % 2 == 0 else r * 0.4
            angle = -math.pi / 2 + k * math.pi / 5
            points.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
        pen.polygon(points, fill=fill)


def draw(
    colour: str, shape: str, *, size: tuple[int, int] = (256, 256), centre=(0.5, 0.5), radius=0.3
) -> Drawn:
    """One shape on a white ground; `centre` and `radius` are shares of the shorter side's image."""
    width, height = size
    image = Image.new("RGB", (width * SCALE, height * SCALE), "white")
    x, y = centre[0] * width * SCALE, centre[1] * height * SCALE
    _stamp(ImageDraw.Draw(image), colour, shape, (x, y), radius * min(width, height) * SCALE)
    return Drawn(_encoded(image, size), colour, shape)


@dataclass(frozen=True, slots=True)
class Placed:
    """A shape among others: middle and half width in shares of a square image."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float

    def box(self, side: int) -> tuple[float, float, float, float]:
        """Left, top, right, bottom in pixels of an image of that side; those of a star are a little smaller."""
        reach = math.cos(math.radians(18)) if self.shape == "star" else 1.0
        foot = math.cos(math.radians(36)) if self.shape == "star" else 1.0
        return (
            (self.x - self.radius * reach) * side,
            (self.y - self.radius) * side,
            (self.x + self.radius * reach) * side,
            (self.y + self.radius * foot) * side,
        )


def draw_scene(
    shapes: list[Placed], side: int = 256, ground: str = "white", kind: str = "PNG"
) -> bytes:
    """Several shapes on a plain square, as PNG or JPEG."""
    image = Image.new("RGB", (side * SCALE, side * SCALE), ground)
    pen = ImageDraw.Draw(image)
    for placed in shapes:
        x, y, r = (value * side * SCALE for value in (placed.x, placed.y, placed.radius))
        _stamp(pen, placed.colour, placed.shape, (x, y), r)
    return _encoded(image, (side, side), kind)


def scenes() -> list[list[Placed]]:
    """Scenes of one to four shapes, all different in colour and in kind."""
    places = [(0.25, 0.27), (0.75, 0.3), (0.28, 0.75), (0.73, 0.72)]
    colours, kinds = list(COLOURS), list(SHAPES)
    return [
        [
            Placed(
                colours[(3 * k + i) % len(colours)],
                kinds[(k + i) % len(kinds)],
                *places[(k + 2 * i) % 4 if number < 3 else i],
                0.14 + 0.01 * ((k + i) % 5),
            )
            for i in range(number)
        ]
        for k in range(8)
        for number in (1, 2, 3, 4)
    ]


def print_word(text: str, *, side: int = 256, colour: str = "black", share: float = 0.7) -> bytes:
    """PNG of a word in the middle of a white square, in Pillow's own font, `share` of its width."""
    probe = ImageFont.load_default(100).getlength(text)
    size = min(100 * share * side / probe, 0.6 * side)
    image = Image.new("RGB", (side * SCALE, side * SCALE), "white")
    middle = (side * SCALE / 2, side * SCALE / 2)
    font = ImageFont.load_default(size * SCALE)
    ImageDraw.Draw(image).text(middle, text, COLOURS[colour][0], font, anchor="mm")
    return _encoded(image, (side, side))


def gallery() -> list[Drawn]:
    """Every colour with every shape, in varying sizes, places and aspect ratios."""
    sizes = [(256, 256), (128, 128), (320, 240), (200, 300), (512, 512), (96, 96), (640, 480)]
    images = []
    for i, colour in enumerate(COLOURS):
        for j, shape in enumerate(SHAPES):
            k = i * len(SHAPES) + j
            images.append(
                draw(
                    colour,
                    shape,
                    size=sizes[k % len(sizes)],
                    centre=(0.4 + 0.05 * (k % 5), 0.4 + 0.05 * (k % 4)),
                    radius=0.18 + 0.04 * (k % 5),
                )
            )
    return images
