"""The images of a request: what a `data:` URI contains, and how much all of them may be together."""

from __future__ import annotations

import base64
import contextlib
import re
import string
import textwrap
import tracemalloc
from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st
import pytest

from qwenvl.inference.v1 import message_pb2 as message_pb
from rest_adapter import media
from rest_adapter.errors import ApiError
from rest_adapter.media import ImageSources, as_data_uri, parse_data_uri
from tests.support.images import draw
from tests.support.long_calls import long_calls


MIB = 2**20


@given(st.binary(min_size=1, max_size=300), st.booleans(), st.booleans())
def test_any_bytes_come_back(data: bytes, url_safe: bool, padded: bool) -> None:
    encode = base64.urlsafe_b64encode if url_safe else base64.b64encode
    text = encode(data).decode()
    uri = f"data:image/jpeg;base64,{text if padded else text.rstrip('=')}"
    assert parse_data_uri(uri) == ("image/jpeg", data)


@given(st.binary(min_size=30, max_size=300), st.sampled_from([4, 8, 12]), st.integers(1, 80))
def test_slices_do_not_matter(data: bytes, size: int, width: int) -> None:
    lines = textwrap.wrap(base64.b64encode(data).decode(), width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(media, "_SLICE_CHARS", size)
        for text in ("\n".join(lines), quote("\n".join(lines), safe="")):
            assert parse_data_uri(f"data:,{text}") == ("", data)


def test_the_images_of_a_request_share_one_limit() -> None:
    sources, image = ImageSources(4), message_pb.Image()
    for text in ("data:,YWI=", "https://x.example/a.png", "data:,YWI="):
        sources.set(image, text, "a")
    with pytest.raises(ApiError, match="--max-media-mib") as caught:
        sources.set(image, "data:,YQ==", "a")
    assert caught.value.status == 413


@pytest.mark.parametrize("url", [None, "", " ", "data:,", "data:x", "data:;base64,%"])
def test_an_error_names_the_path(url: object) -> None:
    with pytest.raises(ApiError) as caught:
        ImageSources(4).set(message_pb.Image(), url, "images[1]")
    assert (caught.value.status, caught.value.param) == (400, "images[1]")


@pytest.mark.parametrize(
    "text",
    ["%2B%2f8%3D", "%2b%2F8%3d", "-_8", "%2D%5F8", "+/\n8=", "%2B%2F%0D%0A8%3D%20", "+/8"],
)
def test_base64_as_it_comes_out_of_urls(text: str) -> None:
    assert parse_data_uri(f"data:image/png;base64,{text}") == ("image/png", b"\xfb\xff")


PNG = draw("red", "circle").png
TEXT = base64.b64encode(PNG).decode()
assert "+" in TEXT
PLAIN = "data:image/png;base64,"


@pytest.mark.parametrize(
    "url",
    [
        'data:image/png;name="a,b.png";base64,' + TEXT,
        "data:image/png;filename=a,b.png;base64," + TEXT,
        "data:image/png ; charset=utf-8 ; BASE64 ," + TEXT,
        "data:image/png;base64;charset=utf-8," + TEXT,
        "\ufeffdata:image/png;base64," + TEXT,
        "\u200b\n" + PLAIN + TEXT + "\u200b ",
        "data:image/png;base64%2C" + TEXT,
        "DATA%3Aimage%2Fpng%3Bbase64%2C" + quote(TEXT, safe=""),
        PLAIN + PLAIN + TEXT,
        "data:image/jpeg;base64," + PLAIN + TEXT,
        PLAIN + TEXT.replace("+", " "),
        PLAIN + " " + TEXT.replace("+", " ") + "\t",
        PLAIN + "\n".join(textwrap.wrap(TEXT, 76)),
        PLAIN + " ".join(textwrap.wrap(TEXT, 76)),
        PLAIN + TEXT + "#page=1",
        PLAIN + "\u200b" + TEXT + "\xa0#",
        "data:image/png," + quote(PNG),
        "data:image/png," + quote(PNG, safe=string.printable[:94].replace("%", "")),
        "data:," + TEXT,
        "data://image/png;base64," + TEXT,
        "image/png;base64," + TEXT,
        "base64," + TEXT,
        "base64://" + TEXT,
        "  " + TEXT,
        "\ufeff" + TEXT + "\r\n",
    ],
)
def test_the_same_image_in_many_spellings(url: str) -> None:
    image = message_pb.Image()
    ImageSources(len(PNG)).set(image, url, "a")
    assert image.data == PNG
    assert image.mime_type in ("", "image/png", "image/jpeg")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (f"{PLAIN}b'{TEXT}'", 'valid base64 data: character 2 is "\'"'),
        (PLAIN + TEXT[:40] + "=" + TEXT, 'valid base64 data: character 41 is "="'),
        (PLAIN + "AAAAA", "it has 5 characters, which is not a possible number"),
        (PLAIN + TEXT[:9] + "\u00e9" + TEXT, 'character 10 is "\u00e9" (U+00E9)'),
        (PLAIN + "\u200b" + TEXT[:3] + "\u2026", 'character 4 is "\u2026" (U+2026)'),
        (PLAIN + "#", "has no data"),
        (PLAIN + "  ", "has no data"),
        ("data:image/png;base64;" + TEXT, "has no comma"),
        ("data:" + "x" * 1024 + "," + TEXT, "no comma between its media type and its data within"),
    ],
)
def test_what_is_not_base64_is_told(url: str, message: str) -> None:
    with pytest.raises(ApiError) as caught:
        ImageSources(len(PNG)).set(message_pb.Image(), url, "images[1]")
    assert message in caught.value.message
    assert (caught.value.status, caught.value.param) == (400, "images[1]")


