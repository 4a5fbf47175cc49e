"""Turns text into token ids and back with the tokenizer of the served model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib

from inference_service.backend.admission import Admission, AdmittedRequest
from inference_service.backend.prompts import Prompts
from inference_service.backend.rates import Amounts, RateLimits
from inference_service.backend.sampling import check_vocabulary
from inference_service.backend.served_model import Model
from inference_service.text.limits import MAX_CHARACTERS, too_many_characters


class ModelVocabulary:
    """A `Vocabulary`. Its requests need no turn: they take nothing but a little time of a thread."""

    def __init__(
        self, model: Model, workers: Prompts, admission: Admission, rates: RateLimits
    ) -> None:
        self._tokenizer = model.tokenizer
        self._vocab_size = model.vocab_size
        self._workers = workers
        self._admission = admission
        self._rates = rates

    async def tokenize(
        self, text: str, request_id: str, caller: str, *, parse_special: bool
    ) -> tuple[int, ...]:
        """See `Vocabulary`."""
        if len(text) > MAX_CHARACTERS:
            raise too_many_characters("text", "text")
        encode = self._tokenizer.encode if parse_special else self._tokenizer.encode_plain
        with self._admitted(request_id, caller) as admitted:
            async with admitted.abortable():
                return tuple(await self._workers.run(len(text), lambda: encode(text)))

    async def detokenize(
        self, token_ids: Sequence[int], request_id: str, caller: str, *, skip_special: bool
    ) -> str:
        """See `Vocabulary`."""
        check_vocabulary({"token_ids": token_ids}, self._vocab_size)

        def decode() -> str:
            return self._tokenizer.decode(
                token_ids, skip_special_tokens=skip_special, errors="replace"
            )

        with self._admitted(request_id, caller) as admitted:
            async with admitted.abortable():
                return await self._workers.run(len(token_ids), decode)

    async def strings(self, token_ids: Sequence[int]) -> tuple[str, ...]:
        """See `Vocabulary`."""
        write = self._tokenizer.token_string
        return await self._workers.run(len(token_ids), lambda: tuple(map(write, token_ids)))

    @contextlib.contextmanager
    def _admitted(self, request_id: str, caller: str) -> Iterator[AdmittedRequest]:
        self._rates.check(caller)
        with self._admission.admit(request_id, caller) as admitted:
            self._rates.take(caller, Amounts(requests=1))
            yield admitted
