"""A vision-language model: preprocessing, vision tower and decoder of one checkpoint.

Call everything within `torch.inference_mode`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from inference_service.families.placement import Placement
from inference_service.families.registry import family_of
from inference_service.kernels.attention import new_kv_cache
from inference_service.kernels.layers import Linear
from inference_service.kernels.ops import REFERENCE, Ops
from inference_service.kernels.pieces import Pieces, TowerInPieces, run
from inference_service.model_spec import ModelSpec
from inference_service.models.batch import ForwardBatch, KVCache
from inference_service.models.decoder import Decoder
from inference_service.models.preprocess import Patchifier


class VisionLanguageModel(nn.Module):
    """The model of one checkpoint.

    Attributes:
        spec: The specification of the checkpoint.
        ops: The operations, as chosen for its device.
        placement: The devices of its layers; None = all on one.
    """

    def __init__(self, spec: ModelSpec, ops: Ops = REFERENCE) -> None:
        super().__init__()
        self.spec = spec
        self.ops = ops
        self.placement: Placement | None = None
        self.visual: nn.Module = family_of(spec).new_vision_tower(spec, ops)
        self.decoder = Decoder(spec.decoder, ops)
        self._patchify: Patchifier | None = None

    def allocate(self, device: torch.device, placement: Placement | None) -> None:
        """Allocates the parameters, uninitialised.

        Args:
            device: Their device.
            placement: Devices of the layers instead; None = all on `device`.
        """
        self.placement = placement
        if placement is None:
            for module in self.modules():
                _allocate(module, device)
            return
        layers = self.decoder.layers
        for layer, name in zip(layers, placement.layer_devices, strict=True):
            for module in layer.modules():
                _allocate(module, torch.device(name))
        placed = {id(module) for layer in layers for module in layer.modules()}
        for module in self.modules():
            if id(module) not in placed:
                _allocate(module, device)
        starts = placement.first_layers
        self.decoder.handovers = {layer: torch.device(name) for layer, name in starts}

    @property
    def device(self) -> torch.device:
        """The device of the weights; with several, the one where a step begins and ends."""
        return self.decoder.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of weights, activations and cache."""
        return self.decoder.norm.weight.dtype

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights in their current form; tied weights count once."""
        forms = sum(module.form.nbytes for module in self.modules() if isinstance(module, Linear))
        return forms + sum(parameter.nbytes for parameter in self.parameters())

    def encode_images(
        self, pixels: Sequence[torch.Tensor], grids: Sequence[tuple[int, int, int]]
    ) -> list[torch.Tensor]:
        """What `encoding` does, at once."""
        return run(self.encoding(pixels, grids))

    def encoding(
        self, pixels: Iterable[torch.Tensor], grids: Sequence[tuple[int, int, int]]
    ) -> Pieces[list[torch.Tensor]]:
        """Encodes images and videos, at least one, into image tokens, in pieces if the family's tower can be cut.

        Args:
            pixels: For each [frames, H, W, 3] uint8 RGB, resized already, on any device; each is taken when those
                before it are in patches.
            grids: For each (frames / temporal_patch_size rounded up, H / patch_size, W / patch_size).

        Returns:
            For each image [num_tokens, hidden * (1 + D)] in the model's dtype: the embedding first, then D
            deepstack features. They may be views of one tensor: copy those that are kept after the step.
        """
        if self._patchify is None:
            self._patchify = Patchifier(self.spec.image_policy, self.device)
        policy = self.spec.image_policy
        side, depth = policy.patch_size, policy.temporal_patch_size
        patches = []
        for image, grid in zip(pixels, grids, strict=True):
            frames = image.shape[0]
            if tuple(image.shape) != (frames, grid[1] * side, grid[2] * side, 3) or (
                -(-frames // depth) != grid[0]
            ):
                raise ValueError(f"pixels {tuple(image.shape)} do not match the grid {grid}")
            patches.append((yield from self._patchify.pieces(image, self.dtype)))
        if isinstance(self.visual, TowerInPieces):
            return (yield from self.visual.pieces(patches, grids))
        tokens: list[torch.Tensor] = self.visual(patches, grids)
        return tokens

    def forward(self, batch: ForwardBatch, kv_cache: KVCache) -> torch.Tensor:
        """[T, hidden] after the final norm; see `Decoder.forward`."""
        hidden: torch.Tensor = self.decoder(batch, kv_cache)
        return hidden

    def logits(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """[R, hidden] -> [R, vocab] float32, in `out` if that is given."""
        return self.decoder.logits(hidden, out)

    def new_kv_cache(self, num_pages: int, page_size: int) -> KVCache:
        """A zeroed cache for each layer [2, num_pages, page_size, Hkv, D] in the model's dtype, on its device."""
        decoder = self.spec.decoder

        def cache(num_layers: int, device: torch.device) -> torch.Tensor:
            return new_kv_cache(
                num_layers,
                num_pages,
                page_size,
                decoder.num_kv_heads,
                decoder.head_dim,
                dtype=self.dtype,
                device=device,
            )

        if self.placement is None:
            return cache(decoder.num_layers, self.device)
        return [cache(1, torch.device(device))[0] for device in self.placement.layer_devices]


def _allocate(module: nn.Module, device: torch.device) -> None:
    """Allocates the tensors of a module itself.

    `Module.to_empty` does the same, but importing what torch uses for tensors without a device takes half a second.
    """
    for name, parameter in [*module.named_parameters(recurse=False)]:
        empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
        module.register_parameter(name, nn.Parameter(empty, requires_grad=parameter.requires_grad))
    for name, buffer in [*module.named_buffers(recurse=False)]:
        setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=device))
