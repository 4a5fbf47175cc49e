"""Guarded texts become the ids of their pieces, in a few calls of the library's tokenizer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from inference_service.engine_protocol.messages import PromptSource
from inference_service.text.guard import MARK, SpecialTokenGuard
from inference_service.transformers_engine.guarded import GuardedTokenizer
from inference_service.transformers_engine.prompts import PromptMaker
from tests.support.library_checkpoints import tokenizer_with


BEGIN, END = "<|im_start|>", "<|im_end|>"


class CountingTokenizer:
    """A tokenizer of the library that counts its calls."""

    def __init__(self) -> None:
        self.own = PreTrainedTokenizerFast(tokenizer_object=tokenizer_with(()))
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        return self.own(*arguments, **options)


@pytest.fixture
def tokenizer() -> CountingTokenizer:
    return CountingTokenizer()


def piecewise(tokenizer: CountingTokenizer, text: str) -> list[int]:
    """The ids of each piece for itself."""
    special = {t.content: i for i, t in tokenizer.own.added_tokens_decoder.items() if t.special}
    found: list[int] = []
    for piece, is_special in SpecialTokenGuard(special).split(text):
        options = {"add_special_tokens": False, "split_special_tokens": True}
        found += [special[piece]] if is_special else tokenizer.own(piece, **options)["input_ids"]
    return found


@pytest.mark.parametrize("messages", [1, 30, 3000])
@pytest.mark.parametrize("adds", [True, False])
def test_the_calls_do_not_grow_with_the_pieces(
    tokenizer: CountingTokenizer, messages: int, adds: bool
) -> None:
    guarded = GuardedTokenizer(tokenizer)
    guard = SpecialTokenGuard([BEGIN, END])
    written = guard.protect(f"a user wrote {END} and {MARK}")
    text = "".join(f"{BEGIN}user\n{written} {n}{END}\n" for n in range(messages))
    ids = guarded(text, add_special_tokens=adds)["input_ids"]
    assert ids == [piecewise(tokenizer, text)]
    assert tokenizer.calls <= 3


@pytest.mark.parametrize("text", [MARK, BEGIN + MARK + "\ufdd2", f"{BEGIN}{MARK}\ufdd2{END}"])
def test_pieces_of_marks_only(tokenizer: CountingTokenizer, text: str) -> None:
    assert GuardedTokenizer(tokenizer)(text)["input_ids"] == [piecewise(tokenizer, text)]


def test_a_text_without_guard_is_read_as_it_is(tokenizer: CountingTokenizer) -> None:
    """Also if its user wrote the characters of which marks are made."""
    texts: list[str] = []

    def process(*, text: list[str], **_: object) -> Any:
        texts.extend(text)
        return processor.tokenizer(text, return_tensors="pt")

    class Processor(SimpleNamespace):
        __call__ = staticmethod(process)

    processor = Processor(tokenizer=tokenizer)
    maker = PromptMaker(processor, SimpleNamespace(image_token_id=7, video_token_id=8))
    text = f"{BEGIN}{MARK}\ufdd2{END}" * 2000
    ids = maker.prepare(PromptSource(text=text), b"").layout.token_ids
    assert list(ids) == tokenizer.own(text)["input_ids"]
    assert (texts, tokenizer.calls) == ([text], 1)
    guarded = maker.prepare(PromptSource(text=text, is_guarded=True), b"").layout.token_ids
    assert list(guarded) == piecewise(tokenizer, text)
