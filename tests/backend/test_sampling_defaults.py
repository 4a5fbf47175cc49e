"""What the operator's flags say about sampling."""

from __future__ import annotations

from inference_service.backend.defaults import SamplingDefaults
from inference_service.settings import ServiceSettings


def test_no_flag_says_nothing() -> None:
    assert SamplingDefaults.from_settings(ServiceSettings()) == SamplingDefaults()


def test_the_tutorials_defaults() -> None:
    said = SamplingDefaults.from_settings(ServiceSettings(tutorial_defaults=True))
    assert said == SamplingDefaults(temperature=0.7, max_tokens=1024)


def test_zero_is_something_said() -> None:
    greedy = SamplingDefaults(temperature=0.0).over(SamplingDefaults(temperature=0.7, top_k=20))
    assert greedy == SamplingDefaults(temperature=0.0, top_k=20)
