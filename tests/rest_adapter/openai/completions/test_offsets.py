"""`text_offset` is where a token's first character begins in `text`, however characters are cut into tokens."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwenvl.inference.v1 import generation_pb2 as generation_pb
from qwenvl.inference.v1 import usage_pb2 as usage_pb
from rest_adapter.openai.completions.logprobs import LegacyLogprobs
from tests.support.cuts import cut


WORDS = st.text(alphabet="aé图🙂\n", max_size=12)
CUTS = st.lists(st.integers(1, 3), max_size=40)


def tokens_of(data: bytes, lengths: Sequence[int]) -> list[bytes]:
    return [token for part in cut(len(data), lengths) if (token := data[part])]


def entry(token: bytes) -> usage_pb.LogprobEntry:
    text = token.decode(errors="replace")
    return usage_pb.LogprobEntry(
        chosen=usage_pb.TokenLogprob(token=text, bytes=token, logprob=-1.0, rank=1)
    )


def offsets(prompt: Sequence[bytes], answer: Sequence[bytes], text: str) -> list[int]:
    """Those of an echoed prompt and an answer."""
    started = generation_pb.Started(prompt_text=text)
    if prompt:
        started.prompt_logprobs.add()
        started.prompt_logprobs.extend(map(entry, prompt[1:]))
    form = LegacyLogprobs(0)
    form.add_prompt(started)
    form.add([entry(token) for token in answer])
    found = form.take()
    assert found["tokens"] == [token.decode(errors="replace") for token in (*prompt, *answer)]
    return list(found["text_offset"])


def places(tokens: Sequence[bytes], begin: int) -> list[int]:
    """For the tokens of valid text: how many characters are complete before each."""
    data, found = b"".join(tokens), []
    for index in range(len(tokens)):
        before = data[: sum(map(len, tokens[:index]))]
        found.append(begin + len(before.decode(errors="ignore")))
    return found


@settings(deadline=None)
@given(WORDS, WORDS, CUTS, CUTS)
@example("é🙂b", "🙂", [1] * 7, [1] * 4)
def test_offsets_are_places_in_the_text(
    prompt: str, answer: str, prompt_cuts: list[int], answer_cuts: list[int]
) -> None:
    asked = tokens_of(prompt.encode(), prompt_cuts)
    said = tokens_of(answer.encode(), answer_cuts)
    expected = [*places(asked, 0), *places(said, len(prompt))]
    assert offsets(asked, said, prompt) == expected
    assert all(offset < len(prompt + answer) for offset in expected)


def test_bytes_that_are_no_text_are_characters_of_the_text() -> None:
    """A prompt of token ids that ends within a character, and an answer that goes on with it: both are U+FFFD."""
    prompt = [b"a", b"\x80", b"b", b"\xf0\x9f"]
    text = b"".join(prompt).decode(errors="replace")
    assert text == "a\ufffdb\ufffd"
    assert offsets(prompt, [b"\x99", b"c", b"\x82"], text) == [0, 1, 2, 3, 4, 5, 6]
    assert offsets([b"\x80", b"b"], [b"c"], "\ufffdb") == [0, 1, 2]
