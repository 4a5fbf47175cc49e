"""Images of Qwen-VL v1: preprocessing, every stage of the tower and its tokens are those of the original code."""

from __future__ import annotations

import functools
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
import pytest
import torch
from torch.nn.functional import gelu, interpolate

from inference_service.families.qwen_vl import vision as qwen_vl
from inference_service.families.qwen_vl.spec import QwenVLVisionSpec
from inference_service.families.qwen_vl.vision import VisionTower
from inference_service.families.registry import load_spec
from inference_service.families.tables import tensor_table
from inference_service.media.decode import decode_image
from inference_service.media.images import DecodeLimits
from inference_service.model_spec import ModelSpec
from inference_service.models.preprocess import Patchifier
from tests.support.qwen_vl_v1 import GOLDEN, golden, golden_tensors, processed


IMAGES = golden("images.json")["images"]
SIDES = {"A": 448, "B": 224}
TOLERANCE = 2e-5  # the golden data allow 2e-4


def load_tower(name: str) -> VisionTower:
    spec = load_spec(GOLDEN / "configs" / name)
    tensors = golden_tensors(name, "transformer.visual.")
    assert isinstance(spec.vision, QwenVLVisionSpec)
    tower = VisionTower(spec.vision).eval()
    state = {
        entry.parameter.removeprefix("visual."): torch.from_numpy(tensors[entry.name])
        for entry in tensor_table(spec)
        if entry.name in tensors
    }
    shapes = {key: parameter.shape for key, parameter in tower.named_parameters()}
    tower.load_state_dict({key: tensor.reshape(shapes[key]) for key, tensor in state.items()})
    return tower


@pytest.fixture(scope="module", params=SIDES)
def tower(request) -> tuple[str, ModelSpec, VisionTower]:
    return request.param, load_spec(GOLDEN / "configs" / request.param), load_tower(request.param)


def patches(spec: ModelSpec, file: str) -> torch.Tensor:
    shown = processed(file, spec.image_policy.square_side)
    pixels = torch.frombuffer(bytearray(shown.pixels), dtype=torch.uint8)
    patchify = Patchifier(spec.image_policy, torch.device("cpu"))
    return patchify(pixels.view(1, shown.height, shown.width, 3))


