"""A family registered from outside is read, reported, described and answered, and no other file knows of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
import io
import json
from math import prod
from pathlib import Path
import subprocess
import sys
from typing import Any

import numpy as np
from PIL import Image
import pytest
from safetensors.numpy import save_file

from inference_service.backend.local import LocalBackend
from inference_service.backend.served_model import ServedModel
from inference_service.cli import main
from inference_service.domain import ChatMessage, ChatRequest, ImagePart, Role, TextPart
from inference_service.engine.core import EngineCore
from inference_service.engine_protocol.messages import EngineConfig, EngineRequest, SamplingParams
from inference_service.families.config_file import SpecError
from inference_service.families.footprint import footprint
from inference_service.families.registry import FAMILIES, load_spec, register
from inference_service.families.tables import module_parts, tensor_shapes
from inference_service.grpc_api.model_service import ModelServicer
from inference_service.media.decode import decode_image
from inference_service.media.images import DecodeLimits, ProcessedImage
from inference_service.model_spec import ImagePolicy
from inference_service.settings import ServiceSettings
from qwenvl.inference.v1 import model_service_pb2 as model_pb
from tests.families.made_up import FAMILY
from tests.grpc_api.echo_engine import EchoEngine
from tests.support.conversations import drain


WIDTH, LAYERS, CONTEXT = 16, 2, 512
VISION_SIZE = WIDTH * 3 * 4**2


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    register(FAMILY)
    yield
    del FAMILIES[FAMILY.name]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A random checkpoint."""
    config = {"model_type": "made_up_model", "width": WIDTH, "layers": LAYERS, "context": CONTEXT}
    (tmp_path / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    weights = {
        name: rng.normal(0, 0.5, shape).astype(np.float32)
        for name, shape in tensor_shapes(load_spec(tmp_path)).items()
    }
    save_file(weights, tmp_path / "model.safetensors")
    return tmp_path


def test_its_configuration_is_read(directory: Path) -> None:
    spec = load_spec(directory)
    assert (spec.family, spec.max_position_embeddings) == ("made_up", CONTEXT)
    shapes = tensor_shapes(spec)
    parts = dict(module_parts(spec))
    assert parts["vision"] == prod(shapes["eye.weight"]) == VISION_SIZE
    assert footprint(spec, "float32").parameter_count == sum(map(prod, shapes.values()))


def test_it_is_reported(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(directory), "--device", "cpu"]) == 0
    report = capsys.readouterr().out
    assert report.startswith("made_up")
    assert "without KV cache; this model is made up\n" in report


async def test_it_is_described(directory: Path) -> None:
    model = ServedModel.load(directory, ("tiny",))
    servicer = ModelServicer(LocalBackend(ServiceSettings(), model, EchoEngine(model.tokenizer)))
    context: Any = None  # the servicer does not read it
    described = (await servicer.GetModel(model_pb.GetModelRequest(name="tiny"), context)).model
    assert (described.family, described.max_context_tokens) == ("made_up", CONTEXT)
    assert described.image_limits.pixel_step == 4
    assert described.parts[0].parameter_count == VISION_SIZE


def image(policy: ImagePolicy, seed: int) -> ProcessedImage:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    limits = {"min_pixels": policy.min_pixels, "max_pixels": policy.max_pixels}
    return decode_image(file.getvalue(), policy=policy, limits=DecodeLimits(), field="", **limits)


def answer(
    core: EngineCore, model: ServedModel, shown: ProcessedImage, name: str = ""
) -> list[int]:
    message = ChatMessage(
        role=Role.USER, parts=(ImagePart(data=b"x"), TextPart(text="What is this?")), name=name
    )
    request = ChatRequest(request_id="r", model="tiny", messages=(message,))
    prompt = model.prompts.build(request, [shown])
    assert prompt.token_ids.count(model.spec.image_token_id) == 15
    core.add(
        EngineRequest(
            request_id="r",
            prompt_token_ids=prompt.token_ids,
            images=prompt.images,
            sampling=SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True),
        ),
        shown.pixels,
    )
    return drain(core)["r"].token_ids


def test_it_answers(directory: Path) -> None:
    model = ServedModel.load(directory, ("tiny",))
    config = EngineConfig(model_dir=str(directory), num_kv_pages=64, cpu_threads=1)
    core, policy = EngineCore(config), model.spec.image_policy
    first = answer(core, model, image(policy, 1))
    assert len(first) == 12
    assert answer(EngineCore(config), model, image(policy, 1)) == first
    assert answer(core, model, image(policy, 2)) != first
    assert answer(core, model, image(policy, 1), name="Ann") != first


def test_its_text_is_loaded_without_its_vision() -> None:
    code = (
        "import sys; from pathlib import Path; from tests.families.made_up import FAMILY;"
        "FAMILY.load_text(Path(), None); assert 'tests.families.made_up.text' in sys.modules;"
        "assert not {'torch', 'tests.families.made_up.vision'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_no_other_module_names_the_family() -> None:
    files = [
        path for path in Path("inference_service").rglob("*.py") if "made_up" in path.read_text()
    ]
    assert files == []


@pytest.mark.parametrize("changes", [{"name": "other"}, {"model_type": "other"}, {}], ids=str)
def test_duplicates_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"'made_up'.* is registered already"):
        register(replace(FAMILY, **changes))


def test_unregistered_it_is_unknown(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.delitem(FAMILIES, FAMILY.name)
        with pytest.raises(SpecError, match="'made_up_model' is not supported"):
            load_spec(directory)
