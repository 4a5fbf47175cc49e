"""Log probabilities of tokens, computed on the device and read later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from inference_service.engine.readback import to_host
from inference_service.engine_protocol.messages import PositionLogprobs


@dataclass(frozen=True, slots=True)
class LogprobTensors:
    """Log probabilities of R tokens.

    Attributes:
        token_ids: [R] int64.
        logprobs: [R] float32, natural logarithm.
        ranks: [R] int64, 1 = the most likely.
        top_ids: [R, K] int64: the most likely tokens, in descending order.
        top_logprobs: [R, K] float32.
        num_top: How many of the K are requested for each row; more than K means all.
    """

    token_ids: Tensor
    logprobs: Tensor
    ranks: Tensor
    top_ids: Tensor
    top_logprobs: Tensor
    num_top: Sequence[int]

    def to_host(self) -> LogprobTensors:
        """A copy on the host, complete once the device has come to this point; see `readback.to_host`."""
        return LogprobTensors(
            to_host(self.token_ids),
            to_host(self.logprobs),
            to_host(self.ranks),
            to_host(self.top_ids),
            to_host(self.top_logprobs),
            self.num_top,
        )

    def read(self) -> list[PositionLogprobs]:
        """The R results, from tensors on the host."""
        return [
            PositionLogprobs(
                token_id=token_id,
                logprob=logprob,
                rank=rank,
                top=tuple(zip(ids[:count], values[:count], strict=True)),
            )
            for token_id, logprob, rank, ids, values, count in zip(
                self.token_ids.tolist(),
                self.logprobs.tolist(),
                self.ranks.tolist(),
                self.top_ids.tolist(),
                self.top_logprobs.tolist(),
                self.num_top,
                strict=True,
            )
        ]


def token_logprobs(logits: Tensor, token_ids: Tensor, num_top: Sequence[int]) -> LogprobTensors:
    """Log probabilities of chosen tokens and of the most likely ones; does not wait for the device.

    Args:
        logits: [R, V] float32 from the model.
        token_ids: [R] int64: the chosen ids.
        num_top: Number of most likely tokens requested for each row, 0 or more.
    """
    logprobs = logits.log_softmax(dim=-1)
    chosen = logprobs.gather(-1, token_ids.unsqueeze(-1))
    ranks = (logprobs > chosen).sum(dim=-1) + 1
    top_values, top_ids = logprobs.topk(min(max(num_top), logits.shape[-1]), dim=-1)
    return LogprobTensors(token_ids, chosen.squeeze(-1), ranks, top_ids, top_values, num_top)


def candidate_logprobs(logits: Tensor, rows: Tensor, token_ids: Tensor) -> Tensor:
    """Log probabilities of given tokens; does not wait for the device.

    Args:
        logits: [R, V] float32 from the model.
        rows: [N] int64: a row for each token.
        token_ids: [N] int64.

    Returns:
        [N] float32.
    """
    chosen = logits[rows, token_ids]
    return chosen - logits.logsumexp(dim=-1).index_select(0, rows)
