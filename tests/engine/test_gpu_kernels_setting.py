"""The operator's switch reaches whoever loads the model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from inference_service.demo import MODEL_DIR
from inference_service.engine.core import EngineCore
from inference_service.serving import engine_config
from inference_service.settings import ServiceSettings


class Loaded(Exception):  # noqa: N818 - not an error
    """Nothing more needs to run."""


@pytest.mark.parametrize(
    ("environ", "expected"), [({}, "auto"), ({"QWENVL_GPU_KERNELS": "off"}, "off")]
)
def test_the_switch_reaches_the_loader(environ: dict[str, str], expected: str) -> None:
    settings = ServiceSettings.load({}, environ | {"QWENVL_DEVICE": "cpu"})
    model: Any = SimpleNamespace(directory=MODEL_DIR)

    def record(*_: Any, gpu_kernels: str, **__: Any) -> Any:
        raise Loaded(gpu_kernels)

    with pytest.raises(Loaded, match=expected):
        EngineCore(engine_config(settings, model), load=record)
