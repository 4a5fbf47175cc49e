"""URLs that parsers disagree on are refused; the others are dialled as they were judged."""

from __future__ import annotations

from urllib.parse import urlsplit

import httpx
from hypothesis import given
from hypothesis import strategies as st
import pytest

from inference_service.media.url import DEFAULT_PORTS, ImageUrl, UrlError, parse_url


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "//example.com/x",
        "http:example.com/x",
        "http:///x",
        "ftp://example.com/x",
        "gopher://x",
        "file:///etc/passwd",
        "http://user@example.com/",
        "http://user:secret@example.com/",
        "http://example.com@127.0.0.1/",
        "http://127.0.0.1\\@example.com/",
        "http://example.com\\.evil.com/",
        "http://example.com/a\tb",
        "http://example.com/\r\nX: y",
        "http://exa\nmple.com/",
        "http:// example.com/",
        "http://example.com /x",
        "http://example.com\u200b/x",
        "http://exam\u00adple.com/x",
        "http://example.com\u00a0.evil.com/x",
        "http://example.com :80/x",
        "http://exam\tple.com/",
        "ht\ntp://example.com/",
        "\x00http://example.com/",
        "\x1fhttp://example.com/",
        "http://example.com/\x7f",
        "http://example.com/\x85x",
        "http://example.com/a\r\nHost: b",
        "http://example.com/\ud800",
        "http://example.com/\x00",
        "http://example.com:0/",
        "http://example.com:65536/",
        "http://example.com:8O/",
        "http://example.com:-1/",
        "http://example.com:+80/",
        "http://example.com:٨٠/",
        "http://example.com:80:80/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://0x7f000001/",
        "http://127.1/",
        "http://017700000001/",
        "http://0177.0.0.1/",
        "http://127.0.0.01/",
        "http://256.1.1.1/",
        "http://1.2.3.4.5/",
        "http://1.2.3.4../",
        "http://[::1/",
        "http://[fe80::1%25eth0]/",
        "http://[v1.x]/",
        "http://[::1]x/",
        "http://exa mple.com/",
        "http://exa%6dple.com/",
        "http://-example.com/",
        "http://a..b/",
        "http://" + "a" * 64 + ".com/",
        "http://" + "a." * 130 + "com/",
        "http://example.com/" + "a" * 9000,
        "http://①②⑦.0.0.1\u00ad:x/",
    ],
)
def test_invalid_urls_are_refused(text):
    with pytest.raises(UrlError):
        parse_url(text)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("http://example.com", ImageUrl("http", "example.com", 80, "/")),
        ("HTTPS://EXAMPLE.com./A?b=c#d", ImageUrl("https", "example.com", 443, "/A?b=c")),
        ("http://example.com:8080?q", ImageUrl("http", "example.com", 8080, "/?q")),
        ("http://example.com:/x", ImageUrl("http", "example.com", 80, "/x")),
        (
            "http://bücher.example/ä%20b",
            ImageUrl("http", "xn--bcher-kva.example", 80, "/%C3%A4%20b"),
        ),
        ("http://[2606:4700:0::1111]/x", ImageUrl("http", "2606:4700::1111", 80, "/x")),
        ("http://[::ffff:127.0.0.1]/x", ImageUrl("http", "::ffff:7f00:1", 80, "/x")),
        ("http://127.0.0.1/", ImageUrl("http", "127.0.0.1", 80, "/")),
        ("http://1２7.0.0.1/", ImageUrl("http", "127.0.0.1", 80, "/")),  # full width
        ("http://127。0。0。1/", ImageUrl("http", "127.0.0.1", 80, "/")),  # ideographic stops
        ('http://e.com/a@b:c"<>', ImageUrl("http", "e.com", 80, "/a@b:c%22%3C%3E")),
        ("http://e.com/my cat.png", ImageUrl("http", "e.com", 80, "/my%20cat.png")),
        ("http://e.com/a?name=my cat", ImageUrl("http", "e.com", 80, "/a?name=my%20cat")),
        ("http://e.com/9\u202fAM.png", ImageUrl("http", "e.com", 80, "/9%E2%80%AFAM.png")),
        ("http://e.com/a\u00a0b", ImageUrl("http", "e.com", 80, "/a%C2%A0b")),
        ("http://e.com/\u732b.png", ImageUrl("http", "e.com", 80, "/%E7%8C%AB.png")),
        (
            "http://e.com/\U0001f469\u200d\U0001f9b0.png",
            ImageUrl("http", "e.com", 80, "/%F0%9F%91%A9%E2%80%8D%F0%9F%A6%B0.png"),
        ),
        ("http://e.com/100%.png", ImageUrl("http", "e.com", 80, "/100%.png")),
        ("http://e.com/a//b/../c;v=1", ImageUrl("http", "e.com", 80, "/a//b/../c;v=1")),
        ("http://e.com/x?a=/?b#c?d", ImageUrl("http", "e.com", 80, "/x?a=/?b")),
        ("http://e.com#@127.0.0.1/", ImageUrl("http", "e.com", 80, "/")),
        ("http://e.com?@127.0.0.1/", ImageUrl("http", "e.com", 80, "/?@127.0.0.1/")),
    ],
)
def test_valid_urls_are_parsed(text, wanted):
    assert parse_url(text) == wanted