@pytest.mark.parametrize("data", [b"!\xff\0%" * 9, b"!" * 50 + b"\xff", b"%" * 40, b"\xff!" * 20])
def test_escapes_are_not_divided(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in range(3, 20):
        monkeypatch.setattr("rest_adapter.media._SLICE_CHARS", size)
        assert parse_data_uri("data:x," + quote(data)) == ("x", data)


@pytest.mark.parametrize("text", ["%", "%%", "%4", "%41%41%41%41", "YWI%", "YWI%zz", "%3C", "é"])
def test_other_escapes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"base64|ascii"):
        parse_data_uri(f"data:image/png;base64,{text}")


HOSTILE = (
    "data:",
    "data%3A",
    "data: ",
    "data://",
    "x/y;",
    "base64",
    ";base64 ",
    ";base64,",
    "%2",
    " ",
)


@pytest.mark.parametrize("unit", HOSTILE)
def test_the_head_of_a_uri_takes_no_memory_of_its_own(unit: str) -> None:
    """A repeated group keeps 62 bytes for every byte that it has matched."""
    text = "data:" + unit * (MIB // len(unit)) + ",x"
    tracemalloc.start()
    try:
        tracemalloc.reset_peak()
        with contextlib.suppress(ApiError):
            ImageSources(4 * MIB).set(message_pb.Image(), text, "a")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * MIB


@given(
    st.text("\u200b \t\ufeff", max_size=12),
    st.text("ab \u200b", max_size=12),
    st.text("\u200b \t\ufeff", max_size=12),
    st.integers(1, 5),
)
def test_what_is_around_a_url_is_stripped_in_slices(
    before: str, text: str, after: str, size: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(media, "_SLICE_CHARS", size)
        assert media._stripped(before + text + after) == text.strip("\u200b \t\ufeff")
        found = media._search(re.compile("b"), text)
    assert (-1 if found is None else found.start()) == text.find("b")


def loosely_decoded(text: str) -> bytes:
    """What `parse_data_uri` accepts, in one piece."""
    for escape in set(re.findall("%..", text)):
        text = text.replace(escape, chr(int(escape[1:], 16)))
    text = text.strip(" \t\r\n\f\v")
    if not set("+-\n") & set(text):
        text = text.replace(" ", "+")
    text = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    if not text:
        raise ValueError
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)


@given(
    st.lists(st.sampled_from([*"AB7 \n\t\r", *"-_+/", "%2B", "%2f", "%20", "%0A"]), max_size=24),
    st.sampled_from(["", "=", "==\n", "%3D", "====="]),
    st.sampled_from([4, 8, 12]),
)
def test_loose_base64_in_slices_is_as_in_one_piece(units: list[str], end: str, size: int) -> None:
    text = "".join(units) + end
    wanted: bytes | None = None
    with contextlib.suppress(ValueError):
        wanted = loosely_decoded(text)
    found: bytes | None = None
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(ValueError):
        patch.setattr(media, "_SLICE_CHARS", size)
        _, found = parse_data_uri(f"data:;base64,{text}")
    assert found == wanted


SLICE = 2048
LONG = base64.b64encode(bytes(range(256)) * 60).decode()
assert len(LONG) > 8 * SLICE


@pytest.mark.parametrize(
    "text",
    [
        "-" * len(LONG),
        "_" * len(LONG),
        LONG.replace("+", " "),
        " " * len(LONG) + "A" + " " * len(LONG),
        "A" + " " * len(LONG) + "A",
        "AA " * len(LONG),
        "AAAA" + "=" * len(LONG),
        "=" * len(LONG),
        "\n".join(textwrap.wrap(LONG, 76)),
        "%2B" * len(LONG),
        "%41" * len(LONG),
        quote(LONG, safe=""),
        LONG + "!",
        LONG + "\u3000" * len(LONG),
        "\u3000" * len(LONG) + LONG,
        LONG + "\u4e00",
    ],
)
def test_no_call_of_c_takes_all_of_an_image(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "_SLICE_CHARS", SLICE)

    def use() -> None:
        for url in (text, PLAIN + text, "data:," + text):
            sources = ImageSources(len(text))
            for set_image in (
                lambda url, sources=sources: sources.set(message_pb.Image(), url, "a"),
                lambda url, sources=sources: sources.set_base64(message_pb.Image(), url, "", "a"),
            ):
                with contextlib.suppress(ApiError):
                    set_image(url)
            as_data_uri(url, "image/png")

    assert not long_calls(use, SLICE + 8)  # an escape is not divided


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("YWI=", "data:image/png;base64,YWI="),
        (" YWI=\n", "data:image/png;base64,YWI="),
        ("data:,YWI=", "data:,YWI="),
        ("\n DATA:;base64,YWI=", "DATA:;base64,YWI="),
        ("database", "data:image/png;base64,database"),
        ("", "data:image/png;base64,"),
    ],
)
def test_base64_becomes_a_data_uri(text: str, uri: str) -> None:
    assert as_data_uri(text, "image/png") == uri


def test_long_calls_are_found() -> None:
    text = "x" * 100
    assert long_calls(lambda: text.replace("x", "y"), 99) == [("replace", 100)]
    assert long_calls(lambda: text.encode().lower(), 10) == [("encode", 100), ("lower", 100)]
    assert not long_calls(lambda: text.replace("x", "y"), 100)
    assert not long_calls(lambda: (text.find("y"), "y" in text, text[1:]), 10)
