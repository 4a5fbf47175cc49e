"""Keys in a file: what is one, and what stays while the file changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qwenvl.keys import KeyFile, KeyFileError, key_of, read_keys
from qwenvl.observability import CallContext


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("key-one\nkey-two\n")
    return path


def test_keys_are_not_kept(key_file: Path) -> None:
    keys = KeyFile(key_file)
    assert keys.accepts("Bearer key-two")
    assert "key-two" not in repr(vars(keys))
    key_file.unlink()  # between two versions of a mounted secret
    assert keys.accepts("Bearer key-two")


def test_comments_are_no_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# team alpha\nkey one\n")
    keys = KeyFile(path)
    assert [keys.accepts(f"Bearer {key}") for key in ("#", "alpha", "key", "key one")] == [
        False,
        False,
        False,
        True,
    ]
    path.write_bytes(b"\xff\0")  # no text: the keys stay
    assert keys.accepts("Bearer key one")


def test_empty_lines_are_no_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("\n\n  \n")
    assert not KeyFile(path).accepts("Bearer ")
    assert not KeyFile(path).accepts(None)


TEXT = "\r\n# team clé\r\n  key-one \t\r\n\r\nkey two\xa0\r\n"


@pytest.mark.parametrize(
    "encoded",
    [
        TEXT.encode("utf-8"),
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        b"\xfe\xff" + TEXT.encode("utf-16-be"),
        TEXT.encode("utf-32"),
        b"# team cl\xe9\nkey-one\nkey two",
        TEXT.replace("\r\n", "\r").encode(),
        TEXT.replace("\r\n", "\n").encode(),
    ],
)
def test_whatever_an_editor_made_of_the_file(tmp_path: Path, encoded: bytes) -> None:
    path = tmp_path / "keys"
    path.write_bytes(encoded)
    assert read_keys(path) == ("key-one", "key two")
    keys = KeyFile(path)
    assert keys.accepts("Bearer key-one")
    assert keys.accepts("Bearer key two")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"key\n\xe2\x80\x9csmart\xe2\x80\x9d", r"line 2 .*U\+201C"),
        (b"a\xe2\x80\x8bb", r"line 1 .*U\+200B"),
        (b"cl\xe9", "line 1 has a character"),
        (b"k\0e\0y\0", "is not text"),
        (b"a\x07b", r"U\+0007"),
        (b"\xff\xfea", "is not text"),
    ],
)
def test_what_no_header_can_carry_is_refused_without_showing_it(
    tmp_path: Path, content: bytes, says: str
) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(KeyFileError, match=says) as refused:
        read_keys(path)
    assert "smart" not in str(refused.value)
    path.write_text("key")
    keys = KeyFile(path)
    path.write_bytes(content)
    assert keys.accepts("Bearer key")  # what was there before


def test_a_file_that_is_not_there_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        KeyFile(tmp_path / "keys")


@pytest.mark.parametrize(
    ("authorization", "key"),
    [
        ("Bearer k", "k"),
        ("bearer k", "k"),
        ("BEARER  a key ", "a key"),
        ("Bearer", ""),
        ("Bearer ", ""),
        ("Basic k", ""),
        ("k", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_the_key_of_an_authorization(authorization: str | None, key: str) -> None:
    assert key_of(authorization) == key


def test_every_accepted_form_of_one_key_is_one_caller(key_file: Path) -> None:
    keys, callers = KeyFile(key_file), set()
    for authorization in ("Bearer key-one", "bearer key-one", "BEARER key-one", "Bearer  key-one "):
        assert keys.accepts(authorization)
        callers.add(CallContext.from_headers({"authorization": authorization}).caller)
    assert len(callers) == 1


def test_what_never_ends_is_no_file_of_keys(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(KeyFileError, match="is not a regular file"):
            read_keys(path)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "pipe")
    with pytest.raises(KeyFileError, match="is not a regular file"):
        read_keys(link)


def test_a_key_and_its_file_have_a_size(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# k\n" + "k" * 5000)
    with pytest.raises(
        KeyFileError, match="line 2 has 5000 characters, but a key has at most 4096"
    ):
        read_keys(path)
    path.write_bytes(b"k\n" * 2**20)
    with pytest.raises(KeyFileError, match="has 2097152 bytes, but at most 1048576 are read"):
        read_keys(path)


def test_a_byte_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes("schlüssel".encode("latin-1"))
    with pytest.raises(KeyFileError, match="byte 0xfc, not UTF-8"):
        read_keys(tmp_path / "keys")
