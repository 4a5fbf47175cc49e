"""Which layers of the decoder live on which device, where one device is too small for a model.

Owns pure arithmetic. Torch-free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Contiguous ranges of layers on devices; all that is no layer lives on the first.

    Attributes:
        devices: As torch spells them.
        layers: Layers on each device, in order; a device may have none.
    """

    devices: tuple[str, ...]
    layers: tuple[int, ...]

    @property
    def layer_devices(self) -> tuple[str, ...]:
        """The device of every layer."""
        pairs = zip(self.devices, self.layers, strict=True)
        return tuple(device for device, count in pairs for _ in range(count))

    @property
    def first_layers(self) -> tuple[tuple[int, str], ...]:
        """(layer, device) wherever a range begins."""
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
    """The placement that leaves room for the most pages of the KV cache.

    Pages are as many on every device, for each layer keeps its own part of each page: the device with the least room
    for each of its layers decides. Among equals, the first devices have the most layers.

    Args:
        devices: As torch spells them.
        room: Bytes that may be used on each.
        num_layers: Layers of the decoder.
        layer_bytes: Weights of one layer.
        other_bytes: What else lives on the first device.
        page_bytes: What one layer keeps of one page.

    Raises:
        ValueError: The devices have no room for the weights and one page; the text is for the operator.
    """
    free = [room[0] - other_bytes, *room[1:]]

    def counts(pages: int) -> list[int]:
        return [max(0, bytes_ // (layer_bytes + pages * page_bytes)) for bytes_ in free]

    if free[0] < 0 or sum(counts(1)) < num_layers:
        needed = other_bytes + num_layers * (layer_bytes + page_bytes)
        raise ValueError(
            f"the model needs {needed:,} bytes on {', '.join(devices)}, the first of which takes"
            f" {other_bytes:,}; there is room for {', '.join(f'{bytes_:,}' for bytes_ in room)}"
            + ("; name the one with the most room first" if room[0] < max(room) else "")
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
    for most in counts(fits):
        layers.append(min(most, left))
        left -= layers[-1]
    return Placement(devices=tuple(devices), layers=tuple(layers))
