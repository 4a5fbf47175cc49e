"""Draws scenes, resizes images and splits them into patches as the service does."""

from __future__ import annotations

import io
import math
from random import Random

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from demo_training.lettering import draw_word
from demo_training.scenes import Scene


PATCH = 16
MERGE = 2
STEP = PATCH * MERGE
MIN_PIXELS = 15_360  # just below 128 x 128, so that rounding never enlarges a square to 160
MAX_PIXELS = 24_576  # 128 x 192: a square becomes 128 x 128, 4:3 becomes 160 x 128
# Of generated images, in pixels.
SHORTEST_SIDE, LONGEST_SIDE = 64, 1024


def smart_resize(width: int, height: int) -> tuple[int, int]:
    """The size of an image for the model by Qwen2-VL's rule, with sides that are multiples of 32."""
    w, h = round(width / STEP) * STEP, round(height / STEP) * STEP
    if w * h > MAX_PIXELS:
        beta = math.sqrt(width * height / MAX_PIXELS)
        h = max(STEP, math.floor(height / beta / STEP) * STEP)
        w = max(STEP, math.floor(width / beta / STEP) * STEP)
    elif w * h < MIN_PIXELS:
        beta = math.sqrt(MIN_PIXELS / (width * height))
        h = math.ceil(height * beta / STEP) * STEP
        w = math.ceil(width * beta / STEP) * STEP
    return w, h


def _ground(scene: Scene) -> Image.Image:
    size = (scene.width, scene.height)
    if scene.background[0] == scene.background[1]:
        return Image.new("RGB", size, scene.background[0])
    ends = Image.new("RGB", (1, 2) if scene.upright_gradient else (2, 1))
    ends.putpixel((0, 0), scene.background[0])
    ends.putpixel((0, 1) if scene.upright_gradient else (1, 0), scene.background[1])
    return ends.resize(size, Image.Resampling.BILINEAR)


def render(scene: Scene, noise_seed: int = 0) -> Image.Image:
    """Draws the scene at its size, RGB."""
    image = _ground(scene)
    # Smooth edges by drawing at twice the size; large images are smoothed by the model's resizing.
    scale = 2 if scene.smooth and scene.width * scene.height <= 90_000 else 1
    if scale > 1:
        image = image.resize(
            (scene.width * scale, scene.height * scale),
            Image.Resampling.NEAREST,
        )
    draw = ImageDraw.Draw(image)
    stroke = max(1, round(0.008 * min(image.size)))
    for shape in scene.shapes:
        if shape.corners:
            corners = [(x * scale, y * scale) for x, y in shape.corners]
            draw.polygon(corners, fill=shape.rgb, outline=scene.outline, width=stroke)
        else:
            box = [v * scale for v in shape.box]
            draw.ellipse(box, fill=shape.rgb, outline=scene.outline, width=stroke)
    for word in scene.words:
        draw_word(draw, word, scale)
    if scale > 1:
        image = image.reduce(scale)
    if scene.noise:
        rng = np.random.default_rng(noise_seed)
        pixels = np.asarray(image, np.float32)
        pixels = pixels + rng.standard_normal(pixels.shape, np.float32) * scene.noise
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if scene.jpeg_quality is not None:
        held = io.BytesIO()
        image.save(held, "JPEG", quality=scene.jpeg_quality)
        image = Image.open(held).convert("RGB")
    return image


def as_seen(image: Image.Image) -> npt.NDArray[np.uint8]:
    """The image for the model: RGB, resized bicubically, height x width x 3."""
    size = smart_resize(*image.size)
    image = image.convert("RGB")
    if image.size != size:
        image = image.resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image, np.uint8)


def patches(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Patches in Qwen2-VL's order (blocks of 2 x 2), channels first, one frame."""
    height, width, channels = pixels.shape
    blocks = pixels.reshape(
        height // STEP,
        MERGE,
        PATCH,
        width // STEP,
        MERGE,
        PATCH,
        channels,
    )
    ordered = blocks.transpose(0, 3, 1, 4, 6, 2, 5)
    return ordered.reshape(-1, channels * PATCH * PATCH)


def draw_size(random: Random, target: tuple[int, int]) -> tuple[int, int]:
    """A random image size, SHORTEST_SIDE to LONGEST_SIDE px per side, that is resized to `target`."""
    for _ in range(40):
        exact = target[0] / target[1]
        ratio = (
            exact
            if target[0] == target[1] and random.random() < 0.9
            else (exact * random.uniform(0.82, 1.22))
        )
        largest = (
            320 if random.random() < 0.85 else LONGEST_SIDE
        )  # large images cost time and add little
        longer = math.exp(random.uniform(math.log(SHORTEST_SIDE), math.log(largest)))
        width = round(longer if ratio >= 1 else longer * ratio)
        height = round(longer / ratio if ratio >= 1 else longer)
        if smart_resize(width, height) == target and min(width, height) >= SHORTEST_SIDE:
            return width, height
    return target
