"""The results of a step: on their way to the host, and read there."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import islice
from typing import Self

import torch
from torch import Tensor

from inference_service.engine.logprobs import LogprobTensors
from inference_service.engine.plan import Chunk
from inference_service.engine.readback import to_host
from inference_service.engine.staging import Fence
from inference_service.engine.step_sampler import Sampled
from inference_service.engine_protocol.messages import PositionLogprobs, ProbeResult


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """The result of one chunk.

    Attributes:
        token_id: The next token, if the chunk samples one.
        probe: The result of a probe, if the chunk ends with it.
        logprobs: Its log probabilities, if requested.
        prompt_logprobs: Log probabilities of the prompt tokens that follow the chunk's tokens, if requested and not yet
            reported.
    """

    token_id: int | None = None
    probe: ProbeResult | None = None
    logprobs: PositionLogprobs | None = None
    prompt_logprobs: tuple[PositionLogprobs, ...] = ()


@dataclass(frozen=True, slots=True)
class Launched:
    """A step in flight; its results are on their way to the host.

    Attributes:
        chunks: The chunks of the step.
        fence: The results are on the host once it is passed.
        token_ids: [R] int64: the next token of every chunk that samples, in order; None if none does. For a probe it is
            the most likely one.
        candidates: [N] float32: log probabilities of the candidates of all probes, in order; None without probes.
        logprobs: Log probabilities of those of the R tokens for which they are requested.
        prompt_logprobs: Prompt log probabilities in parts, by index of the chunk.
    """

    chunks: Seq[Chunk]
    fence: Fence
    token_ids: Tensor | None
    candidates: Tensor | None
    logprobs: LogprobTensors | None
    prompt_logprobs: dict[int, list[LogprobTensors]]

    @classmethod
    def with_copies(
        cls,
        chunks: Seq[Chunk],
        sampled: Sampled | None,
        prompt_logprobs: dict[int, list[LogprobTensors]],
        device: torch.device,
    ) -> Self:
        """Enqueue the copies of the results to the host.

        Args:
            chunks: The chunks of the step.
            sampled: What is sampled; None if nothing is.
            prompt_logprobs: See the attribute.
            device: Where they are.
        """
        token_ids, candidates, logprobs = None, None, None
        if sampled is not None:
            token_ids = to_host(sampled.token_ids)
            candidates = None if sampled.candidates is None else to_host(sampled.candidates)
            logprobs = None if sampled.logprobs is None else sampled.logprobs.to_host()
        fence = Fence(device)
        fence.record()
        return cls(chunks, fence, token_ids, candidates, logprobs, prompt_logprobs)

    def read(self) -> list[ChunkResult]:
        """Wait for the results, if there are any, and return them, one for every chunk."""
        self.fence.wait()
        token_ids = iter([] if self.token_ids is None else self.token_ids.tolist())
        candidates = iter([] if self.candidates is None else self.candidates.tolist())
        logprobs = iter([] if self.logprobs is None else self.logprobs.read())
        results = []
        for index, chunk in enumerate(self.chunks):
            if chunk.samples and (probe := chunk.sequence.probe) is not None:
                values = tuple(islice(candidates, len(probe.candidate_ids)))
                result = ProbeResult(logprobs=values, top_id=next(token_ids))
                results.append(ChunkResult(probe=result))
                continue
            wants_logprobs = chunk.samples and chunk.sequence.sampling.logprobs is not None
            parts = self.prompt_logprobs.get(index, [])
            results.append(
                ChunkResult(
                    token_id=next(token_ids) if chunk.samples else None,
                    logprobs=next(logprobs) if wants_logprobs else None,
                    prompt_logprobs=tuple(entry for part in parts for entry in part.read()),
                )
            )
        return results
