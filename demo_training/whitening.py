"""Initialises the patch embedding so that its outputs are whitened.

As in the first layer of K. Jordan's airbench (arXiv 2404.00498). Almost all variance of a patch is in its mean colour:
with random initial values a network needs thousands of steps to find edges.
"""

from __future__ import annotations

import torch

from demo_training.batches import Look
from demo_training.network import Network
from demo_training.vision_tower import FRAMES


DAMPING = (
    1e-3  # of variances, for pixel values in -1..1: noise is not amplified to the level of edges
)


@torch.no_grad()
def whiten(network: Network, look: Look) -> None:
    """Sets the patch embedding so that its outputs over these images have unit covariance.

    Args:
        network: Its patch embedding is overwritten.
        look: A few hundred images.
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
