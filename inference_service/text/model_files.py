"""Reads the text files of a model's directory as different versions of the libraries, and editors, leave them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
import json
from pathlib import Path
from typing import Any

from inference_service.text.broken_files import other_kind, what_is_wrong


TOKENIZER_FILE = "tokenizer.json"
VOCABULARY_FILE, MERGES_FILE = "vocab.json", "merges.txt"


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token beside the vocabulary that text is searched for.

    Attributes:
        token_id: Its id.
        text: Its text.
        special: It controls the model; in plain text it is not recognised.
        options: `lstrip`, `rstrip`, `single_word` and `normalized`, as tokenizer_config.json has them.
    """

    token_id: int
    text: str
    special: bool
    options: Mapping[str, bool]


def read_text(path: Path) -> str:
    """The text of a file, without the byte order mark of a Windows editor.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not UTF-8, or not the file itself but what a clone or a download left in its place.
    """
    if kind := other_kind(path):
        raise ValueError(f"{path.name} {kind}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(what_is_wrong(path, "text in UTF-8")) from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is malformed.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(what_is_wrong(path, "valid JSON", error)) from error
    return value if isinstance(value, dict) else {}


def find_chat_template(model_dir: Path) -> str | None:
    """The template in chat_template.jinja, chat_template.json, processor_config.json or tokenizer_config.json.

    The first of these that has one applies.

    Raises:
        OSError: A file cannot be read.
        ValueError: A file is malformed.
    """
    jinja = model_dir / "chat_template.jinja"
    if jinja.is_file():
        return read_text(jinja)
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        template = read_json(model_dir / name).get("chat_template")
        if isinstance(template, list):  # several templates, each with a name
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        if isinstance(template, dict):
            template = template.get("default")
        if isinstance(template, str):
            return template
    return None


def has_tokenizer(model_dir: Path) -> bool:
    """Whether there is a byte-level BPE tokenizer: tokenizer.json, or vocabulary, merges and added tokens."""
    if (model_dir / TOKENIZER_FILE).is_file():
        return True
    parts = (model_dir / VOCABULARY_FILE, model_dir / MERGES_FILE)
    return all(part.is_file() for part in parts) and bool(read_added_tokens(model_dir))


def read_added_tokens(model_dir: Path) -> tuple[AddedToken, ...]:
    """The added tokens in tokenizer_config.json, else in added_tokens.json, in the order of their ids.

    Raises:
        OSError: A file cannot be read.
        ValueError: A file is malformed.
    """
    decoder = read_json(model_dir / "tokenizer_config.json").get("added_tokens_decoder")
    try:
        if isinstance(decoder, dict):
            tokens = [_token_of(int(key), value) for key, value in decoder.items()]
        else:
            tokens = _legacy_tokens(model_dir)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(
            "the added tokens in tokenizer_config.json or added_tokens.json are malformed"
        ) from error
    return tuple(sorted(tokens, key=lambda token: token.token_id))


def _token_of(token_id: int, value: Mapping[str, Any]) -> AddedToken:
    names = ("lstrip", "rstrip", "single_word", "normalized")
    options = {name: bool(value[name]) for name in names if name in value}
    return AddedToken(token_id, str(value["content"]), bool(value.get("special", False)), options)


def _legacy_tokens(model_dir: Path) -> list[AddedToken]:
    """added_tokens.json; its tokens in special_tokens_map.json are special."""
    special = set()
    for value in read_json(model_dir / "special_tokens_map.json").values():
        items = value if isinstance(value, list) else [value]
        special |= {item["content"] if isinstance(item, dict) else str(item) for item in items}
    return [
        AddedToken(int(token_id), text, text in special, {"normalized": text not in special})
        for text, token_id in read_json(model_dir / "added_tokens.json").items()
    ]
