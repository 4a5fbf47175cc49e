"""The images of a request: what a `data:` URI contains, and how much all of them may be together."""

from __future__ import annotations

import base64

from hypothesis import given
from hypothesis import strategies as st
import pytest

from qwenvl.inference.v1 import message_pb2 as message_pb
from rest_adapter.errors import ApiError
from rest_adapter.media import ImageSources, parse_data_uri


@given(st.binary(min_size=1, max_size=300), st.booleans(), st.booleans())
def test_any_bytes_come_back(data: bytes, url_safe: bool, padded: bool) -> None:
    encode = base64.urlsafe_b64encode if url_safe else base64.b64encode
    text = encode(data).decode()
    uri = f"data:image/jpeg;base64,{text if padded else text.rstrip('=')}"
    assert parse_data_uri(uri) == ("image/jpeg", data)


def test_the_images_of_a_request_share_one_limit() -> None:
    sources, image = ImageSources(4), message_pb.Image()
    for text in ("data:,YWI=", "https://x.example/a.png", "data:,YWI="):
        sources.set(image, text, "a")
    with pytest.raises(ApiError, match="--max-media-mib") as caught:
        sources.set(image, "data:,YQ==", "a")
    assert caught.value.status == 413


@pytest.mark.parametrize("url", [None, "", " ", "data:,", "data:x", "data:,%"])
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


@pytest.mark.parametrize("text", ["%", "%%", "%4", "%41%41%41%41", "YWI%", "YWI%zz", "%3C", "é"])
def test_other_escapes_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"base64|ascii"):
        parse_data_uri(f"data:image/png;base64,{text}")
