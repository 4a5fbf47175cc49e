"""Turns text into token ids and back with the tokenizer of the served model."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
import contextlib
from typing import Final
from weakref import WeakValueDictionary

from inference_service.backend.admission import Admission, AdmittedRequest
from inference_service.backend.prompts import Prompts
from inference_service.backend.rates import Amounts, RateLimits
from inference_service.backend.sampling import check_vocabulary
from inference_service.backend.served_model import Model
from inference_service.errors import InvalidArgumentError


MAX_CHARACTERS: Final = 2**18
"""Maximum length of a text, which takes up to some 100 MiB and half a second."""


class ModelVocabulary:
    """A `Vocabulary`. Its requests need no turn, only the time of a thread, one of each caller at once."""

    def __init__(
        self, model: Model, workers: Prompts, admission: Admission, rates: RateLimits
    ) -> None:
        self._tokenizer = model.tokenizer
        self._vocab_size = model.vocab_size
        self._workers = workers
        self._admission = admission
        self._rates = rates
        self._places: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def tokenize(
        self, text: str, request_id: str, caller: str, *, parse_special: bool
    ) -> tuple[int, ...]:
        """See `Vocabulary`."""
        if len(text) > MAX_CHARACTERS:
            raise InvalidArgumentError(
                f"The text has {len(text)} characters, but at most {MAX_CHARACTERS} are tokenised at once. Send it in"
                " parts.",
                field="text",
            )
        encode = self._tokenizer.encode if parse_special else self._tokenizer.encode_plain
        with self._admitted(request_id, caller) as admitted:
            async with admitted.abortable(), self._place_of(caller):
                return tuple(await self._workers.run(len(text), caller, lambda: encode(text)))

    async def detokenize(
        self, token_ids: Sequence[int], request_id: str, caller: str, *, skip_special: bool
    ) -> str:
        """See `Vocabulary`."""
        check_vocabulary({"token_ids": token_ids}, self._vocab_size)

        def decode() -> str:
            return self._tokenizer.decode(token_ids, skip_special_tokens=skip_special)

        with self._admitted(request_id, caller) as admitted:
            async with admitted.abortable(), self._place_of(caller):
                return await self._workers.run(len(token_ids), caller, decode)

    async def strings(self, token_ids: Sequence[int], caller: str) -> tuple[str, ...]:
        """See `Vocabulary`."""
        write = self._tokenizer.token_string
        return await self._workers.run(len(token_ids), caller, lambda: tuple(map(write, token_ids)))

    def _place_of(self, caller: str) -> asyncio.Lock:
        place = self._places.get(caller)
        if place is None:
            place = self._places[caller] = asyncio.Lock()
        return place

    @contextlib.contextmanager
    def _admitted(self, request_id: str, caller: str) -> Iterator[AdmittedRequest]:
        self._rates.check(caller)
        with self._admission.admit(request_id, caller) as admitted:
            self._rates.take(caller, Amounts(requests=1))
            yield admitted
