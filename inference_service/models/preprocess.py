"""Converts RGB bytes of resized images and frames to the patches for a vision tower, on the engine's device.

Bit-equal to `Qwen2VLImageProcessorPil` of transformers; the front has already resized the images.
"""

from __future__ import annotations

import numpy as np
import torch

from inference_service.model_spec import ImagePolicy


class Patchifier:
    """Normalises images and cuts them into patches.

    Normalisation uses a table of 256 values per channel, computed once with the rounding of the reference (scaled in
    float64, rounded to float32, then normalised in float32), so that it is exact on every device.
    """

    def __init__(self, policy: ImagePolicy, device: torch.device) -> None:
        self._policy = policy
        scaled = (np.arange(256).astype(np.float64) * (1 / 255)).astype(np.float32)
        mean, std = (np.array(values, dtype=np.float32) for values in (policy.mean, policy.std))
        self._table = torch.from_numpy((scaled - mean[:, None]) / std[:, None]).to(device)

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Patches of one image or video.

        Args:
            pixels: [frames, H, W, 3] uint8 RGB, on any device; H and W are multiples of `policy.pixel_step`. An image
                is one frame; the last frame is repeated to fill the last patches.

        Returns:
            [times * H / patch * W / patch, 3 * temporal * patch * patch] float32. Patches are
            ordered by time, then by token (row by row), then within the token; values by channel, frame, row, column.
        """
        patch, merge = self._policy.patch_size, self._policy.merge_size
        depth = self._policy.temporal_patch_size
        frames, height, width, channels = pixels.shape
        times, rows, columns = -(-frames // depth), height // patch, width // patch
        index = pixels.to(self._table.device).permute(3, 0, 1, 2).flatten(1).long()
        values = self._table.gather(1, index).view(channels, frames, height, width)
        missing = times * depth - frames
        values = torch.cat([values, *[values[:, -1:]] * missing], dim=1)
        values = values.view(
            channels, times, depth, rows // merge, merge, patch, columns // merge, merge, patch
        )
        return values.permute(1, 3, 6, 4, 7, 0, 2, 5, 8).reshape(times * rows * columns, -1)
