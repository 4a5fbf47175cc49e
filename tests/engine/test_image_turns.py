"""No image waits for ever, whatever images others send meanwhile: simulated loads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import cast

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from inference_service.engine.image_planner import _PATIENCE_S
from inference_service.engine.pace import Pace
from tests.support.engine_load import STEP_S, Load, request


CAPACITY = 1024
BUDGET = 32
PATIENCE = round(_PATIENCE_S / STEP_S)
# What is pinned, or comes before, is encoded and computed; then the image itself and its prompt.
BOUND = PATIENCE + 4 * CAPACITY // BUDGET + 10


@dataclass(frozen=True)
class Stream:
    """A caller who always has some requests with images in flight.

    Attributes:
        caller: Its name.
        count: How many requests.
        images: The tokens of the images of each.
        key: What all of them show; "" = each something new.
    """

    caller: str
    count: int
    images: tuple[int, ...]
    key: str = ""


LOADS = {
    "two of one caller": (956, [Stream("a", 2, (81,))]),
    "one of each": (956, [Stream(name, 1, (81,)) for name in "abc"]),
    "three of one caller": (775, [Stream("a", 3, (250,))]),
    "larger ones": (650, [Stream("a", 3, (375,))]),
    "as large": (562, [Stream("a", 3, (500,))]),
    "the same image again and again": (956, [Stream(name, 2, (81,), "same") for name in "ab"]),
    "several in each": (956, [Stream("a", 2, (20, 20, 20)), Stream("b", 2, (40, 5))]),
    "tiny ones in every step": (956, [Stream(f"{index}", 1, (2,)) for index in range(2)]),
    "of its own caller": (956, [Stream("late", 3, (81,))]),
    "of its own and others": (956, [Stream("late", 2, (81,)), Stream("b", 2, (81,))]),
}


def keep(load: Load, streams: list[Stream]) -> None:
    """Lets streams run for some steps."""
    for one in streams:
        load.keep(one.count, partial(request, one.caller, 5, images=one.images, key=one.key))
    for _ in range(10):
        load.step()


@pytest.mark.parametrize(("size", "streams"), LOADS.values(), ids=LOADS)
def test_a_large_image_does_not_wait_for_ever(size: int, streams: list[Stream]) -> None:
    load = Load(budget=BUDGET, encoder_tokens=CAPACITY)
    keep(load, streams)
    late = load.add(request("late", 5, images=(size,)))
    assert load.steps_until_first_token(late, 3 * BOUND) <= BOUND
    before = load.num_ended
    for _ in range(BOUND):
        load.step()
    assert load.num_ended > before, "the others go on"


streams = st.builds(
    Stream,
    st.sampled_from(["a", "b", "c", "late"]),
    st.integers(1, 3),
    st.lists(st.integers(1, CAPACITY), min_size=1, max_size=3).map(tuple),
    st.sampled_from(["", "", "x", "y"]),
)
images_of_one = st.lists(st.integers(1, CAPACITY) | st.just(CAPACITY), min_size=1, max_size=2)


@settings(max_examples=25, deadline=None)
@given(st.lists(streams, min_size=1, max_size=4), images_of_one)
def test_nobody_waits_for_ever(others: list[Stream], images: list[int]) -> None:
    """Each of those that came before may have its images first, and so its part of the bound."""
    load = Load(budget=128, encoder_tokens=CAPACITY, max_model_len=4096)
    keep(load, others)
    late = load.add(request("late", 5, images=tuple(images)))
    before = 1 + sum(one.count for one in others)
    bound = before * (PATIENCE + 8 * CAPACITY // 128)
    assert load.steps_until_first_token(late, 3 * bound) <= bound
    assert load.cache.num_tokens <= CAPACITY


def test_small_images_of_others_go_on_while_a_large_one_fits_beside_them() -> None:
    load = Load(budget=BUDGET, encoder_tokens=CAPACITY)
    load.add(request("large", 5, images=(600,)))
    load.step()
    load.keep(1, lambda: request("small", 5, images=(20,)))
    for _ in range(20):
        load.step()
    assert load.num_ended > 4


def test_text_goes_on_while_images_give_way() -> None:
    load = Load(budget=BUDGET, encoder_tokens=CAPACITY)
    load.keep(3, lambda: request("a", 5, images=(300,)))
    for _ in range(5):
        load.step()
    load.add(request("late", 5, images=(1000,)))
    for _ in range(BOUND):
        text = load.add(request("text", 8))
        assert load.steps_until_first_token(text, 10) <= 3


def test_who_cannot_go_on_keeps_no_images_ahead() -> None:
    """Else two that need each other's room would wait for ever: here after the encoder has run out of memory."""
    load = Load(budget=BUDGET, encoder_tokens=CAPACITY)
    load.encodes = False
    two = load.add(request("a", 0, images=(20, 10)))
    load.step()
    late = load.add(request("late", 0, images=(CAPACITY,)))
    for _ in range(PATIENCE + 2):
        load.step()
    lost, kept = two.request.images
    load.cache.fill(kept.key, "embeddings")
    load.give_up_images()
    assert lost.key not in load.cache
    assert load.cache.is_pinned(kept.key)
    load.encodes = True
    assert load.steps_until_first_token(late, 3 * BOUND) <= BOUND
    assert load.steps_until_first_token(two, 3 * BOUND) <= BOUND


