"""The auxiliary task of the vision tower: predicts shapes and characters per patch from its tokens alone.

Without it the tower learns colours early, shapes late and letters never: few words of an answer depend on them, and
their gradient is small compared to that of all other words. With it, tokens contain what an answer needs, and the
decoder only has to find it. The head is discarded after the training.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from demo_training.batches import Truth
from demo_training.images import MERGE
from demo_training.labels import CHARACTER_CLASSES, HALVES, NOTHING, SHAPE_CLASSES
from demo_training.network import Network


PER_TOKEN = MERGE**2
NOTHING_SHARE = 0.3  # weight of an empty place; most places are empty
# Per value, see `labels.SHAPE_CLASSES` and `labels.CHARACTER_CLASSES`.
SHAPE_WEIGHTS = (1.0, 0.5, 0.5, 0.3, 0.3, 0.3, 0.3)
CHARACTER_WEIGHTS = (1.0, 0.1, 0.5)
BOX_WEIGHT = 10.0  # of the mean distance between the edges of boxes, in fractions of a side


class LookingHead(nn.Module):
    """Predicts the content of each patch of a token.

    A hook records the output of the vision tower: after a forward pass of the network, `loss` is about its images.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        width = network.config.hidden_size
        self.shapes = nn.Linear(width, PER_TOKEN * sum(SHAPE_CLASSES))
        self.boxes = nn.Linear(width, PER_TOKEN * 4)
        self.characters = nn.Linear(width, PER_TOKEN * HALVES * sum(CHARACTER_CLASSES))
        for layer in (self.shapes, self.boxes, self.characters):
            nn.init.zeros_(layer.weight)  # a linear map can learn from zero, and deterministically
            nn.init.zeros_(layer.bias)
        self._seen: torch.Tensor | None = None
        network.model.visual.register_forward_hook(self._record)

    def _record(
        self, _tower: nn.Module, _input: object, output: tuple[torch.Tensor, object]
    ) -> None:
        self._seen = output[0]

    def loss(self, truth: Truth) -> torch.Tensor:
        """Mean loss per label over the images of the last pass, a scalar."""
        seen, self._seen = self._seen, None
        assert seen is not None
        assert len(seen) == len(truth.shapes)
        there = truth.shapes[..., 0].flatten() > NOTHING
        distances = (self.boxes(seen).view(-1, 4) - truth.boxes.view(-1, 4))[there].abs()
        loss = BOX_WEIGHT * distances.sum() / (4 * there.sum()).clamp(min=1)
        loss = loss + _loss(self.shapes(seen), truth.shapes, SHAPE_CLASSES, SHAPE_WEIGHTS)
        out: torch.Tensor = loss + _loss(
            self.characters(seen), truth.characters, CHARACTER_CLASSES, CHARACTER_WEIGHTS
        )
        return out

    @torch.no_grad()
    def right(self, truth: Truth) -> str:
        """Accuracy at labelled places and the mean distance of boxes, for the log; call it before `loss`."""
        seen = self._seen
        assert seen is not None
        there = truth.shapes[..., 0].flatten() > NOTHING
        distances = (self.boxes(seen).view(-1, 4) - truth.boxes.view(-1, 4))[there].abs()
        shapes = _right(self.shapes(seen), truth.shapes, SHAPE_CLASSES)
        characters = _right(self.characters(seen), truth.characters, CHARACTER_CLASSES)
        return f"shapes {shapes} boxes off by {distances.mean().item():.3f} characters {characters}"


def _loss(
    scores: torch.Tensor, labels: torch.Tensor, classes: tuple[int, ...], weights: tuple[float, ...]
) -> torch.Tensor:
    """Scores [B, tokens, places * sum(classes)] against labels [B, places, ..., values]."""
    flat = labels.reshape(-1, len(classes))
    rows = scores.reshape(len(flat), sum(classes))
    there = flat[:, 0] > NOTHING
    first = cross_entropy(rows[:, : classes[0]], flat[:, 0], reduction="none")
    loss = (first * torch.where(there, 1.0, NOTHING_SHARE)).sum() * weights[0]
    known = torch.split(rows[there], list(classes), -1)
    for index in range(1, len(classes)):  # an UNLABELLED value adds nothing
        loss = loss + weights[index] * cross_entropy(
            known[index], flat[there, index], reduction="sum"
        )
    out: torch.Tensor = loss / there.sum().clamp(min=1)
    return out


def _right(scores: torch.Tensor, labels: torch.Tensor, classes: tuple[int, ...]) -> str:
    flat = labels.reshape(-1, len(classes))
    there = flat[:, 0] > NOTHING
    known = torch.split(scores.reshape(len(flat), sum(classes))[there], list(classes), -1)
    hits = [(k.argmax(-1) == flat[there, i]).float().mean().item() for i, k in enumerate(known)]
    return " ".join(f"{hit:.2f}" for hit in hits)