def encode(spec: ModelSpec, tower: VisionTower, files: list[str]) -> list[np.ndarray]:
    assert spec.image_policy.square_side is not None
    side = spec.image_policy.square_side // spec.image_policy.patch_size
    with torch.inference_mode():
        tokens = tower([patches(spec, file) for file in files], [(1, side, side)] * len(files))
    return [image.numpy() for image in tokens]


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image["file"])
def test_preprocessing(image):
    """Squashed to a square; transparency dropped; bytes exact, normalised values to 1e-5."""
    shown = processed(image["file"], 448)
    assert hashlib.sha256(shown.pixels).hexdigest() == image["resized_u8_sha256"]
    assert [shown.original_width, shown.original_height] == image["size_wh"]
    spec = load_spec(GOLDEN / "configs" / "A")
    rows = patches(spec, image["file"]).view(32, 32, 3, 14, 14).permute(2, 0, 3, 1, 4)
    tensor = rows.reshape(3, 448, 448).numpy()
    name = Path(image["file"]).stem
    with np.load(GOLDEN / "images.npz") as expected:
        for found, key in ((tensor[:, ::32, ::32], "grid"), (tensor[:, 224:232, 149:157], "patch")):
            np.testing.assert_allclose(found, expected[f"{name}/{key}"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(tensor.mean((1, 2)), image["tensor_mean"], atol=1e-5)
    np.testing.assert_allclose(tensor.std((1, 2)), image["tensor_std"], atol=1e-4)


def test_orientation_is_ignored():
    """As in the original, where boxes are told of the image as stored."""
    spec = load_spec(GOLDEN / "configs" / "A")
    upright, turned = io.BytesIO(), io.BytesIO()
    with Image.open(GOLDEN / "images" / "wide_rgb.png") as image:
        image.save(upright, "PNG")
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(turned, "PNG", exif=exif)
    options: dict[str, Any] = {
        "policy": spec.image_policy,
        "min_pixels": 1,
        "max_pixels": 1,
        "field": "",
    }
    one, other = (
        decode_image(file.getvalue(), limits=DecodeLimits(), **options)
        for file in (upright, turned)
    )
    assert one.pixels == other.pixels
    assert (other.original_width, other.original_height) == (200, 84)


def difference(name: str, spec: ModelSpec, tower: VisionTower, *, together: bool = True) -> float:
    """The greatest difference of any image token from the original's."""
    worst = 0.0
    with np.load(GOLDEN / f"{name}_visual.npz") as expected:
        files = [p["file"] for p in IMAGES if f"{Path(p['file']).stem}/mean" in expected]
        groups = [files] if together else [[file] for file in files]
        tokens = [image for group in groups for image in encode(spec, tower, group)]
        for file, found in zip(files, tokens, strict=True):
            stem = Path(file).stem
            for ours, key in (
                (found[::8], "rows_0_256_8"),
                (np.linalg.norm(found, axis=1), "row_norm"),
                (found.mean(0), "mean"),
            ):
                worst = max(worst, float(np.abs(ours - expected[f"{stem}/{key}"]).max()))
    assert len(files) == len(IMAGES)
    return worst


@pytest.mark.parametrize("together", [True, False])
def test_image_tokens(tower, together):
    assert difference(*tower, together=together) < TOLERANCE


def test_every_stage(tower):
    name, spec, modules = tower
    seen: dict[str, torch.Tensor] = {}

    def keep(module: torch.nn.Module, key: str) -> None:
        hook = lambda _, inputs, output: seen.update({key: output, f"{key}<": inputs[0]})  # noqa: E731
        handles.append(module.register_forward_hook(hook))

    handles: list = []
    for key, module in (
        ("conv1", modules.conv1),
        ("ln_pre", modules.ln_pre),
        ("resampler", modules.attn_pool),
        ("ln_post", modules.ln_post),
        *((f"begin{i}", block.get_submodule("ln_1")) for i, block in enumerate(modules.blocks)),
        *(
            (f"attn{i}", block.get_submodule("attn.out_proj"))
            for i, block in enumerate(modules.blocks)
        ),
    ):
        keep(module, key)
    encode(spec, modules, [golden(f"{name}.json")["visual"]["stage_image"]])
    for handle in handles:
        handle.remove()
    seen["plus_pos"] = seen["ln_pre<"]
    last = len(modules.blocks) - 1
    for i in range(last):
        seen[f"block{i}"] = seen[f"begin{i + 1}<"]
    seen[f"block{last}"] = seen["resampler<"]
    with np.load(GOLDEN / f"{name}_visual.npz") as expected:
        stages = [key for key in expected if key.startswith("stages/")]
        assert len(stages) == 9
        for key in stages:
            found = seen[key.removeprefix("stages/")].flatten(0, -2)
            np.testing.assert_allclose(
                found[:: len(found) // 16], expected[key], atol=TOLERANCE, rtol=0
            )


@pytest.mark.parametrize(
    "mistake",
    ["gelu", "eps", "layout", "one position", "values", "projection", "table"],
)
def test_notices_mistakes(mistake, monkeypatch):
    spec = load_spec(GOLDEN / "configs" / "A")
    if mistake == "eps":
        monkeypatch.setattr(qwen_vl, "NORM_EPS", 1e-5)
    tower = load_tower("A")
    match mistake:
        case "gelu":
            monkeypatch.setattr(qwen_vl, "gelu", lambda x: gelu(x, approximate="tanh"))
        case "layout":  # thirds, as everywhere else
            parts: list[Any] = [block.get_submodule("attn.in_proj") for block in tower.blocks]
            for part in parts:
                for parameter in (part.weight, part.bias):
                    heads = parameter.unflatten(0, (3, 4, 16)).transpose(0, 1)
                    parameter.data = heads.reshape(parameter.shape).contiguous()
        case "one position":
            tower.attn_pool.pos_embed.data[5] += 1e-3
        case "values":
            tower.attn_pool.ln_kv.bias.data += 1e-3
        case "projection":
            tower.proj.data = tower.proj.data.T.contiguous()
        case "table":  # bilinear, as Qwen3-VL does
            bilinear = functools.partial(interpolate, mode="bilinear")
            monkeypatch.setattr(
                qwen_vl, "interpolate", lambda x, size, **_: bilinear(x, size, align_corners=False)
            )
    assert difference("A", spec, tower) > 2 * TOLERANCE


def test_other_sizes_of_images_are_refused(tower):
    _, spec, modules = tower
    with pytest.raises(ValueError, match="patches"):
        modules([torch.zeros(4, spec.vision.patch_values)], [(1, 2, 2)])
