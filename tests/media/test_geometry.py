"""Sizes against transformers' own, over all shapes of images."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import example, given
from hypothesis import strategies as st
import pytest
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as reference

from inference_service.domain import Detail
from inference_service.errors import InvalidArgumentError, InvalidImageError
from inference_service.media.geometry import (
    image_grid,
    largest_size,
    pixel_budget,
    processed_size,
    smart_resize,
)


side = st.integers(1, 20000)
budget = st.tuples(st.integers(1, 2**24), st.integers(1, 2**24)).map(sorted)


@given(side, side, st.sampled_from([16, 28, 32]), budget)
@example(1, 1, 32, [65536, 16777216])
@example(1, 200, 32, [65536, 16777216])
@example(200, 1, 28, [3136, 12845056])
@example(1, 201, 28, [3136, 12845056])
@example(3, 3, 28, [1, 1])
@example(16, 48, 32, [4096, 65536])  # halves are rounded to even
def test_resized_as_the_reference_does(height, width, step, limits):
    least, greatest = limits
    arguments = {"min_pixels": least, "max_pixels": greatest}
    try:
        wanted = reference(height, width, factor=step, **arguments)
    except ValueError:
        with pytest.raises(InvalidImageError):
            smart_resize(height, width, step=step, **arguments)
        return
    got = smart_resize(height, width, step=step, **arguments)
    assert got == wanted
    assert min(got) >= step
    assert not got[0] % step
    assert not got[1] % step


@given(side, side)
def test_every_image_has_tokens(policy, height, width):
    if max(height, width) > 200 * min(height, width):
        return
    limits = {"min_pixels": policy.min_pixels, "max_pixels": policy.max_pixels}
    size = smart_resize(height, width, step=policy.pixel_step, **limits)
    grid = image_grid(*size, policy)
    tokens = policy.tokens_of(grid)
    assert tokens * policy.pixel_step**2 == size[0] * size[1]
    assert 1 <= tokens <= policy.max_pixels // policy.pixel_step**2


def test_a_family_may_see_all_images_as_squares(policy):
    squares = replace(policy, square_side=448, num_tokens=256)
    limits = {"min_pixels": policy.min_pixels, "max_pixels": policy.max_pixels}
    assert processed_size(10, 9000, squares, **limits) == (448, 448)
    assert squares.tokens_of(image_grid(448, 448, squares)) == 256


@given(side, side, st.integers(1, 2**24))
@example(3000, 4000, 10**6)
@example(1, 20000, 7)
def test_the_largest_size_fits_and_nearly_keeps_the_aspect_ratio(height, width, maximum):
    rows, columns = largest_size(height, width, maximum)
    assert 1 <= rows <= height
    assert 1 <= columns <= width
    assert rows * columns <= maximum
    if height * width <= maximum:
        assert (rows, columns) == (height, width)
    elif min(rows, columns) > 1:
        assert (rows + 1) * (columns + 1) > maximum
        assert abs(rows * width - columns * height) <= max(height, width)


def test_low_detail_is_a_quarter(policy):
    assert pixel_budget(policy, Detail.LOW, None, None) == (65536, 16777216 // 4)
    assert pixel_budget(policy, Detail.AUTO, None, None) == (65536, 16777216)
    assert pixel_budget(policy, Detail.HIGH, None, None) == (65536, 16777216)


@pytest.mark.parametrize(
    ("detail", "said", "wanted"),
    [
        (Detail.LOW, (None, 8_000_000), (65536, 8_000_000)),  # what is said beats detail
        (Detail.LOW, (8_000_000, None), (8_000_000, 8_000_000)),
        (Detail.AUTO, (None, 2**40), (65536, 16777216)),  # never above the model's
        (Detail.AUTO, (2**40, None), (16777216, 16777216)),
        (Detail.AUTO, (None, 1024), (1024, 1024)),  # the open limit gives way
        (Detail.AUTO, (1, None), (1, 16777216)),
    ],
)
def test_the_pixel_budget_follows_detail_and_limits(policy, detail, said, wanted):
    assert pixel_budget(policy, detail, *said) == wanted


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ((2000, 1000), "image.min_pixels"),
        ((0, None), "image.min_pixels"),
        ((None, -5), "image.max_pixels"),
    ],
)
def test_senseless_budget_names_its_field(policy, said, field):
    with pytest.raises(InvalidArgumentError) as caught:
        pixel_budget(policy, Detail.AUTO, *said, field="image")
    assert caught.value.field == field


@given(st.sampled_from(Detail), *[st.one_of(st.none(), st.integers(1, 2**30)) for _ in range(2)])
def test_no_request_exceeds_the_models_maximum(policy, detail, least, greatest):
    try:
        got = pixel_budget(policy, detail, least, greatest)
    except InvalidArgumentError:
        assert least is not None
        assert greatest is not None
        return
    assert 1 <= got[0] <= got[1] <= policy.max_pixels


@given(side, side, st.one_of(st.none(), st.integers(1, 2**30)))
@example(1, 200, 2**40)
@example(100, 99, 2**40)
def test_growing_stays_within_the_models_maximum(policy, height, width, said):
    if max(height, width) > 200 * min(height, width):
        return
    least, greatest = pixel_budget(policy, Detail.AUTO, said, None)
    limits = {"min_pixels": least, "max_pixels": greatest}
    got = processed_size(height, width, policy, **limits)
    exact = smart_resize(height, width, step=policy.pixel_step, **limits)
    assert got[0] * got[1] <= policy.max_pixels
    assert not got[0] % policy.pixel_step
    assert not got[1] % policy.pixel_step
    if said is None or exact[0] * exact[1] <= policy.max_pixels:
        assert got == exact
    else:
        assert got[0] * got[1] > 0.8 * policy.max_pixels
