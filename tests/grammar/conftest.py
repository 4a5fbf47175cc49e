"""The demo model's vocabulary, and answers of chance: any permitted token is as likely as any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
import random

from llguidance import LLTokenizer
import pytest

from inference_service.constraint import Constraint
from inference_service.grammar.matcher import new_matcher, raise_error
from inference_service.grammar.vocabulary import load_vocabulary


DEMO = Path("inference_service/demo/model")
Write = Callable[..., str]


@pytest.fixture(scope="session")
def vocabulary() -> LLTokenizer:
    return load_vocabulary(DEMO)


@pytest.fixture(scope="session")
def write(vocabulary: LLTokenizer) -> Write:
    """Writes an answer in the form of a constraint, at most so many tokens long."""

    def write(constraint: Constraint, seed: int = 0, max_tokens: int = 2000) -> str:
        chance = random.Random(seed)
        return written(vocabulary, constraint, chance, max_tokens)

    return write


def permitted(mask: bytes) -> list[int]:
    return [index for index in range(8 * len(mask)) if mask[index // 8] >> (index % 8) & 1]


def written(
    vocabulary: LLTokenizer, constraint: Constraint, chance: random.Random, max_tokens: int
) -> str:
    matcher = new_matcher(vocabulary, constraint)
    ends = set(vocabulary.eos_tokens)
    tokens: list[int] = []
    while len(tokens) < max_tokens:
        allowed = permitted(matcher.compute_bitmask())
        raise_error(matcher)
        assert not ends.intersection(allowed) or ends.issubset(allowed)
        # Long strings of chance are dull: close what can be closed.
        closing = [
            token for token in allowed if vocabulary.decode_bytes([token]) in (b'"', b"}", b"]")
        ]
        token = chance.choice(closing if closing and chance.random() < 0.3 else allowed)
        if token in ends:
            break
        assert matcher.consume_token(token), matcher.get_error()
        tokens.append(token)
    return vocabulary.decode_str(tokens)
