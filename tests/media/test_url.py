"""URLs that parsers disagree on are refused; the others are dialled as they were judged."""

from __future__ import annotations

import pytest

from inference_service.media.url import AllowedHost, ImageUrl, UrlError, parse_url


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
        "http://example.com/a b",
        "http://example.com/a\tb",
        "http://example.com/\r\nX: y",
        "http://exa\nmple.com/",
        " http://example.com/",
        "http://example.com/\u2028",
        "http://example.com/\u00a0",
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
    ],
)
def test_valid_urls_are_parsed(text, wanted):
    assert parse_url(text) == wanted


def test_the_host_header_has_the_port_if_it_is_unusual():
    assert parse_url("http://e.com/").host_header == "e.com"
    assert parse_url("https://e.com:80/").host_header == "e.com:80"
    assert parse_url("https://[2606::1]:444/").host_header == "[2606::1]:444"


def test_redirect_targets():
    url = parse_url("https://e.com/a/b?c")
    assert url.resolve("d").target == "/a/d"
    assert url.resolve("//x.com/y") == ImageUrl("https", "x.com", 443, "/y")
    for location in ("file:///etc/passwd", "http://u@x/", "/a b", "\\\\x\\y", "http://1/"):
        with pytest.raises(UrlError):
            url.resolve(location)


def test_allow_list_entries():
    assert AllowedHost.parse("Bücher.example") == AllowedHost("xn--bcher-kva.example", None)
    assert AllowedHost.parse("127.0.0.1:8999") == AllowedHost("127.0.0.1", 8999)
    assert AllowedHost.parse("[::1]:8") == AllowedHost("::1", 8)
    assert AllowedHost.parse("2606:4700::1") == AllowedHost("2606:4700::1", None)
    for text in ("", "http://x", "u@x", "x/y", "x:y", "1", "a b", "x:0"):
        with pytest.raises(ValueError, match="allowed media domain"):
            AllowedHost.parse(text)
    assert AllowedHost.parse("e.com").permits(parse_url("https://e.com/"))
    assert not AllowedHost.parse("e.com").permits(parse_url("https://e.com:8443/"))
    assert not AllowedHost.parse("e.com").permits(parse_url("https://a.e.com/"))
    assert not AllowedHost.parse("e.com:8443").permits(parse_url("https://e.com/"))
