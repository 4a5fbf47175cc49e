"""Looking before speaking: kind and colour of single shapes, told from the vision tower's tokens alone.

Owns the small head that names them and its loss; it is thrown away after the training. Must not know words.

Without it the tower learns colours soon and shapes late: one word of an answer depends on the shape, and its gradient
is small beside that of all other words.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from inference_service.demo.batches import UNLABELLED
from inference_service.demo.network import Network
from inference_service.demo.palette import COLOURS, KINDS


COLOUR_SHARE = 0.3  # colours are easy: they need less weight


class LookingHead(nn.Module):
    """Names the only shape of a picture from the mean of its tokens.

    It listens to the vision tower: after a forward pass of the network, `loss` speaks of the pictures of that pass.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.names = nn.Linear(network.config.hidden_size, len(KINDS) + len(COLOURS))
        nn.init.zeros_(
            self.names.weight
        )  # a linear map learns from zero as well, and the same every time
        nn.init.zeros_(self.names.bias)
        self._seen: torch.Tensor | None = None
        network.model.visual.register_forward_hook(self._listen)

    def _listen(
        self, _tower: nn.Module, _input: object, output: tuple[torch.Tensor, object]
    ) -> None:
        self._seen = output[0]

    def loss(self, labels: torch.Tensor) -> torch.Tensor:
        """Mean loss over the labelled pictures of the last pass, a scalar; 0 if there are none.

        Args:
            labels: [B, 2] int64: kind and colour, or UNLABELLED; B pictures were seen.
        """
        seen, self._seen = self._seen, None
        if seen is None or len(seen) != len(labels) or (labels[:, 0] == UNLABELLED).all():
            return torch.zeros((), device=labels.device)
        scores = self.names(seen.mean(1))
        kinds, colours = scores.split((len(KINDS), len(COLOURS)), -1)
        return cross_entropy(kinds, labels[:, 0]) + COLOUR_SHARE * cross_entropy(
            colours, labels[:, 1]
        )
