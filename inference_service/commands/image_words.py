"""Images as people write or drop them into a terminal: quoted, escaped, with `~`, as `file://` or as a URL."""

from __future__ import annotations

from pathlib import Path
import shlex
from urllib.parse import unquote, urlsplit


Image = Path | str
"""A local file, or a URL that the service fetches."""


class ImageWordError(Exception):
    """A word does not name an image; the message says why."""


def read_image_word(word: str) -> list[Image]:
    """The image that one argument of a command line names.

    Raises:
        ImageWordError: It is empty, or a `file://` URL of another machine.
    """
    if not word.strip():
        raise ImageWordError("the name of an image is empty")
    return [_image(word)]


def read_image_words(text: str) -> list[Image]:
    """The images in the rest of a line; a file whose name has spaces needs no quotes if it exists.

    Raises:
        ImageWordError: There is none, or one is a `file://` URL of another machine.
    """
    text = text.strip()
    if not text:
        raise ImageWordError("name a file or a URL: /image FILE")
    whole = _image(text)
    if isinstance(whole, str) or whole.is_file():
        return [whole]
    try:
        words = shlex.split(text)
    except ValueError:  # a quote without its pair is part of the name
        return [whole]
    images = [_image(word) for word in words]
    exist = all(isinstance(image, str) or image.is_file() for image in images)
    # Several words that are no files are one wrong name, and an error about that name is the clearer one.
    return images if exist or len(images) == 1 else [whole]


def _image(word: str) -> Image:
    scheme = word.partition(":")[0].lower()
    if scheme in ("http", "https", "data") and " " not in word:
        return word
    if scheme == "file":
        url = urlsplit(word)
        if url.netloc not in ("", "localhost"):
            raise ImageWordError(f"{word}: is a file of another machine, {url.netloc}")
        return Path(unquote(url.path))
    try:
        return Path(word).expanduser()
    except RuntimeError:  # no such user: a name that begins with ~
        return Path(word)
