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
"""CPU time after which a trial has seen enough."""
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

    return LLParserLimits(verbose_errors=False)


def raise_error(matcher: LLMatcher) -> None:
    """Checks a matcher; after an error, its masks permit only end tokens.

    Raises:
        GrammarError: It has failed.
    """
    if matcher.is_error():
        raise GrammarError(one_line(matcher.get_error()))


def try_out(vocabulary: LLTokenizer, constraint: Constraint) -> None:
    """Compiles a constraint and begins an answer: what is too complex may show only after some tokens.

    Raises:
        GrammarError: It cannot be compiled, or a mask cannot be computed.
    """
    matcher = new_matcher(vocabulary, constraint)
    chance = random.Random(0)  # noqa: S311 - not for secrets
    until = time.process_time() + _TRIAL_S
    for _ in range(_TRIAL_TOKENS):
        mask = matcher.compute_bitmask()
        raise_error(matcher)
        token_id = _permitted(mask, chance.randrange(len(mask)))
        if token_id in vocabulary.eos_tokens or time.process_time() > until:
            return
        matcher.consume_token(token_id)
        raise_error(matcher)


def _permitted(mask: bytes, start: int) -> int:
    """A permitted token: the first one in the bytes from `start` on, or else from the beginning."""
    index = next(i % len(mask) for i in range(start, start + len(mask)) if mask[i % len(mask)])
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
