"""Which tokens would complete a bad word, against a search that compares everything."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inference_service.engine.bad_words import BadWords


TOKENS = st.integers(0, 3)


@given(
    words=st.lists(st.lists(TOKENS, min_size=2, max_size=4), max_size=6),
    prompt=st.lists(TOKENS, max_size=4),
    answer=st.lists(TOKENS, max_size=6),
)
def test_tokens_that_would_complete_a_word(
    words: list[list[int]], prompt: list[int], answer: list[int]
) -> None:
    found = BadWords(words).completing([*prompt, *answer], len(prompt))
    wanted = {
        token for token in range(4) if any([*answer, token][-len(word) :] == word for word in words)
    }
    assert set(found) == wanted