def busy() -> Load:
    """One caller has had much, another one is there and has had little."""
    load = Load(budget=BUDGET, encoder_tokens=CAPACITY, max_model_len=4096, pages=8192)
    load.add(request("others", 5, answer=3000))
    heavy = [load.add(request("heavy", 4000)) for _ in range(2)]
    while not all(one.finish_reason for one in heavy):
        load.step()
    return load


def test_nobody_gives_way_to_an_image_of_a_prompt_that_is_not_looked_at() -> None:
    """Its caller has had much, and the text of others fills the steps."""
    load = busy()
    load.add(request("small", 5, images=(100,)))
    load.step()
    refused = load.add(request("heavy", 0, images=(1000,)))
    load.step()
    load.keep(4, lambda: request("others", 1500))
    for _ in range(PATIENCE + 5):
        load.step()
    newcomer = load.add(request("newcomer", 5, images=(50,)))
    assert load.steps_until_first_token(newcomer, BOUND) <= 10
    assert refused.num_computed_tokens == 0
    assert load.steps_until_first_token(refused, 2000) < 1000, "when others have had as much"


def test_the_images_of_a_prompt_that_is_not_looked_at_keep_nobody_waiting() -> None:
    """Neither the large one that they keep out, nor the small ones that give way to that one."""
    load = busy()
    idle = load.add(request("heavy", 0, images=(500,)))
    load.step()
    load.keep(4, lambda: request("others", 1500))
    large = load.add(request("large", 0, images=(600,)))
    for _ in range(PATIENCE + 5):
        load.step()
    small = load.add(request("small", 5, images=(50,)))
    assert load.steps_until_first_token(small, BOUND) <= 10
    assert load.steps_until_first_token(large, BOUND) <= 2 * 600 // BUDGET + 10
    assert idle.num_computed_tokens == 0
    assert load.steps_until_first_token(idle, 2000) < 1000, "when others have had as much"


@pytest.mark.parametrize("count", [1, 3])
def test_others_give_way_to_an_image_between_its_turns_too(count: int) -> None:
    """Prompts of another caller fill a few steps, and short ones of its own every other one."""
    pace = SimpleNamespace(tokens_beside=lambda *_, **__: BUDGET)
    load = Load(budget=BUDGET, encoder_tokens=CAPACITY, pace=cast(Pace, pace))
    load.keep(count, lambda: request("a", 5, images=(81,)))
    load.keep(2, lambda: request("late", 2 * BUDGET))
    for _ in range(10):
        load.step()
    late = load.add(request("late", 0, images=(956,)))
    assert load.steps_until_first_token(late, 3 * BOUND) <= BOUND
