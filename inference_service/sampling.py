"""The sampling settings, each with its range and OpenAI's default.

A new scalar is a field of the proto's `SamplingOptions`, of both classes below and of `AnswerRequest` in
`rest_adapter/openai/fields.py`, and its use in the sampler of the engine. Validation, defaults, the engine's parameters
and the effective settings follow from these. The adapter does not start, and tests fail, if one of them lacks a field.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Final, Self, get_type_hints


_MAX_INT32: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Range:
    """An inclusive range of allowed values; NaN is never allowed."""

    minimum: float
    maximum: float

    def __contains__(self, value: float) -> bool:
        """Whether the value is allowed."""
        return self.minimum <= value <= self.maximum


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Complete sampling settings: every setting has a value.

    Attributes:
        temperature: 0 = greedy.
        top_p: 1 = off; 0 = only the most likely token.
        top_k: 0 or -1 = off.
        min_p: 0 = off.
        repetition_penalty: 1 = off; counts prompt and answer (arXiv 1909.05858).
        presence_penalty: 0 = off; counts the answer only.
        frequency_penalty: 0 = off; counts the answer only.
        seed: The noise depends only on (seed, index of the answer, position).
        max_tokens: Maximum tokens of the answer; its default depends on the prompt.
        min_tokens: End tokens are excluded until the answer has this many tokens.
        ignore_eos: Continue after an end token of the model.
        logit_bias: (token id, added value) pairs.
        allowed_token_ids: The only tokens that can be sampled; empty = all.
        bad_words: Texts whose tokens an answer must not have in a row.
    """

    temperature: Annotated[float, Range(0, 2)] = 1.0
    top_p: Annotated[float, Range(0, 1)] = 1.0
    top_k: Annotated[int, Range(-1, _MAX_INT32)] = 0
    min_p: Annotated[float, Range(0, 1)] = 0.0
    repetition_penalty: Annotated[float, Range(1e-3, 10)] = 1.0
    presence_penalty: Annotated[float, Range(-2, 2)] = 0.0
    frequency_penalty: Annotated[float, Range(-2, 2)] = 0.0
    seed: Annotated[int, Range(-(2**63), 2**63 - 1)] = 0
    max_tokens: Annotated[int, Range(1, _MAX_INT32)]
    min_tokens: Annotated[int, Range(0, _MAX_INT32)] = 0
    ignore_eos: bool = False
    logit_bias: tuple[tuple[int, float], ...] = ()
    allowed_token_ids: tuple[int, ...] = ()
    bad_words: tuple[str, ...] = ()


LISTS: Final = ("logit_bias", "allowed_token_ids", "bad_words")
"""The names of the settings with several values."""

SCALARS: Final = tuple(
    field.name for field in dataclasses.fields(Sampling) if field.name not in LISTS
)
"""The names of the settings with a single value."""

RANGES: Final[Mapping[str, Range]] = {
    name: note
    for name, hint in get_type_hints(Sampling, include_extras=True).items()
    for note in getattr(hint, "__metadata__", ())
    if isinstance(note, Range)
}
"""The range of every numeric setting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """The sampling settings of one source: a request, the operator or the model; None = not set."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    logit_bias: tuple[tuple[int, float], ...] | None = None
    allowed_token_ids: tuple[int, ...] | None = None
    bad_words: tuple[str, ...] | None = None

    @classmethod
    def read(cls, value_of: Callable[[str], Any]) -> Self:
        """Reads every scalar by its name; `value_of` returns None for a setting that is not set."""
        return cls(**{name: value_of(name) for name in SCALARS})

    def over(self, other: SamplingOptions) -> Self:
        """These settings, completed with those of `other`."""
        return dataclasses.replace(self, **(_values(other) | _values(self)))

    def resolved(self) -> Sampling:
        """These settings, completed with OpenAI's defaults; `max_tokens` must be set."""
        return Sampling(**_values(self))


def _values(options: SamplingOptions) -> dict[str, Any]:
    every = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    return {name: value for name, value in every.items() if value is not None}
