"""Pictures of plain coloured shapes, drawn by other code than the demo model's own generator."""

from __future__ import annotations

import base64
from dataclasses import dataclass
import io
import math

from PIL import Image, ImageDraw


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
SHAPES = {"circle": "圆", "square": "方", "triangle": "三角", "star": "星"}


@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture and what is in it."""

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


def draw(
    colour: str, shape: str, *, size: tuple[int, int] = (256, 256), centre=(0.5, 0.5), radius=0.3
) -> Drawn:
    """One shape on a white ground; `centre` and `radius` are shares of the shorter side's picture."""
    width, height = size
    scale = 4  # drawn large and reduced: smooth edges
    image = Image.new("RGB", (width * scale, height * scale), "white")
    pen = ImageDraw.Draw(image)
    x, y = centre[0] * width * scale, centre[1] * height * scale
    r = radius * min(width, height) * scale
    fill = COLOURS[colour][0]
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
    buffer = io.BytesIO()
    image.resize((width, height), Image.Resampling.LANCZOS).save(buffer, "PNG")
    return Drawn(buffer.getvalue(), colour, shape)


def gallery() -> list[Drawn]:
    """Every colour with every shape, in varying sizes, places and aspect ratios."""
    sizes = [(256, 256), (128, 128), (320, 240), (200, 300), (512, 512), (96, 96), (640, 480)]
    pictures = []
    for i, colour in enumerate(COLOURS):
        for j, shape in enumerate(SHAPES):
            k = i * len(SHAPES) + j
            pictures.append(
                draw(
                    colour,
                    shape,
                    size=sizes[k % len(sizes)],
                    centre=(0.4 + 0.05 * (k % 5), 0.4 + 0.05 * (k % 4)),
                    radius=0.18 + 0.04 * (k % 5),
                )
            )
    return pictures
