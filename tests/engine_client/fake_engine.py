"""The real engine process around a core without a model.

Token i of a choice is `fake_token(request, pixels, i, choice)`. Marker ids in a prompt make the core misbehave in
its next step, and the text of `EngineConfig.model_dir` makes the load misbehave.
"""

from __future__ import annotations

from dataclasses import dataclass, field
import os
from pathlib import Path
import signal
import sys
import time

from inference_service.engine.failures import DeviceLostError
from inference_service.engine.process import main
from inference_service.engine_protocol.messages import (
    ChoiceOutput,
    EngineConfig,
    EngineReady,
    EngineRequest,
    EngineStats,
    FinishReason,
    PromptLayout,
    PromptSource,
)
from inference_service.errors import ContextLengthError
from inference_service.progress import advance


CRASH, SEGFAULT, STALL, STEP_RAISES, ADD_RAISES, REFUSED, SLOW, HUGE, LONG = range(900_001, 900_010)
LONG_STEP_S = 4.0
PREPARE_S = 0.5
SLOW_STEP_S = 0.005


def fake_token(
    request: EngineRequest, pixels: memoryview | bytes, index: int, choice: int = 0
) -> int:
    """The token at `index` of a choice."""
    prompt = sum(request.prompt_token_ids) * 31 + sum(pixels) * 17
    return (prompt + index * 7 + choice * 1009) % 50_000


@dataclass
class _Running:
    request: EngineRequest
    pixels: memoryview | bytes
    choice: int
    tokens: list[int] = field(default_factory=list)

    def has(self, marker: int) -> bool:
        return marker in self.request.prompt_token_ids


class FakeCore:
    """Everything runs at once; a sequence holds the pages that its tokens need."""

    def __init__(self, config: EngineConfig) -> None:
        kind, _, path = config.model_dir.partition(":")
        if kind == "refused":
            raise ValueError("no model here")
        if kind == "crash" or (kind == "once" and Path(path).exists()):
            os._exit(7)
        if kind == "once":
            Path(path).touch()
        if kind == "slow":
            time.sleep(3600)
        if config.cuda_graphs == "auto" and kind == "graphs":
            os.kill(os.getpid(), signal.SIGKILL)
        if config.cuda_graphs == "auto" and kind == "lost":
            raise DeviceLostError("the device is lost")
        self._config = config
        self._running: dict[tuple[str, int], _Running] = {}
        self._steps = 0

    @property
    def ready(self) -> EngineReady:
        return EngineReady(
            device="fake",
            dtype="float32",
            max_model_len=4096,
            kv_pages_total=1024,
            kv_page_tokens=self._config.page_size,
            kv_bytes_per_token=4,
            weight_bytes=0,
            parts=(("vision", 1), ("adapter", 2), ("language", 3)),
        )

    @property
    def stats(self) -> EngineStats:
        return EngineStats(
            running=len(self._running),
            kv_pages_total=1024,
            kv_pages_used=sum(
                -(-(len(s.request.prompt_token_ids) + len(s.tokens)) // self._config.page_size)
                for s in self._running.values()
            ),
            steps=self._steps,
        )

    @property
    def has_work(self) -> bool:
        return bool(self._running)

    def prepare(self, source: PromptSource, pixels: memoryview | bytes) -> PromptLayout:
        """The prompt has the given ids, and the sum of the pixels at its end."""
        if REFUSED in source.token_ids:
            raise ContextLengthError("too long", metadata={"prompt_tokens": "9"})
        if ADD_RAISES in source.token_ids:
            raise KeyError("a defect")
        if CRASH in source.token_ids:
            os._exit(3)
        if LONG in source.token_ids:
            time.sleep(PREPARE_S)
        if STALL in source.token_ids:
            time.sleep(3600)
        return PromptLayout(token_ids=(*source.token_ids, sum(pixels)))

    def add(self, request: EngineRequest, pixels: memoryview | bytes) -> None:
        if REFUSED in request.prompt_token_ids:
            raise ContextLengthError("too long", metadata={"prompt_tokens": "9"})
        for choice in range(request.num_choices):
            self._running[request.request_id, choice] = _Running(request, pixels, choice)
        if ADD_RAISES in request.prompt_token_ids:
            raise KeyError("a defect")

    def abort(self, request_id: str, choice_index: int | None = None) -> None:
        for key in tuple(self._running):
            if key[0] == request_id and choice_index in (None, key[1]):
                del self._running[key]

    def step(self) -> list[ChoiceOutput]:
        self._steps += 1
        for sequence in self._running.values():
            _misbehave(sequence)
        if any(sequence.has(LONG) for sequence in self._running.values()):
            for _ in range(40):
                time.sleep(LONG_STEP_S / 40)
                advance()
        if any(sequence.has(SLOW) for sequence in self._running.values()):
            time.sleep(SLOW_STEP_S)
        return [self._advance(sequence) for sequence in tuple(self._running.values())]

    def _advance(self, sequence: _Running) -> ChoiceOutput:
        request = sequence.request
        token = fake_token(request, sequence.pixels, len(sequence.tokens), sequence.choice)
        first = not sequence.tokens
        sequence.tokens.append(token)
        finished = len(sequence.tokens) == request.sampling.max_tokens
        if finished:
            del self._running[request.request_id, sequence.choice]
        return ChoiceOutput(
            request_id=request.request_id,
            choice_index=sequence.choice,
            token_ids=(2**62,) * 8_000_000 if sequence.has(HUGE) else (token,),
            num_cached_tokens=0 if first else None,
            finish_reason=FinishReason.LENGTH if finished else None,
        )


def _misbehave(sequence: _Running) -> None:
    if sequence.has(CRASH):
        os._exit(3)
    if sequence.has(SEGFAULT):
        os.kill(os.getpid(), signal.SIGSEGV)
    if sequence.has(STALL):
        time.sleep(3600)
    if sequence.has(STEP_RAISES):
        raise RuntimeError("a defect")


if __name__ == "__main__":
    sys.exit(main(core_factory=FakeCore))
