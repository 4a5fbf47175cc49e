"""An engine without a model that answers with the question: what a test asks is what it gets.

Choice i of a request is the question i + 1 times over. Tokens come one by one. The candidates of a probe have the
probabilities 1/2, 1/4, 1/8, ... in ascending order of their ids, unless `judges` says otherwise. `hold_at` makes every
choice wait after so many tokens until `resume` is set, so that tests can look at requests under way. `live` and
`aborted` name choices as (request id, choice index).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
import math

from inference_service.engine_client.interface import EngineState, nothing
from inference_service.engine_protocol.messages import (
    ChoiceOutput,
    EngineFailure,
    EngineReady,
    EngineRequest,
    EngineStats,
    FinishReason,
    PositionLogprobs,
    Probe,
    ProbeResult,
)
from inference_service.errors import EngineUnavailableError, RequestIdInUseError
from inference_service.text.tokenizer import Tokenizer


EOS = 258  # <|im_end|> of the model directory in conftest.py


class EchoEngine:
    """An `Engine` in the test's own process."""

    def __init__(self, tokenizer: Tokenizer, max_model_len: int = 2048) -> None:
        self.state = EngineState.STARTING
        self.ready: EngineReady | None = None
        self.restarts: dict[str, int] = {}
        self.last_step_s: float | None = None
        self.pid: int | None = None
        self.pixel_bytes_in_flight = 0
        self.hold_at: int | None = None
        self.resume = asyncio.Event()
        self.fails_with: EngineFailure | None = None
        self.judges: Callable[[EngineRequest, Probe], Sequence[float]] | None = None
        self.requests: list[EngineRequest] = []
        self.pixels: list[bytes] = []
        self.aborted: list[tuple[str, int]] = []
        self.live: dict[tuple[str, int], asyncio.Event] = {}
        self._tokenizer = tokenizer
        self._max_model_len = max_model_len
        self._callbacks: list[Callable[[EngineState], None]] = []

    @property
    def stats(self) -> EngineStats:
        return EngineStats(running=len(self.live), kv_pages_total=1000, kv_page_tokens=16)

    def on_state_change(self, callback: Callable[[EngineState], None]) -> None:
        self._callbacks.append(callback)

    async def start(self) -> None:
        self.pid = 4321
        self.ready = EngineReady(
            device="cpu",
            dtype="float32",
            max_model_len=self._max_model_len,
            kv_pages_total=1000,
            kv_page_tokens=16,
            kv_bytes_per_token=64,
            weight_bytes=24,
            parts=(("vision", 1), ("adapter", 2), ("language", 3)),
        )
        self.become(EngineState.READY)

    async def close(self) -> None:
        self.become(EngineState.CLOSED)

    def become(self, state: EngineState) -> None:
        """Changes the state as the supervisor of a real engine does; all but READY ends what is running."""
        self.state = state
        if state is not EngineState.READY:
            for over in self.live.values():
                over.set()
        for callback in self._callbacks:
            callback(state)

    async def abort(self, request_id: str, choice_index: int | None = None) -> None:
        for key, over in self.live.items():
            if key[0] == request_id and choice_index in (None, key[1]):
                self.aborted.append(key)
                over.set()

    async def generate(
        self,
        request: EngineRequest,
        pixels: list[bytes | memoryview],
        *,
        counted: Callable[[int], None] = nothing,
        computed: Callable[[], None] = nothing,
    ) -> AsyncGenerator[ChoiceOutput, None]:
        self._require_ready(was_sent=False)
        if any(request_id == request.request_id for request_id, _ in self.live):
            raise RequestIdInUseError("a request with this id is in flight")
        self.requests.append(request)
        self.pixels = [bytes(image) for image in pixels]
        pixels.clear()
        overs = {
            (request.request_id, choice): asyncio.Event() for choice in range(request.num_choices)
        }
        self.live |= overs
        planned = [self._outputs(request, choice) for choice in range(request.num_choices)]
        index = 0
        try:
            while overs:
                await self._hold(index, list(overs.values()))
                self._require_ready(was_sent=True)
                held = self._is_held(index)
                for key, over in tuple(overs.items()):
                    output = planned[key[1]][0]
                    if over.is_set():
                        output = ChoiceOutput(
                            request_id=key[0],
                            choice_index=key[1],
                            finish_reason=FinishReason.ABORTED,
                        )
                    elif held:
                        continue
                    else:
                        planned[key[1]].pop(0)
                    if output.finish_reason is not None:
                        del overs[key], self.live[key]
                    counted(len(output.token_ids))
                    yield output
                index += not held
        finally:
            for key, over in overs.items():
                del self.live[key]
                if not over.is_set():
                    self.aborted.append(key)
            computed()

    def _require_ready(self, *, was_sent: bool) -> None:
        if self.state is not EngineState.READY:
            raise EngineUnavailableError(
                "the engine was lost", retry_after_s=1.0, repeatable=not was_sent
            )

    def _is_held(self, index: int) -> bool:
        return self.hold_at is not None and index >= self.hold_at and not self.resume.is_set()

    async def _hold(self, index: int, overs: Sequence[asyncio.Event]) -> None:
        if not self._is_held(index):
            await asyncio.sleep(0)
            return
        waits = [asyncio.ensure_future(event.wait()) for event in (*overs, self.resume)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _outputs(self, request: EngineRequest, choice: int) -> list[ChoiceOutput]:
        """All outputs of a choice that nobody disturbs."""
        if self.fails_with is not None:
            return [
                ChoiceOutput(
                    request_id=request.request_id,
                    choice_index=choice,
                    finish_reason=FinishReason.ERROR,
                    failure=self.fails_with,
                )
            ]
        if request.probes:
            return [self._judged(request, choice)]
        sampling = request.sampling
        tokens = (*self._question(request) * (choice + 1), EOS)
        outputs = []
        room = self._max_model_len - len(request.prompt_token_ids)
        for index, token in enumerate(tokens[: min(room, sampling.max_tokens)]):
            reason = FinishReason.CONTEXT_LENGTH if index + 1 == room else None
            reason = FinishReason.LENGTH if index + 1 == sampling.max_tokens else reason
            reason = FinishReason.STOP_TOKEN if token in sampling.stop_token_ids else reason
            reason = FinishReason.EOS if token == EOS else reason
            outputs.append(
                ChoiceOutput(
                    request_id=request.request_id,
                    choice_index=choice,
                    token_ids=(token,),
                    logprobs=()
                    if sampling.logprobs is None
                    else (_logprobs(token, sampling.logprobs),),
                    prompt_logprobs=(
                        tuple(
                            _logprobs(id_, sampling.prompt_logprobs)
                            for id_ in request.prompt_token_ids[1:]
                        )
                        if index == choice == 0 and sampling.prompt_logprobs is not None
                        else ()
                    ),
                    num_cached_tokens=3 if index == 0 else None,
                    finish_reason=reason,
                )
            )
            if reason is not None:
                break
        return outputs

    def _judged(self, request: EngineRequest, choice: int) -> ChoiceOutput:
        probe = request.probes[choice]
        count = len(probe.candidate_ids)
        values = [2.0 ** -(index + 1) for index in range(count)]
        if self.judges is not None:
            values = list(self.judges(request, probe))
        assert len(values) == count
        return ChoiceOutput(
            request_id=request.request_id,
            choice_index=choice,
            probe=ProbeResult(
                logprobs=tuple(math.log(value) for value in values), top_id=probe.candidate_ids[0]
            ),
            num_cached_tokens=3,
            finish_reason=FinishReason.LENGTH,
        )

    def _question(self, request: EngineRequest) -> tuple[int, ...]:
        """The ids of the last user's text: what stands between the last `user` line or image and its end."""
        text = self._tokenizer.decode(request.prompt_token_ids, skip_special_tokens=False)
        question = text.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]
        return tuple(self._tokenizer.encode_plain(question.rpartition("<|vision_end|>")[2]))


def _logprobs(token: int, count: int) -> PositionLogprobs:
    """The chosen token is always the likeliest, then come its successors."""
    top = tuple(((token + k) % 256, -0.5 - k) for k in range(count))
    return PositionLogprobs(token_id=token, logprob=-0.5, rank=1, top=top)
