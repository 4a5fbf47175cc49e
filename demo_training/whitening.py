"""Initial values of the patch embedding: patches made uncorrelated and of equal variance.

As the first layer of K. Jordan's airbench (arXiv 2404.00498). Almost all of a patch's variance is its mean colour; from
random values a network spends thousands of steps finding edges.
"""

from __future__ import annotations

import torch

from demo_training.batches import Look
from demo_training.network import FRAMES, Network


DAMPING = 1e-3  # of variances, in pixel values from -1 to 1: noise is not made as strong as edges


@torch.no_grad()
def whiten(network: Network, look: Look) -> None:
    """Sets the patch embedding so that its outputs over these images have unit covariance.

    Args:
        network: Its patch embedding is overwritten.
        look: Some hundred images.
    """
    embed = network.model.visual.patch_embed.proj
    rows = look.patches.flatten(0, 1).to(embed.weight) / 127.5 - 1
    rows = rows - (mean := rows.mean(0))
    variances, directions = torch.linalg.eigh(rows.T @ rows / len(rows))
    strongest = slice(-len(embed.weight), None)
    scaled = directions[:, strongest] / (variances[strongest] + DAMPING).sqrt()
    kernels = scaled.T.reshape(len(scaled.T), 3, 1, *embed.weight.shape[-2:])
    embed.weight.copy_((kernels / FRAMES).expand_as(embed.weight))
    assert embed.bias is not None
    embed.bias.copy_(-(mean @ scaled))
