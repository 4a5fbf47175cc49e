"""Says what is wrong with a model's file that cannot be read: downloads and clones leave other things by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final


_LFS_POINTER: Final = b"version https://git-lfs.github.com/spec/"
_PAGES: Final = (b"<!doctype html", b"<html", b"<?xml")
_HEAD_BYTES: Final = 512
_MAX_REASON: Final = 200


def what_is_wrong(path: Path, expected: str, error: Exception | None = None) -> str:
    """Why a file is not what it should be, with its name.

    Args:
        path: The file.
        expected: What it should be, such as `valid JSON`.
        error: The error of its reader, whose reason is told if the file is not something else altogether.
    """
    return f"{path.name} {other_kind(path) or f'is not {expected}{_reason(error)}'}"


def other_kind(path: Path) -> str:
    """What a file is instead of what its name says; empty = unknown."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return ""
    if not head:
        return "is empty: download it again"
    if head.startswith(_LFS_POINTER):
        return (
            "is only a pointer of Git LFS: run `git lfs pull` in its directory, or fetch the model with"
            " `qwenvl download`"
        )
    if head.lstrip().lower().startswith(_PAGES):
        return "is a web page, perhaps an error of a download: download it again"
    return ""


def _reason(error: Exception | None) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f": {error.msg} in line {error.lineno}, column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        return f": its byte {error.start + 1} is not UTF-8"
    if error is None or isinstance(error, RecursionError):
        return ""
    text = " ".join(str(error).split())
    return f": {text[:_MAX_REASON]}" if text else ""
