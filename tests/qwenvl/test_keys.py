"""Keys in a file: what is one, and what stays while the file changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwenvl.keys import KeyFile


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
