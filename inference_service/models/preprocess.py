"""From RGB bytes of a resized picture to the patches that a vision tower reads, on the engine's device.

Owns normalisation and the order of patches; bit-equal to `Qwen2VLImageProcessorPil` of transformers. Resizing is
the front's. Must not know models.
"""

from __future__ import annotations

import numpy as np
import torch

from inference_service.models.spec import ImagePolicy


class Patchifier:
    """Normalises pictures and cuts them into patches.

    A byte has 256 values, so that normalisation is a table per channel: computed once, with the rounding of the
    reference (scaled in float64, rounded to float32, then normalised in float32), it is exact on every device.
    """

    def __init__(self, policy: ImagePolicy, device: torch.device) -> None:
        self._policy = policy
        scaled = (np.arange(256).astype(np.float64) * (1 / 255)).astype(np.float32)
        mean, std = (np.array(values, dtype=np.float32) for values in (policy.mean, policy.std))
        self._table = torch.from_numpy((scaled - mean[:, None]) / std[:, None]).to(device)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Patches of one picture.

        Args:
            pixels: [H, W, 3] uint8 RGB, on any device; H and W are multiples of `policy.pixel_step`.

        Returns:
            [H / patch * W / patch, 3 * temporal * patch * patch] float32. The patches that become one token follow
            each other, tokens go row by row; within a patch: channel, frame, row, column.
        """
        patch, merge = self._policy.patch_size, self._policy.merge_size
        height, width, channels = pixels.shape
        rows, columns = height // patch, width // patch
        index = pixels.to(self._table.device).permute(2, 0, 1).flatten(1).long()
        values = self._table.gather(1, index)
        values = values.view(channels, rows // merge, merge, patch, columns // merge, merge, patch)
        values = values.permute(1, 4, 2, 5, 0, 3, 6).unsqueeze(5)
        frames = (-1, -1, -1, -1, -1, self._policy.temporal_patch_size, -1, -1)
        return values.expand(frames).reshape(rows * columns, -1)
