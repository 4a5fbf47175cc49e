"""Images and videos of a request, from whatever form a program has them in.

Pillow images and numpy arrays are recognised by their attributes: neither library is imported here.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Mapping
import errno
import io
import os
from pathlib import Path
import re
from typing import IO, Any, Final, Literal, Protocol, TypeGuard, runtime_checkable
from urllib.parse import unquote_to_bytes

from qwenvl.fields import built
from qwenvl.inference.v1 import message_pb2 as message_pb
from qwenvl.limits import MAX_MESSAGE_BYTES
from qwenvl.png import png_of


Detail = Literal["auto", "low", "high"]
Oversized = Literal["downsize", "reject"]
"""What happens to an image with more pixels than its maximum."""

_DETAILS: Final = {
    "auto": message_pb.IMAGE_DETAIL_AUTO,
    "low": message_pb.IMAGE_DETAIL_LOW,
    "high": message_pb.IMAGE_DETAIL_HIGH,
}
_OVERSIZED: Final = {
    "downsize": message_pb.OVERSIZED_IMAGE_DOWNSIZE,
    "reject": message_pb.OVERSIZED_IMAGE_REJECT,
}
_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_BASE64: Final = re.compile(r"(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR|SUkq|TU0A)[A-Za-z0-9+/]{16}")
"""Base64 of a PNG, a JPEG, a GIF, a WebP or a TIFF."""
_ORIENTATION: Final = 0x0112  # the EXIF tag
_PNG_MODES: Final = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}
_CONVERTIBLE_MODES: Final = {
    **dict.fromkeys(("CMYK", "YCbCr", "HSV", "LAB", "RGBX"), "RGB"),
    **dict.fromkeys(("PA", "RGBa"), "RGBA"),
    "La": "LA",
    **dict.fromkeys(("I;16B", "I;16L", "I;16N"), "I;16"),
}


@runtime_checkable
class BinaryFile(Protocol):
    """A file object opened in binary mode."""

    def read(self) -> bytes:
        """Everything from the current position."""
        ...


@runtime_checkable
class PillowImage(Protocol):
    """A `PIL.Image.Image`."""

    @property
    def mode(self) -> str:
        """Its pixel format."""
        ...

    def convert(self, mode: str) -> Any:
        """A copy in another pixel format."""
        ...

    def getexif(self) -> Any:
        """Its EXIF data."""
        ...

    def save(self, fp: IO[bytes], format: str | None = None, **params: Any) -> None:  # noqa: A002 - Pillow's name
        """Writes it as a file."""
        ...


@runtime_checkable
class Array(Protocol):
    """A `numpy.ndarray`."""

    @property
    def __array_interface__(self) -> dict[str, Any]: ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its size in each dimension."""
        ...

    def tobytes(self) -> bytes:
        """Its elements in C order."""
        ...


ImageSource = (
    bytes
    | bytearray
    | memoryview
    | str
    | os.PathLike[str]
    | BinaryFile
    | PillowImage
    | Array
    | message_pb.Image
)
"""An image: see `image`."""

Images = ImageSource | Iterable[ImageSource]
"""One image or several."""


def image(
    source: ImageSource,
    *,
    detail: Detail | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    uuid: str | None = None,
    oversized: Oversized | None = None,
) -> message_pb.Image:
    """An image of a message.

    Args:
        source: The encoded file as bytes, a path, a file object opened in binary mode (read from its position), a
            Pillow image, a numpy array (height, width) or (height, width, 1, 3 or 4) of uint8 or bool, or a text: a
            `data:` URL, another URL, which the service fetches if its media policy allows it, or else a path.
        detail: How much of the model's pixel budget to use; None = `auto`.
        min_pixels: Minimum number of pixels after resizing; None = the model's own.
        max_pixels: Maximum number of pixels after resizing; None = the model's own.
        uuid: The program's own name for the image, returned in `started.images`.
        oversized: `reject` = refuse the image if it has more pixels than its maximum, with the largest size that fits
            in the error's metadata; None = as the request says, by default `downsize`.

    Raises:
        OSError: The file cannot be read.
        TypeError: This is not an image.
        ValueError: The image is empty, the URL is malformed, or the pixel format is ambiguous.
    """
    made = _image_of(source)
    if detail is not None and detail not in (*_DETAILS,):
        raise ValueError(f"detail is {detail!r}, but must be one of {', '.join(_DETAILS)}")
    fields = {
        "detail": None if detail is None else _DETAILS[detail],
        "min_pixels": min_pixels,
        "max_pixels": max_pixels,
        "uuid": uuid,
        "oversized": oversized_value(oversized),
    }
    made.MergeFrom(built(message_pb.Image, fields))
    return made


def oversized_value(oversized: Oversized | None) -> message_pb.OversizedImage | None:
    """The value of the field `oversized`.

    Raises:
        ValueError: It is none.
    """
    if oversized is not None and oversized not in (*_OVERSIZED,):
        raise ValueError(f"oversized is {oversized!r}, but must be one of {', '.join(_OVERSIZED)}")
    return None if oversized is None else _OVERSIZED[oversized]


