"""Converts RGB bytes of resized images and frames to the patches for a vision tower, on the engine's device.

Bit-equal to `Qwen2VLImageProcessorPil` of transformers; the front has already resized the images.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch

from inference_service.kernels.pieces import Pieces, run
from inference_service.model_spec import ImagePolicy


PIECE_VALUES: Final = {"cpu": 1 << 22, "cuda": 1 << 26}
"""Values of the patches of a piece by type of device: less than a tenth of a second on two cores."""


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
        """What `pieces` makes, at once and in float32."""
        return run(self.pieces(pixels, torch.float32))

    def pieces(self, pixels: torch.Tensor, dtype: torch.dtype) -> Pieces[torch.Tensor]:
        """Patches of one image or video, some rows of tokens at a time.

        Args:
            pixels: [frames, H, W, 3] uint8 RGB, on any device; H and W are multiples of `policy.pixel_step`. An image
                is one frame; the last frame is repeated to fill the last patches.
            dtype: Of the patches; values are rounded to it at the end.

        Returns:
            [times * H / patch * W / patch, 3 * temporal * patch * patch] in `dtype`. Patches are
            ordered by time, then by token (row by row), then within the token; values by channel, frame, row, column.
        """
        patch, merge = self._policy.patch_size, self._policy.merge_size
        depth = self._policy.temporal_patch_size
        frames, height, width, channels = pixels.shape
        times = -(-frames // depth)
        side = merge * patch  # of a token
        token_values = channels * depth * side**2
        row_values = width // side * token_values
        device = self._table.device
        pixels = pixels.to(device)
        patches = torch.empty(
            times * height // side * width // side * merge**2,
            token_values // merge**2,
            dtype=dtype,
            device=device,
        )
        rows_of_tokens = patches.view(times, height // side, -1)
        limit = max(1, PIECE_VALUES[device.type] // row_values)
        for time in range(times):
            some = pixels[time * depth : (time + 1) * depth]
            for row in range(0, height // side, limit):
                piece = self._cut(some[:, row * side : (row + limit) * side])
                rows_of_tokens[time, row : row + limit] = piece
                yield
        return patches

    def _cut(self, pixels: torch.Tensor) -> torch.Tensor:
        """[rows of tokens, values] float32 of some rows [frames, h, W, 3] of the frames of one patch, or of fewer."""
        patch, merge = self._policy.patch_size, self._policy.merge_size
        frames, height, width, channels = pixels.shape
        index = pixels.permute(3, 0, 1, 2).flatten(1).long()
        values = self._table.gather(1, index).view(channels, frames, height, width)
        missing = self._policy.temporal_patch_size - frames
        values = torch.cat([values, *[values[:, -1:]] * missing], dim=1)
        values = values.view(
            channels, frames + missing, -1, merge, patch, width // (merge * patch), merge, patch
        )
        return values.permute(2, 5, 3, 6, 0, 1, 4, 7).flatten(1)
