"""Turns a constraint into a matcher of llguidance, which is imported with the first one. Torch-free.

A compiled grammar is lazy: what is too complex may show only when masks are computed, so that errors are looked for
after every step.
"""

from __future__ import annotations

import json
import random
import re
import time
from typing import TYPE_CHECKING, Any, Final

from inference_service.constraint import Constraint, ConstraintKind
from inference_service.grammar.error_words import one_line


if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llguidance import LLMatcher, LLParserLimits, LLTokenizer
    from llguidance._lib import JsonCompileOptions

JSON_STYLE: Final[JsonCompileOptions] = {
    "item_separator": ", ",
    "key_separator": ": ",
    "whitespace_flexible": False,
    "coerce_one_of": False,
    "lenient": False,
}
"""JSON on one line, as models are trained to write it: with free white space, they may write blanks for ever.

Overrides of what a schema asks for in `x-guidance`, which `_without_options` removes besides: it has more options.
"""

_SILENT: Final = 0
_TRIAL_TOKENS: Final = 32
_TRIAL_S: Final = 0.25
"""CPU time after which a trial has seen enough, if the tokens are cheap by then."""
_CHEAP_S: Final = 0.005
"""CPU time of a cheap token; one in the mean takes 0.1 ms, and the first ones of a large form more."""
_MASK_ITEMS: Final = 20_000
"""Items of the parser for one mask: a few milliseconds in most grammars, half a second in the most ambiguous ones."""
_AFTER_BREAK: Final = 'start: break? form\nbreak: "\\n" | "\\n\\n"\n'
_META: Final = re.compile(r"[\\.+*?()|\[\]{}^$]")


class GrammarError(Exception):
    """The constraint cannot be compiled, or is too complex; the text is one line about the caller's own text."""


def new_matcher(vocabulary: LLTokenizer, constraint: Constraint) -> LLMatcher:
    """A matcher at the beginning of an answer.

    Raises:
        GrammarError: The constraint cannot be compiled.
    """
    from llguidance import LLMatcher  # noqa: PLC0415 - a tenth of a second, which a start may never need

    try:
        grammar = _grammar(constraint)
    except ValueError as error:
        raise GrammarError(one_line(str(error))) from None
    matcher = LLMatcher(vocabulary, grammar, log_level=_SILENT, limits=_limits())
    raise_error(matcher)
    return matcher


def _limits() -> LLParserLimits:
    from llguidance import LLParserLimits  # noqa: PLC0415

    return LLParserLimits(verbose_errors=False, step_max_items=_MASK_ITEMS)


def raise_error(matcher: LLMatcher) -> None:
    """Checks a matcher; after an error, its masks permit only end tokens.

    Raises:
        GrammarError: It has failed.
    """
    if matcher.is_error():
        raise GrammarError(one_line(matcher.get_error()))


def try_out(
    vocabulary: LLTokenizer,
    constraint: Constraint,
    clock: Callable[[], float] = time.process_time,
) -> None:
    """Compiles a constraint and begins an answer: what is too complex may show only after some tokens.

    Where tokens go on to be expensive, it goes on as well, until the trial's own limit of CPU time ends it.

    Args:
        vocabulary: The vocabulary.
        constraint: The constraint.
        clock: CPU time in seconds.

    Raises:
        GrammarError: It cannot be compiled, or a mask cannot be computed.
    """
    matcher = new_matcher(vocabulary, constraint)
    chance = random.Random(0)  # noqa: S311 - not for secrets
    begin_s = clock()
    for _ in range(_TRIAL_TOKENS):
        token_s = clock()
        mask = _without(matcher.compute_bitmask(), vocabulary.eos_tokens)
        raise_error(matcher)
        if not any(mask):
            return  # complete
        matcher.consume_token(_permitted(mask, chance.randrange(len(mask))))
        raise_error(matcher)
        now_s = clock()
        if now_s - begin_s > _TRIAL_S and now_s - token_s < _CHEAP_S:
            return


def _without(mask: bytes, token_ids: Sequence[int]) -> bytes:
    """A mask that permits these tokens no more: an answer that may end at once would show nothing."""
    left = bytearray(mask)
    for token_id in token_ids:
        left[token_id // 8] &= ~(1 << token_id % 8)
    return bytes(left)


def _permitted(mask: bytes, start: int) -> int:
    """A permitted token: the first one in the bytes from `start` on, or else from the beginning."""
    rest = mask[start:].lstrip(b"\0") or mask.lstrip(b"\0")
    index = len(mask) - len(rest)
    return 8 * index + (mask[index] & -mask[index]).bit_length() - 1


def _grammar(constraint: Constraint) -> str:
    from llguidance import LLMatcher  # noqa: PLC0415

    if constraint.kind is ConstraintKind.LARK:
        return LLMatcher.grammar_from_lark(constraint.text)
    if constraint.kind in (ConstraintKind.JSON_OBJECT, ConstraintKind.JSON_SCHEMA):
        schema = _without_options(constraint.text or '{"type": "object"}')
        if constraint.after_break:
            styled = json.dumps(schema | {"x-guidance": JSON_STYLE})
            return LLMatcher.grammar_from_lark(f"{_AFTER_BREAK}form: %json {styled}")
        # As text: an object loses long integers.
        return LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=JSON_STYLE)
    pattern = constraint.text
    if constraint.kind is ConstraintKind.CHOICES:
        # One regular expression: thousands of alternatives of a grammar exceed its limits.
        pattern = "|".join(_META.sub(r"\\\g<0>", value) for value in constraint.values)
    grammar = LLMatcher.grammar_from_regex(pattern)
    if constraint.after_break:
        (parts,) = json.loads(grammar)["grammars"]
        literal = parts["lark_grammar"].removeprefix("start: ")
        return LLMatcher.grammar_from_lark(f"{_AFTER_BREAK}form: {literal}")
    return grammar


def _without_options(text: str) -> dict[str, Any]:
    schema = json.loads(text)
    if not isinstance(schema, dict):
        raise ValueError("the schema must be an object")  # noqa: TRY004 - about the caller's text
    schema.pop("x-guidance", None)
    return schema