def video(frames: Iterable[ImageSource], *, fps: float | None = None) -> message_pb.Video:
    """A video of a message: its frames in chronological order.

    Args:
        frames: Images of the same size, each as `image` takes it, without options of their own.
        fps: Frames per second at which they were sampled; None = 2.

    Raises:
        TypeError: `frames` is one file: a video file has to be decoded by the caller.
        OSError: As `image`.
        ValueError: As `image`.
    """
    if is_image(frames):
        raise TypeError("frames is a single image or file; pass a list of images, one per frame")
    made = message_pb.Video(frames=_images("frames", frames))
    made.MergeFrom(built(message_pb.Video, {"fps": fps}))
    return made


def images_of(images: Images | None) -> list[message_pb.Image]:
    """The messages for one image or several; None = no image."""
    if images is None:
        return []
    if is_image(images):
        return [image(images)]
    return _images("images", images)


def _images(name: str, several: object) -> list[message_pb.Image]:
    if not isinstance(several, Iterable) or isinstance(several, (Mapping, set, frozenset)):
        raise TypeError(f"{name} is an image or a list of images, not {type(several).__name__}")
    return [image(source) for source in several]


def is_image(value: object) -> TypeGuard[ImageSource]:
    """Whether a value is one image, and not several."""
    kinds = (bytes, bytearray, memoryview, str, os.PathLike, message_pb.Image)
    # Pillow before arrays: its images are arrays too, and copy all pixels when asked for that.
    if isinstance(value, (*kinds, BinaryFile, PillowImage)):
        return True
    return isinstance(value, Array) and len(value.shape) < 4


def _image_of(source: ImageSource) -> message_pb.Image:
    if isinstance(source, message_pb.Image):
        copy = message_pb.Image()
        copy.CopyFrom(source)
        return copy
    if isinstance(source, str):
        return _image_of_text(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
    elif isinstance(source, os.PathLike):
        data = _read(Path(source))
    elif isinstance(source, PillowImage):
        data = _encoded(source)
    elif isinstance(source, Array):
        data = png_of(source.shape, source.__array_interface__["typestr"], source.tobytes())
    elif isinstance(source, BinaryFile):
        data = source.read()
        if not isinstance(data, bytes):
            raise TypeError("the file of the image must be opened in binary mode ('rb')")
    else:
        raise TypeError(
            "an image is bytes, a path, a file object, a Pillow image, a numpy array or a URL,"
            f" not {type(source).__name__}"
        )
    if not data:
        raise ValueError(
            "the image is empty (a file object is read from its position: seek(0) first)"
        )
    return message_pb.Image(data=data)


def _read(path: Path) -> bytes:
    """A file, or what a pipe has; not more than a message can, as a device may never end."""
    with path.open("rb") as file:
        data = file.read(MAX_MESSAGE_BYTES + 1)
    if len(data) > MAX_MESSAGE_BYTES:
        maximum = MAX_MESSAGE_BYTES // 2**20
        raise ValueError(f"{path} has more than {maximum} MiB, the maximum size of a message")
    return data


def _image_of_text(text: str) -> message_pb.Image:
    url = text.strip()
    if url[:5].lower() == "data:":
        return _image_of_data_url(url)
    if _SCHEME.match(url):
        return message_pb.Image(uri=url)
    if not url:
        raise ValueError("an image is a path or a URL, but this text is empty")
    try:
        path = Path(text).expanduser()
    except RuntimeError:  # no such user: a name that begins with ~
        path = Path(text)
    try:
        return _image_of(path)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG and not _BASE64.match(url):
            raise
        # Its message would have all of the text.
        raise ValueError(
            f"an image is a path or a URL, but this text of {len(text)} characters is neither; send the bytes of the"
            " file, or a data: URL ('data:image/png;base64,...')"
        ) from None


def _image_of_data_url(url: str) -> message_pb.Image:
    """Decodes a data URL (RFC 2397)."""
    header, comma, body = url[5:].partition(",")
    if not comma:
        raise ValueError("the data URL has no comma before its data")
    kind, *parameters = (part.strip() for part in header.split(";"))
    data = unquote_to_bytes(body)
    if parameters and parameters[-1].lower() == "base64":
        try:
            data = binascii.a2b_base64(b"".join(data.split()), strict_mode=True)
        except binascii.Error as error:
            raise ValueError(f"the base64 data of the data URL is invalid: {error}") from None
    if not data:
        raise ValueError("the data URL contains no data")
    return message_pb.Image(data=data, mime_type=kind)


def _encoded(picture: PillowImage) -> bytes:
    """A Pillow image as a PNG file, losslessly."""
    mode = picture.mode
    options: dict[str, Any] = {}
    if mode not in _PNG_MODES:
        if mode not in _CONVERTIBLE_MODES:
            raise ValueError(
                f"the range of Pillow's mode {mode!r} is not defined; scale the image to 0 to 255 and convert it to"
                " 'L' first (convert() alone cuts off)"
            )
        exif = picture.getexif()
        if mode.startswith("I;16"):  # Pillow orders their bytes in two steps only
            picture = picture.convert("I")
        picture = picture.convert(_CONVERTIBLE_MODES[mode])
    else:
        exif = picture.getexif()
    if exif.get(_ORIENTATION, 1) != 1:
        options["exif"] = exif  # else the service would not know how to turn the image
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1, **options)
    return buffer.getvalue()
