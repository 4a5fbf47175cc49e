"""The operator's media policy: entries of the allow-list, and what they permit."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference_service.media.policy import AllowedHost, FetchPolicy, Scope
from inference_service.media.url import parse_url
from inference_service.settings import ServiceSettings
from tests.support.media_hosts import PUBLIC


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("B\u00fccher.example", AllowedHost("xn--bcher-kva.example", None)),
        ("127.0.0.1:8999", AllowedHost("127.0.0.1", 8999)),
        ("[::1]:8", AllowedHost("::1", 8)),
        ("2606:4700::1", AllowedHost("2606:4700::1", None)),
        ("minio:9000", AllowedHost("minio", 9000)),
        (".Example.com", AllowedHost("example.com", None, Scope.DOMAIN)),
        (".b\u00fccher.example:8443", AllowedHost("xn--bcher-kva.example", 8443, Scope.DOMAIN)),
        ("*.example.com:9000", AllowedHost("example.com", 9000, Scope.SUBDOMAINS)),
        (".internal:9000", AllowedHost("internal", 9000, Scope.DOMAIN)),
        ("public", AllowedHost("", None, Scope.PUBLIC)),
        ("*", AllowedHost("", None, Scope.PUBLIC)),
        ("public:80", AllowedHost("public", 80)),
    ],
)
def test_entries(text, wanted):
    assert AllowedHost.parse(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        *[
            "",
            "http://x",
            "u@x",
            "x/y",
            "x:y",
            "1",
            "a b",
            "x:0",
            ".",
            "*.",
            "*:80",
            "..a",
            ".a..b",
        ],
        *[
            "a.*.com",
            "*a.com",
            "*.*.com",
            "**",
            ".1.2.3.4",
            "*.1.2.3.4:80",
            "*.[::1]",
            "10.0.0.0/8",
        ],
    ],
)
def test_malformed_entries_are_refused(text):
    with pytest.raises(ValueError, match="allowed media domain"):
        AllowedHost.parse(text)


@pytest.mark.parametrize(
    ("entry", "permitted", "refused"),
    [
        ("e.com", ["https://e.com/", "http://e.com/"], ["https://e.com:8443/", "https://a.e.com/"]),
        ("e.com:8443", ["https://e.com:8443/", "http://e.com:8443/"], ["https://e.com/"]),
        (
            ".e.com",
            ["https://e.com/", "https://a.e.com/", "http://a.b.e.com/"],
            ["https://xe.com/", "https://e.com.x/", "https://a.e.com:8443/", "https://com/"],
        ),
        (
            "*.e.com",
            ["https://a.e.com/", "http://a.b.e.com./"],
            ["https://e.com/", "https://xe.com/", "https://e.com.x/"],
        ),
        ("*.e.com:9000", ["http://a.e.com:9000/"], ["http://a.e.com/", "http://e.com:9000/"]),
        ("public", ["http://e.com/", "https://1.2.3.4/"], ["http://e.com:8080/"]),
    ],
)
def test_what_an_entry_permits(entry, permitted, refused):
    parsed = AllowedHost.parse(entry)
    assert all(parsed.permits(parse_url(url)) for url in permitted)
    assert not any(parsed.permits(parse_url(url)) for url in refused)


def policy(*entries: str) -> FetchPolicy:
    return FetchPolicy(allowed_hosts=tuple(map(AllowedHost.parse, entries)))


def may_dial(rules: FetchPolicy, url: str, *addresses: str) -> bool:
    parsed = parse_url(url)
    return not (rules.refusal(parsed) or rules.refusal_of(parsed, addresses))


def test_public_hosts_and_one_private_host_with_its_port():
    both = policy("public", "minio:9000")
    assert may_dial(both, "https://e.com/", PUBLIC)
    assert may_dial(both, "http://minio:9000/", "10.0.0.1")
    assert not may_dial(both, "http://minio/", "10.0.0.1")
    assert not may_dial(both, "http://minio:9001/", "10.0.0.1")
    assert not may_dial(both, "http://e.com/", "10.0.0.1")
    assert not may_dial(both, "http://e.com:9000/", "10.0.0.1")


def test_only_an_entry_with_a_port_permits_private_addresses():
    for entry, url in (
        ("e.com", "http://e.com/"),
        (".e.com", "http://a.e.com/"),
        ("*.e.com", "http://a.e.com/"),
        ("public", "http://e.com/"),
        ("10.0.0.1", "http://10.0.0.1/"),
    ):
        assert not may_dial(policy(entry), url, "10.0.0.1"), entry
    assert may_dial(policy(".e.com:80"), "http://a.e.com/", "10.0.0.1")


def test_a_refusal_names_the_flag_and_what_is_missing():
    url = parse_url("http://e.com:8080/")
    assert "port 8080" in policy().refusal(url)
    for text in (
        policy().refusal(url),
        policy("x.com").refusal(url),
        policy("e.com:8081").refusal(url),
        policy().refusal_of(parse_url("http://e.com/"), ["10.0.0.1"]),
        policy().refusal_of_name(parse_url("http://printer/")),
    ):
        assert "--allowed-media-domains" in text
        assert "10.0" not in text


def test_policy_from_settings(tmp_path: Path):
    policy = FetchPolicy.from_settings(ServiceSettings())
    assert policy.url_schemes == ("http", "https")
    assert FetchPolicy.from_settings(ServiceSettings(enable_media_fetch=False)).url_schemes == ()
    local = FetchPolicy.from_settings(ServiceSettings(allow_local_media_path=str(tmp_path)))
    assert local.url_schemes == ("http", "https", "file")
    with pytest.raises(ValueError, match="not a directory"):
        FetchPolicy.from_settings(ServiceSettings(allow_local_media_path="/nonexistent"))
    with pytest.raises(ValueError, match="allowed media domain"):
        FetchPolicy.from_settings(ServiceSettings(allowed_media_domains=("http://x",)))


@pytest.mark.parametrize(
    "proxy",
    [
        *["proxy:3128", "socks5://u:secret@p:1", "http://", "http://u:secret@p:99999", "x secret"],
        *["http://u:secret@p/path", "http://p\n"],
    ],
)
def test_a_malformed_proxy_is_refused_without_its_password(proxy):
    with pytest.raises(ValueError, match="media_proxy is not of the form") as caught:
        FetchPolicy.from_settings(ServiceSettings(media_proxy=proxy))
    assert "secret" not in str(caught.value)


def test_a_file_without_certificates_is_refused(tmp_path: Path):
    empty = tmp_path / "empty.pem"
    empty.write_text("no certificates here")
    for path in (empty, tmp_path / "missing.pem", tmp_path):
        with pytest.raises(ValueError, match="PEM certificates"):
            FetchPolicy.from_settings(ServiceSettings(media_ca_file=str(path)))


def test_the_former_name_of_the_timeout_works():
    assert ServiceSettings(media_total_timeout_s=3).media_timeout_s == 3
