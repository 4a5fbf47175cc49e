"""Distributes the layers of the decoder over devices if one is too small for a model. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Contiguous ranges of layers on devices; everything but the layers is on the first one.

    Attributes:
        devices: Names of the devices in torch.
        layers: Number of layers on each device, in order; may be 0.
        pages: Pages of the KV cache for which there is room.
    """

    devices: tuple[str, ...]
    layers: tuple[int, ...]
    pages: int = 0

    @property
    def layer_devices(self) -> tuple[str, ...]:
        """The device of every layer."""
        pairs = zip(self.devices, self.layers, strict=True)
        return tuple(device for device, count in pairs for _ in range(count))

    @property
    def first_layers(self) -> tuple[tuple[int, str], ...]:
        """(first layer, device) of every range."""
        starts = []
        begin = 0
        for device, count in zip(self.devices, self.layers, strict=True):
            if count:
                starts.append((begin, device))
            begin += count
        return tuple(starts)

    def __str__(self) -> str:
        ends = [*(begin for begin, _ in self.first_layers[1:]), sum(self.layers)]
        ranges = zip(self.first_layers, ends, strict=True)
        return ", ".join(f"layers {begin}-{end - 1} on {device}" for (begin, device), end in ranges)


def place_layers(
    devices: Sequence[str],
    room: Sequence[int],
    *,
    num_layers: int,
    layer_bytes: int,
    other_bytes: int,
    page_bytes: int,
) -> Placement:
    """Finds the placement with the maximum number of pages of the KV cache.

    Every layer keeps its part of each page, so all devices have the same number of pages: the device with the least
    memory per layer limits it. Among equal placements, the first devices have the most layers.

    Args:
        devices: Names of the devices in torch.
        room: Bytes available on each.
        num_layers: Layers of the decoder.
        layer_bytes: Weights of one layer.
        other_bytes: Bytes of everything else, on the first device.
        page_bytes: Bytes of one page in one layer.

    Raises:
        ValueError: The devices are too small for the weights and one page; the message is for the operator.
    """
    free = [room[0] - other_bytes, *room[1:]]

    def counts(pages: int) -> list[int]:
        return [max(0, bytes_ // (layer_bytes + pages * page_bytes)) for bytes_ in free]

    if free[0] < 0 or sum(counts(1)) < num_layers:
        needed = other_bytes + num_layers * (layer_bytes + page_bytes)
        raise ValueError(
            f"the model needs {needed:,} bytes on {', '.join(devices)}, of which {other_bytes:,} on the first device;"
            f" available: {', '.join(f'{bytes_:,}' for bytes_ in room)}"
            + ("; list the device with the most memory first" if room[0] < max(room) else "")
        )
    fits, too_many = 1, 1 + max(room) // page_bytes
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if sum(counts(middle)) >= num_layers:
            fits = middle
        else:
            too_many = middle
    layers = []
    left = num_layers
    for maximum in counts(fits):
        layers.append(min(maximum, left))
        left -= layers[-1]
    return Placement(devices=tuple(devices), layers=tuple(layers), pages=fits)
