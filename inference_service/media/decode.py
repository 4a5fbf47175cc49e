"""From the bytes of a file to the RGB pixels that a model sees.

Owns everything that touches Pillow; no other serving module does. Must not know URLs, tokens or requests.

The bytes are hostile: formats are a short list, sizes are read from the header before anything is allocated, and no
text of the parser reaches a caller (CVE-2026-22778: it told a heap address).
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
import hashlib
import io
from typing import Final
import warnings

from PIL import Image

from inference_service.errors import ImageTooLargeError, InvalidImageError
from inference_service.media.geometry import image_grid, processed_size
from inference_service.models.spec import ImagePolicy
from inference_service.settings import ServiceSettings


FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF")

_ORIENTATION: Final = 0x0112  # EXIF 2.32; 1 and what is not here is upright
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow's own cap (89 million pixels) stays in force behind ours, and as an error.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeLimits:
    """How large a picture may be as sent: bytes of the file, pixels of its header."""

    max_bytes: int = 20 * 2**20
    max_pixels: int = 50_000_000

    @classmethod
    def from_settings(cls, settings: ServiceSettings) -> DecodeLimits:
        """The limits that the operator set."""
        return cls(max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessedPicture:
    """A picture as a model sees it.

    Attributes:
        pixels: RGB uint8, height x width x 3, C order.
        height: Pixels, a multiple of the policy's step.
        width: Pixels, a multiple of the policy's step.
        original_height: Pixels as decoded, after the EXIF orientation was applied.
        original_width: Pixels as decoded, after the EXIF orientation was applied.
        grid: (1, rows, columns) in patches.
        num_tokens: Placeholder tokens it takes in a prompt.
        digest: 32 bytes: sha256 over mode, both sizes, policy and `pixels`. The processed pixels are hashed, not the
            decoded ones: all that is computed from a picture is a function of them, and there are fewer.
    """

    pixels: bytes
    height: int
    width: int
    original_height: int
    original_width: int
    grid: tuple[int, int, int]
    num_tokens: int
    digest: bytes


class PictureDecoder:
    """Decodes pictures in threads; Pillow releases the interpreter lock while it works."""

    def __init__(self, limits: DecodeLimits, *, workers: int) -> None:
        self._limits = limits
        self._threads = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="decode")

    async def decode(
        self, data: bytes, *, policy: ImagePolicy, min_pixels: int, max_pixels: int, field: str
    ) -> ProcessedPicture:
        """`decode_picture` in a worker thread."""
        return await asyncio.get_running_loop().run_in_executor(
            self._threads,
            lambda: decode_picture(
                data,
                policy=policy,
                min_pixels=min_pixels,
                max_pixels=max_pixels,
                limits=self._limits,
                field=field,
            ),
        )

    def close(self) -> None:
        """Ends the threads; pictures not begun are given up."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def decode_picture(
    data: bytes,
    *,
    policy: ImagePolicy,
    min_pixels: int,
    max_pixels: int,
    limits: DecodeLimits,
    field: str,
) -> ProcessedPicture:
    """Decodes and resizes a picture as transformers' `Qwen2VLImageProcessorPil` does.

    Args:
        data: A file in JPEG, PNG, WebP or GIF; of an animation the first frame counts.
        policy: The family's rules.
        min_pixels: Least area after resizing.
        max_pixels: Greatest area after resizing.
        limits: How large the picture may be as sent.
        field: Path of the picture in the request, for errors.

    Raises:
        InvalidImageError: It cannot be decoded, is cut off, or is too flat.
        ImageTooLargeError: It has more bytes or pixels than allowed.
    """
    if len(data) > limits.max_bytes:
        raise _too_many_bytes(limits, field)
    try:
        rgb = _decode_rgb(data, limits, policy)
        original_width, original_height = rgb.size
        height, width = processed_size(
            original_height,
            original_width,
            policy,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
        )
        pixels = rgb.resize((width, height), Image.Resampling.BICUBIC).tobytes()
    except InvalidImageError as error:
        raise InvalidImageError(error.message, field=field) from None
    except _TOO_MANY_PIXELS:
        raise _too_many_pixels(limits, field) from None
    except Exception:  # noqa: BLE001 - parsers of hostile bytes raise anything, and their text stays here
        raise InvalidImageError(
            "The picture cannot be decoded: it must be a whole JPEG, PNG, WebP or GIF file.",
            field=field,
        ) from None
    grid = image_grid(height, width, policy)
    return ProcessedPicture(
        pixels=pixels,
        height=height,
        width=width,
        original_height=original_height,
        original_width=original_width,
        grid=grid,
        num_tokens=policy.tokens_of(grid),
        digest=_digest(pixels, (original_height, original_width, height, width), policy),
    )


class _TooManyPixelsError(Exception):
    """The header names more pixels than allowed."""


_TOO_MANY_PIXELS = (
    _TooManyPixelsError,
    MemoryError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def _decode_rgb(data: bytes, limits: DecodeLimits, policy: ImagePolicy) -> Image.Image:
    _check_pixels(_webp_size(data), limits)
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_pixels(image.size, limits)
        image.load()
        upright = _upright(image) if policy.exif_transpose else image
        return _on_white(upright) if policy.white_background else upright.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """As Pillow's `exif_transpose`, which also writes the EXIF block anew and fails where a camera wrote it oddly."""
    turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    return image if turn is None else image.transpose(turn)


def _on_white(image: Image.Image) -> Image.Image:
    """As transformers' `convert_to_rgb`: what is transparent lies on white."""
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    layered = image.convert("RGBA")
    white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layered).convert("RGB")


def _check_pixels(size: tuple[int, int], limits: DecodeLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise _TooManyPixelsError


def _webp_size(data: bytes) -> tuple[int, int]:
    """The canvas of a WebP file, whose decoder allocates it on opening; (0, 0) if it is another format."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return 0, 0
    kind = data[12:16]
    if kind == b"VP8X":
        return (
            int.from_bytes(data[24:27], "little") + 1,
            int.from_bytes(data[27:30], "little") + 1,
        )
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return (
        int.from_bytes(data[26:28], "little") & 0x3FFF,
        int.from_bytes(data[28:30], "little") & 0x3FFF,
    )


def _too_many_bytes(limits: DecodeLimits, field: str) -> ImageTooLargeError:
    return ImageTooLargeError(
        "The picture has more bytes than allowed.",
        field=field,
        metadata={"max_bytes": str(limits.max_bytes)},
    )


def _too_many_pixels(limits: DecodeLimits, field: str) -> ImageTooLargeError:
    return ImageTooLargeError(
        "The picture has more pixels than allowed.",
        field=field,
        metadata={"max_pixels": str(limits.max_pixels)},
    )


def _digest(pixels: bytes, sizes: tuple[int, ...], policy: ImagePolicy) -> bytes:
    # Sizes and mode are part of it: without them two pictures of the same bytes collide (CVE-2025-46722).
    digest = hashlib.sha256(f"RGB {sizes} {policy}\n".encode())
    digest.update(pixels)
    return digest.digest()
