"""Names the format of a file by its first bytes: those that are read, and those that refusals name."""

from __future__ import annotations

import re
from typing import Final


READABLE: Final = {
    "JPEG": "JPEG",
    "PNG": "PNG",
    "WEBP": "WebP",
    "GIF": "GIF",
    "BMP": "BMP",
    "TIFF": "TIFF",
}
"""Formats that are read, by the name that Pillow has for them, and as they are written."""

READABLE_TEXT: Final = "JPEG, PNG, WebP, GIF (first frame), BMP or single-page TIFF"

_MAGIC: Final = (
    (b"\xff\xd8\xff\xf7", "JPEG-LS"),
    (b"\xff\xd8", "JPEG"),
    (b"\x89PNG", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    # not read
    (b"%PDF", "PDF"),
    (b"\0\0\0\x0cjP  \r\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL \r\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"II\xbc", "JPEG XR"),
    *((b"\0\0" + kind + b"\0" * 5, "TGA") for kind in (b"\2", b"\3", b"\x0a", b"\x0b")),
    (b"\0\0\1\0", "ICO"),
    (b"\0\0\2\0", "CUR"),
    (b"8BPS", "PSD (Photoshop)"),
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"qoif", "QOI"),
    (b"farbfeld", "farbfeld"),
    (b"DDS ", "DDS"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    (b"icns", "ICNS"),
    (b"gimp xcf", "XCF (GIMP)"),
    (b"AT&TFORM", "DjVu"),
    (b"BPG\xfb", "BPG"),
    (b"FLIF", "FLIF"),
    (b"\x8aMNG", "MNG"),
    (b"\x8bJNG", "JNG"),
    (b"\xd7\xcd\xc6\x9a", "WMF"),
    (b"FORM", "IFF"),
    (b"SIMPLE  =", "FITS"),
    (b"FUJIFILMCCD-RAW", "camera raw"),
    (b"IIRO", "camera raw"),
    (b"IIU\0", "camera raw"),
    (b"\x1aE\xdf\xa3", "WebM or Matroska video"),
    (b"FLV\1", "FLV video"),
    (b"OggS", "Ogg"),
    (b"\0\0\1\xba", "MPEG video"),
    (b"\0\0\1\xb3", "MPEG video"),
    (b"\x30\x26\xb2\x75", "WMV video"),
    (b"ID3", "MP3 audio"),
    (b"fLaC", "FLAC audio"),
    (b"PK\3\4", "ZIP (or Office document)"),
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "Zstandard"),
    (b"7z\xbc\xaf", "7z"),
    (b"Rar!", "RAR"),
    (b"\xd0\xcf\x11\xe0", "Office document"),
    (b"{\\rtf", "RTF"),
    (b"\x7fELF", "program"),
    (b"MZ", "program"),
    (b"SQLite format 3", "SQLite"),
)

_RIFF: Final = {b"WEBP": "WEBP", b"AVI ": "AVI video", b"WAVE": "WAV audio", b"ACON": "ANI"}

_BRANDS: Final = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1"), "HEIC"),
    **dict.fromkeys((b"msf1", b"heif", b"hevm", b"hevs"), "HEIC"),
    b"qt  ": "QuickTime video",
    b"crx ": "camera raw",
    b"jp2 ": "JPEG 2000",
    b"M4A ": "M4A audio",
}

_ENCODED: Final = (b"iVBORw0KGgo", b"/9j/", b"R0lGOD", b"UklGR", b"SUkqA", b"TU0AK", b"Qk0")

_TEXTS: Final = (
    (re.compile(rb"data:[\w.+/-]*[;,]"), "data: URI"),
    # Possessive: nothing to try again, however many comments there are.
    (
        re.compile(
            rb"(?><\?xml[^>]*>|<!--.*?-->|<!doctype svg[^>]*>|\s)*+<(\w+:)?svg\b",
            re.DOTALL | re.IGNORECASE,
        ),
        "SVG",
    ),
    (
        re.compile(
            rb"(?><!--.*?-->|\s)*+<(!doctype html|html|head|body)\b", re.DOTALL | re.IGNORECASE
        ),
        "HTML",
    ),
    (re.compile(rb"<\?xml\b", re.IGNORECASE), "XML"),
    (re.compile(rb"P[1-7][\s#]"), "PNM"),
    (re.compile(rb"P[Ff]\s"), "PFM"),
    (re.compile(rb"#define\s"), "XBM"),
    (re.compile(rb"/\* XPM \*/"), "XPM"),
    (re.compile(rb"https?://"), "URL"),
    (re.compile(rb"[\[{]\s*[\"{\[\d\]}]"), "JSON"),
)
_LOOKED_AT: Final = 1024
_LEADING: Final = re.compile(rb"(?:\xef\xbb\xbf|[\s\0])*")
"""What scripts and byte order marks leave before an image."""


def sniff(data: bytes) -> tuple[str, int]:
    """(name, where the file begins) by magic bytes; the name is a key of `READABLE`, or a word for the refusal."""
    name = _name(data[:_LOOKED_AT])
    if name:
        return name, 0
    leading = _LEADING.match(data, 0, 64)
    start = leading.end() if leading else 0
    name = _name(data[start : start + _LOOKED_AT]) if start else ""
    if not name and data[128:132] == b"DICM":
        name = "DICOM"
    return name or _unknown(data), start


def _name(head: bytes) -> str:
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and len(head) >= 12:
        return _RIFF.get(head[8:12], "RIFF")
    if head[4:8] == b"ftyp":
        return _of_brands(head)
    if head[:2] == b"BM" and not any(head[15:18]):
        return "BMP"
    for pattern, name in _TEXTS:
        if pattern.match(head):
            return name
    return "base64 text" if head.startswith(_ENCODED) and head.isascii() else ""


def _of_brands(head: bytes) -> str:
    """An ISO base media file: by its major brand, or else by a compatible one that says more."""
    major, size = head[8:12], min(int.from_bytes(head[:4], "big"), 64)
    brands = [major, *(head[i : i + 4] for i in range(16, size, 4))]
    still = [brand for brand in brands if _BRANDS.get(brand) == "AVIF"]
    if major in {b"mif1", b"msf1"} and still:
        return "AVIF"
    return _BRANDS.get(major, "MP4 video")


def _unknown(data: bytes) -> str:
    """`text` if the beginning is text, else empty."""
    head = data[:_LOOKED_AT]
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # not just a character that was cut
            return ""
        text = head[: error.start].decode()
    return (
        "text"
        if text and all(letter.isprintable() or letter in "\t\r\n" for letter in text)
        else ""
    )
