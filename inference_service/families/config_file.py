"""Typed access to JSON configuration files, with errors that name file, key and expected value.

Below it, the settings that checkpoints of several families store alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
import json
from pathlib import Path
from typing import Any

from inference_service.model_spec import DTYPE_BYTES
from inference_service.text.broken_files import what_is_wrong


_LAYERS = ("num_hidden_layers", "num_layers", "depth", "layers")
_MAX_LAYERS = 1024
"""Each layer is counted and built."""
_MAX_INTEGER = 2**31 - 1


class SpecError(ValueError):
    """A model's configuration is invalid or not supported; the message names file and key."""


@dataclass(frozen=True, slots=True)
class Section:
    """An object of a configuration file.

    Attributes:
        where: File name and path of keys, for messages.
        values: The object.
    """

    where: str
    values: Mapping[str, Any]

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def with_defaults(self, defaults: Mapping[str, Any]) -> Section:
        """The object with values for keys that it lacks; a key that is null stays null."""
        return Section(self.where, {**defaults, **self.values})

    def section(self, key: str, default: Mapping[str, Any] | None = None) -> Section:
        """The object at `key`."""
        value = self._require(key, default)
        if not isinstance(value, dict):
            raise SpecError(f"{self.where}: {key} must be an object, not {value!r}")
        return Section(f"{self.where}: {key}", value)

    def text(self, key: str, default: str | None = None) -> str:
        """The string at `key`."""
        value = self._require(key, default)
        if not isinstance(value, str):
            raise SpecError(f"{self.where}: {key} must be a string, not {value!r}")
        return value

    def integer(self, key: str, default: int | None = None, *, minimum: int = 1) -> int:
        """The integer at `key`."""
        value = self._require(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise SpecError(f"{self.where}: {key} must be an integer >= {minimum}, not {value!r}")
        maximum = _MAX_LAYERS if key in _LAYERS else _MAX_INTEGER
        if value > maximum:
            raise SpecError(f"{self.where}: {key} must be an integer <= {maximum}, not {value!r}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """The positive number at `key`."""
        value = self._require(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise SpecError(f"{self.where}: {key} must be a positive number, not {value!r}")
        return float(value)

    def flag(self, key: str, *, default: bool) -> bool:
        """The boolean at `key`."""
        value = self._require(key, default)
        if not isinstance(value, bool):
            raise SpecError(f"{self.where}: {key} must be true or false, not {value!r}")
        return value

    def integers(self, key: str, *, minimum: int = 0) -> tuple[int, ...]:
        """The integers at `key`: a list, or one integer."""
        value = self._require(key)
        items = value if isinstance(value, list) else [value]
        if any(isinstance(i, bool) or not isinstance(i, int) or i < minimum for i in items):
            raise SpecError(f"{self.where}: {key} must be integers >= {minimum}, not {value!r}")
        return tuple(items)

    def three_numbers(self, key: str) -> tuple[float, float, float]:
        """The three numbers at `key`."""
        value = self._require(key)
        if not isinstance(value, list) or not all(isinstance(i, int | float) for i in value):
            raise SpecError(f"{self.where}: {key} must be three numbers, not {value!r}")
        if len(value) != 3:
            raise SpecError(f"{self.where}: {key} must be three numbers, not {value!r}")
        return float(value[0]), float(value[1]), float(value[2])

    def expect(self, key: str, wanted: object) -> None:
        """Raises for any value of `key` other than `wanted`; a missing key means `wanted`."""
        value = self._require(key, wanted)
        if value != wanted:
            raise SpecError(f"{self.where}: {key} is {value!r}; only {wanted!r} is supported")

    def _require(self, key: str, default: object = None) -> Any:
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            raise SpecError(f"{self.where}: {key} is missing")
        return value


def read_config(path: Path) -> Section:
    """Reads a JSON object.

    Raises:
        SpecError: The file is missing or is not a JSON object.
    """
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise SpecError(f"{path.name} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # broken JSON, or bytes that are not UTF-8
        raise SpecError(what_is_wrong(path, "valid JSON", error)) from error
    if not isinstance(values, dict):
        raise SpecError(f"{path.name} must contain a JSON object")
    return Section(path.name, values)


def read_dtype(config: Section, text: Section, stored: Iterable[str] = ()) -> str:
    """The dtype of the weights; old and new versions use two keys in two places.

    Args:
        config: config.json.
        text: The language model's settings in it.
        stored: Dtypes of the stored tensors; the most frequent one applies without such a key.

    Raises:
        SpecError: The dtype is not supported.
    """
    for section in (config, text):
        for key in ("dtype", "torch_dtype"):
            if key in section:
                dtype = section.text(key).removeprefix("torch.")
                if dtype not in DTYPE_BYTES:
                    raise SpecError(f"{section.where}: dtype {dtype!r} is not supported")
                return dtype
    counts = Counter(dtype for dtype in stored if dtype in DTYPE_BYTES)
    return counts.most_common(1)[0][0] if counts else "float32"


def read_eos(model_dir: Path, config: Section, text: Section) -> tuple[int, ...]:
    """The tokens that end an answer, from generation_config.json, else from config.json."""
    sections = [config, text]
    if (model_dir / "generation_config.json").is_file():
        sections.insert(0, read_config(model_dir / "generation_config.json"))
    for section in sections:
        if "eos_token_id" in section:
            return section.integers("eos_token_id")
    raise SpecError("neither generation_config.json nor config.json has eos_token_id")


def check_key_heads(section: Section, num_heads: int, num_kv_heads: int) -> None:
    """Raises unless every key head serves the same number of attention heads.

    Raises:
        SpecError: `num_heads` is not a multiple of `num_kv_heads`.
    """
    if num_heads % num_kv_heads:
        raise SpecError(
            f"{section.where}: {num_heads} attention heads cannot share {num_kv_heads} key heads"
        )
