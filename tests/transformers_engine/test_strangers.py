"""Families that nobody here chose are served as they are, from their files to their answers."""

from __future__ import annotations

from hashlib import sha256
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
import pytest

from inference_service.any_model.facts import ModelFacts, handed_over
from inference_service.backend.transformers import TransformersModel
from inference_service.engine_protocol.messages import (
    EngineConfig,
    EngineRequest,
    PromptMedia,
    PromptSource,
    SamplingParams,
)
from inference_service.settings import ServiceSettings
from inference_service.transformers_engine import library
from inference_service.transformers_engine.core import TransformersCore
from inference_service.transformers_engine.describe import describe
from inference_service.transformers_engine.loading import load_core
from tests.support.library_checkpoints import reference_ids, reference_model
from tests.support.strangers import STRANGERS, build


pytestmark = pytest.mark.full
MAX_TOKENS = 8
IMAGES = [(40, 64), (64, 32), (32, 32)]


@pytest.fixture(scope="module", params=[name for name in STRANGERS if name != "mistral3"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def facts(directory: Path) -> ModelFacts:
    return describe(directory)


@pytest.fixture(scope="module")
def core(directory: Path) -> TransformersCore:
    return load_core(
        EngineConfig(model_dir=str(directory), device="cpu", max_num_seqs=8, cpu_threads=1)
    )


def test_the_front_knows_it(
    directory: Path, facts: ModelFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in handed_over(directory, facts).items():
        monkeypatch.setenv(name, value)
    model = TransformersModel.load(directory, ("x",), ServiceSettings())
    assert model.chat is not None
    assert directory.name == f"{facts.model_type}0"
    assert facts.image_texts
    assert set(facts.image_token_ids)
    lacking = "torchvision" if facts.model_type == "internvl" else ""
    assert facts.lacking_for_videos == lacking


def test_a_processor_that_needs_torchvision_is_refused_by_its_name(tmp_path: Path) -> None:
    build(tmp_path, "mistral3")
    with pytest.raises(ValueError, match="the processor of mistral3 needs torchvision"):
        describe(tmp_path)


def prompts(processor: Any, count: int) -> list[tuple[str, list[np.ndarray]]]:
    """Prompts with 0 to 3 images of different sizes, and with several turns."""
    drawn = np.random.default_rng(count)
    found = []
    for images in range(count):
        sizes = IMAGES[:images]
        parts: list[dict[str, str]] = [{"type": "image"} for _ in sizes]
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": [*parts, {"type": "text", "text": f"这 {images} 张图?"}]}
        ]
        if images % 2:
            messages += [
                {"role": "assistant", "content": "red"},
                {"role": "user", "content": "Why?"},
            ]
        text = processor.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        found.append((text, [drawn.integers(0, 256, (*s, 3), dtype=np.uint8) for s in sizes]))
    return found


def source(text: str, images: list[np.ndarray]) -> PromptSource:
    media, offset = [], 0
    for image in images:
        digest = sha256(image.tobytes()).digest()
        height, width = image.shape[:2]
        media.append(PromptMedia(height=height, width=width, pixel_offset=offset, digest=digest))
        offset += image.nbytes
    return PromptSource(text=text, media=tuple(media), is_guarded=True)


def test_answers_are_those_of_generate(directory: Path, core: TransformersCore) -> None:
    processor = library.load_processor(directory, library.load_config(directory))
    model = reference_model(directory)
    asked = prompts(processor, 4)
    wanted = {}
    for index, (text, images) in enumerate(asked):
        pictures = [Image.fromarray(image) for image in images]
        inputs = processor(text=[text], images=pictures or None, return_tensors="pt")
        wanted[f"r{index}"] = reference_ids(model, inputs, MAX_TOKENS)
        prompt = source(text, images)
        pixels = b"".join(image.tobytes() for image in images)
        layout = core.prepare(prompt, pixels)
        assert list(layout.token_ids) == inputs["input_ids"][0].tolist()
        assert len(layout.media) == len(images)
        marks = library.ids_of(processor, model.config, "image")
        assert sum(one.num_tokens for one in layout.media) == sum(
            token in marks for token in layout.token_ids
        )
        sampling = SamplingParams(
            max_tokens=MAX_TOKENS,
            temperature=0.0,
            eos_token_ids=tuple(model.generation_config.eos_token_id),
        )
        core.add(
            EngineRequest(
                request_id=f"r{index}",
                prompt_token_ids=layout.token_ids,
                source=prompt,
                sampling=sampling,
            ),
            pixels,
        )
    (one, _), (_, images) = asked[1], asked[3]
    alone = [core.prepare(source(one, [image]), image.tobytes()).media[0] for image in images]
    assert [media.num_tokens for media in layout.media] == [media.num_tokens for media in alone]
    found: dict[str, list[int]] = {name: [] for name in wanted}
    while core.has_work:
        for output in core.step():
            assert output.failure is None
            found[output.request_id] += output.token_ids
    assert found == wanted
    assert len(set(map(tuple, wanted.values()))) == len(wanted)


def change(directory: Path, name: str, values: dict[str, Any]) -> None:
    path = directory / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("processor_config.json", {"processor_class": "NoSuchProcessor"}, "no processor of images"),
        ("processor_config.json", {"processor_class": "AutoModel"}, "no processor of images"),
        ("preprocessor_config.json", {"image_processor_type": "os.system"}, "Unrecognized image"),
        ("config.json", {"text_config": {"model_type": "no_such"}}, "no_such"),
    ],
)
def test_names_of_classes_that_are_no_such_classes(
    tmp_path: Path, name: str, values: dict[str, Any], words: str
) -> None:
    change(build(tmp_path, "idefics3"), name, values)
    with pytest.raises(ValueError, match=words):
        describe(tmp_path)


@pytest.mark.parametrize("name", ["NoSuchTokenizer", "../../x.Tokenizer"])
def test_the_tokenizer_is_that_of_tokenizer_json(tmp_path: Path, name: str) -> None:
    build(tmp_path, "idefics3")
    usual = describe(tmp_path)
    change(tmp_path, "tokenizer_config.json", {"tokenizer_class": name})
    assert describe(tmp_path) == usual
