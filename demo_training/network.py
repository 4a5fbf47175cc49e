"""The demo network for training: Qwen3-VL's architecture with padded batches.

Parameters have the names of a Qwen3-VL checkpoint. It is implemented independently of `inference_service.models`, so
that each verifies the other.
"""

from __future__ import annotations

import torch
from torch import nn

from demo_training.decoder import LanguageModel
from demo_training.network_config import NetworkConfig
from demo_training.vision_tower import Visual


class Model(nn.Module):
    """Both parts, with the names of the checkpoint."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.visual = Visual(config)
        self.language_model = LanguageModel(config)


class Network(nn.Module):
    """The whole network; the output head is the token embedding."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Model(config)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=_first_scale(name, parameter))

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        patches: torch.Tensor | None,
        grid: tuple[int, int],
        image_tokens: torch.Tensor,
    ) -> torch.Tensor:
        """Runs the network over a padded batch.

        Args:
            token_ids: [B, T] int64, padded at the end.
            positions: [3, B, T] int64: time, height, width.
            patches: [B, images, N, 768] float in -1..1, or None without images.
            grid: Rows and columns of patches, the same in all images.
            image_tokens: [B, T] bool, true at image tokens.

        Returns:
            [B, T, hidden_size] after the final norm, the input of `logits`.
        """
        language = self.model.language_model
        x = language.embed_tokens(token_ids)
        features: list[torch.Tensor] = []
        if patches is not None:
            tokens, features = self.model.visual(patches.flatten(0, 1), *grid)
            x = x.masked_scatter(image_tokens[..., None], tokens.flatten(0, 1))
        out: torch.Tensor = language(x, positions, image_tokens, features)
        return out

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., hidden_size] -> [..., vocab_size]."""
        return hidden @ self.model.language_model.embed_tokens.weight.T


def _first_scale(name: str, parameter: torch.Tensor) -> float:
    """Standard deviation of the initial values; half for maps into the residual stream."""
    if "embed" in name:
        return 0.2 if "pos" in name else 0.02
    into_stream = any(part in name for part in ("o_proj", "down", "proj.weight", "fc2"))
    scale: float = parameter[0].numel() ** -0.5
    return scale * 0.5 if into_stream else scale
