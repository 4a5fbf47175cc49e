"""Sizes that no memory can hold are refused before anything is allocated; the message has the maximum."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

from inference_service.families.registry import load_spec
from inference_service.families.size_limits import SizeError, Sizes, check_sizes
from inference_service.model_spec import ModelSpec
from inference_service.settings import ServiceSettings


DEMO = Path("inference_service/demo/model")
CONFIGS = Path("tests/golden/configs")
GIB = 2**30
DEFAULTS = ServiceSettings()
SIZES = Sizes(**{field.name: getattr(DEFAULTS, field.name) for field in fields(Sizes)})
SET = replace(SIZES, num_kv_pages=100)
NAMES = [
    field.name
    for field in fields(Sizes)
    if field.name not in ("max_model_len", "kv_page_size", "cpu_kv_cache_mib")
]


def check(spec: ModelSpec, sizes: Sizes, gib: float, *, on_gpu: bool = True) -> None:
    check_sizes(spec, "bfloat16", sizes, device="gpu", device_bytes=int(gib * GIB), on_gpu=on_gpu)


@pytest.mark.parametrize(
    "directory", [DEMO, *sorted(path.parent for path in CONFIGS.glob("*/config.json"))]
)
def test_the_defaults_are_possible_wherever_the_weights_fit(directory: Path) -> None:
    spec = load_spec(directory)
    for gib in (1, 8, 16, 24, 80, 160):
        for on_gpu in (True, False):
            check(spec, SIZES, gib, on_gpu=on_gpu)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("directory", "gib"), [(DEMO, 2), (CONFIGS / "Qwen3-VL-8B-Instruct", 24)])
def test_the_maximum_is_told_and_is_one(directory: Path, gib: float, name: str) -> None:
    spec = load_spec(directory)
    with pytest.raises(
        SizeError, match=rf"^--{name.replace('_', '-')}=2147483647: is more"
    ) as told:
        check(spec, replace(SET, **{name: 2**31 - 1}), gib)
    assert told.value.setting == name
    maximum = int(str(told.value).rpartition(" ")[2])
    check(spec, replace(SET, **{name: maximum}), gib)
    with pytest.raises(SizeError, match=f"at most {maximum}$"):
        check(spec, replace(SET, **{name: maximum + 1}), gib)


def test_a_page_is_not_larger_than_the_context() -> None:
    spec = load_spec(DEMO)
    check(spec, replace(SIZES, kv_page_size=4096), 1)
    with pytest.raises(SizeError, match=r"--kv-page-size=4097: .*context window, 4096"):
        check(spec, replace(SIZES, kv_page_size=4097), 1)


def test_the_cache_of_a_cpu_is_as_large_as_it_can_be_used() -> None:
    spec = load_spec(DEMO)
    check(spec, replace(SIZES, cpu_kv_cache_mib=2**31 - 1), 16, on_gpu=False)
    many = replace(SIZES, cpu_kv_cache_mib=2**31 - 1, max_num_seqs=10_000)
    with pytest.raises(SizeError, match=r"--cpu-kv-cache-mib=2147483647: .*GiB beside the weights"):
        check(spec, many, 16, on_gpu=False)
    check(spec, many, 16, on_gpu=True)
