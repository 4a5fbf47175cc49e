"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

import openai
import pytest
import requests

from tests.rest_adapter.conftest import Adapter
from tests.rest_adapter.fake_service import NAMES


def test_models(client: openai.OpenAI) -> None:
    models = client.models.list().data
    assert [model.id for model in models] == list(NAMES)
    assert models[0].model_extra is not None
    assert models[0].model_extra["max_model_len"] == 4096
    assert models[0].model_extra["input_modalities"] == ["text", "image"]
    assert models[0].model_extra["image_limits"] == {
        "max_images": 4,
        "pixel_step": 32,
        "min_pixels": 4096,
        "max_pixels": 1_000_000,
        "max_decoded_pixels": 50_000_000,
        "exif_transposed": True,
    }


@pytest.mark.parametrize("name", NAMES)
def test_model_by_name_even_with_a_slash(adapter: Adapter, name: str) -> None:
    answer = requests.get(f"{adapter.url}/v1/models/{name}", timeout=10)
    assert answer.json()["id"] == name
    assert answer.json()["object"] == "model"


def test_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-17")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
