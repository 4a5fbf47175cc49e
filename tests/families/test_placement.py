"""Where layers go, with made-up memory sizes."""

from __future__ import annotations

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from inference_service.families.placement import Placement, place_layers


GIB = 2**30


def place(room: list[int], **changes: int) -> Placement:
    """A model of 40 layers of 1 GiB with 4 GiB beside them."""
    sizes = {
        "num_layers": 40,
        "layer_bytes": GIB,
        "other_bytes": 4 * GIB,
        "page_bytes": 2**20,
    } | changes
    return place_layers([f"cuda:{i}" for i in range(len(room))], room, **sizes)


def test_the_first_device_also_has_what_is_no_layer() -> None:
    assert place([26 * GIB, 26 * GIB]).layers == (18, 22)
    assert place([26 * GIB, 26 * GIB], other_bytes=0).layers == (20, 20)


def test_a_large_device_takes_more() -> None:
    assert place([14 * GIB, 80 * GIB]).layers == (4, 36)


def test_a_first_device_that_holds_no_layer() -> None:
    assert place([4 * GIB, 42 * GIB]).layers == (0, 40)


def test_ranges_and_their_words() -> None:
    placement = Placement(devices=("cuda:0", "cuda:1", "cuda:2"), layers=(2, 0, 3))
    assert placement.layer_devices == ("cuda:0", "cuda:0", "cuda:2", "cuda:2", "cuda:2")
    assert placement.first_layers == ((0, "cuda:0"), (2, "cuda:2"))
    assert str(placement) == "layers 0-1 on cuda:0, layers 2-4 on cuda:2"


@pytest.mark.parametrize(
    "room", [[20 * GIB, 20 * GIB], [3 * GIB, 80 * GIB], [44 * GIB, 0], [0, 0, 0]]
)
def test_too_small_devices_are_refused_with_the_numbers(room: list[int]) -> None:
    with pytest.raises(ValueError, match=r"needs 47,\d+,\d+,\d+ bytes on cuda:0, cuda:1"):
        place(room)


def test_the_order_of_devices_matters() -> None:
    with pytest.raises(ValueError, match="list the device with the most memory first"):
        place([3 * GIB, 48 * GIB])
    assert place([48 * GIB, 3 * GIB]).layers == (38, 2)


def test_a_device_too_small_for_a_layer_gets_none() -> None:
    assert place([30 * GIB, GIB, 30 * GIB]).layers == (19, 0, 21)
    # A large tower: what is no layer fills the first device but for one layer.
    assert place([21 * GIB, 60 * GIB], other_bytes=19 * GIB).layers == (1, 39)


@settings(deadline=None)
@given(
    room=st.lists(st.integers(0, 60), min_size=1, max_size=3),
    num_layers=st.integers(1, 6),
    layer=st.integers(1, 9),
    others=st.integers(0, 9),
    page=st.integers(1, 4),
)
def test_no_placement_has_more_pages(
    room: list[int], num_layers: int, layer: int, others: int, page: int
) -> None:
    def pages(counts: tuple[int, ...]) -> int:
        free = [room[0] - others, *room[1:]]
        return min(
            (bytes_ - count * layer) // (count * page) if count else (10**6 if bytes_ >= 0 else -1)
            for bytes_, count in zip(free, counts, strict=True)
        )

    sizes = {"num_layers": num_layers, "layer_bytes": layer, "other_bytes": others}
    every = [c for c in product(range(num_layers + 1), repeat=len(room)) if sum(c) == num_layers]
    best = max(map(pages, every))
    if best < 1:
        with pytest.raises(ValueError, match="needs"):
            place(room, page_bytes=page, **sizes)
    else:
        assert pages(place(room, page_bytes=page, **sizes).layers) == best