_AROUND = ["", " ", "\n", "\r\n", "\t", "  \n", "\ufeff", "\u00a0", "\u200b", "\u3000", "\u202a"]


@pytest.mark.parametrize("before", _AROUND)
@pytest.mark.parametrize("after", _AROUND)
def test_white_space_around_a_url_is_dropped(before, after):
    assert parse_url(f"{before}https://e.com/x.png{after}") == parse_url("https://e.com/x.png")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("s3://bucket/x.png", "http or https, not s3"),
        ("www.example.com/x.png", "'www.example.com/x.png' is not a URL: its scheme is missing"),
        ("/data/" + "x" * 500, "/xxxxxxxxxx"),
        ("http://127.1/x.png", "host '127.1' is malformed"),
        ("http://[::1%25eth0]/x.png", "host '[::1%25eth0]' is malformed"),
        ("http://u:secret@e.com/", "user name or password"),
        ("http://e.com/a\nb", "a line break at position 14"),
        ("http://e.com/a\x07b", "U+0007 at position 14"),
        ("http://e.com\\a", "a backslash at position 12"),
        ("https:///x.png", "no host"),
        ("http://e.com:99999/", "1 to 65535"),
        ("http://e.com/" + "a" * 9000, "8192"),
        (" " * 30_000_000, "30000000 characters"),
    ],
)
def test_a_refusal_says_what_is_wrong(text, words):
    with pytest.raises(UrlError) as caught:
        parse_url(text)
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


def check_reading(text: str) -> None:
    """Refused, or read by other parsers as by ours."""
    try:
        url = parse_url(text)
    except UrlError:
        return
    again = f"{url.scheme}://{url.host_header}{url.target}"
    assert again.isascii()
    assert not set(again) & set(" \t\r\n\\#")
    assert parse_url(again) == url
    parts = urlsplit(again)
    assert (parts.hostname, parts.username) == (url.host, None)
    assert (parts.port or DEFAULT_PORTS[url.scheme]) == url.port
    assert httpx.URL(again).raw_host == url.host.encode()


@given(st.text(max_size=60))
def test_any_text_reads_the_same_in_every_parser_or_is_refused(text):
    check_reading(text)
    check_reading(f"http://{text}")


@given(
    st.sampled_from(["http://", "https://", "HTTP://", " http://"]),
    st.text(alphabet="a.:@[]%\u3002\uff0e\uff1a\uff20 1x-_", max_size=16),
    st.text(alphabet="/?#@:\\ .%a", max_size=10),
)
def test_odd_authorities_read_the_same_in_every_parser(scheme, authority, rest):
    check_reading(scheme + authority + rest)


def test_the_host_header_has_the_port_if_it_is_unusual():
    assert parse_url("http://e.com/").host_header == "e.com"
    assert parse_url("https://e.com:80/").host_header == "e.com:80"
    assert parse_url("https://[2606::1]:444/").host_header == "[2606::1]:444"


def test_redirect_targets():
    url = parse_url("https://e.com/a/b?c")
    assert url.resolve("d").target == "/a/d"
    assert url.resolve("//x.com/y") == ImageUrl("https", "x.com", 443, "/y")
    assert url.resolve("/a b").target == "/a%20b"
    assert url.resolve("/\u00fc").target == "/%C3%BC"
    assert url.resolve(" /d\t").target == "/d"
    assert url.resolve("?d").target == "/a/b?d"
    assert url.resolve("../../../d#x").target == "/d"
    assert url.resolve("").target == "/a/b?c"
    assert url.resolve("HTTP://X.com").host == "x.com"
    for location in (
        "file:///etc/passwd",
        "http://u@x/",
        "\\\\x\\y",
        "http://1/",
        "http://[x/",
        "/a\nb",
    ):
        with pytest.raises(UrlError):
            url.resolve(location)
