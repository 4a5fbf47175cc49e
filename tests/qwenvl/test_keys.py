"""Keys in a file: what is one, and what stays while the file changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwenvl.keys import KeyFile, key_of
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
    path.write_bytes(b"\xff\xfe")  # no text: the keys stay
    assert keys.accepts("Bearer key one")


def test_empty_lines_are_no_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("\n\n  \n")
    assert not KeyFile(path).accepts("Bearer ")
    assert not KeyFile(path).accepts(None)


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
