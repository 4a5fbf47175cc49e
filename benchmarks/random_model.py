"""Models with random weights, made on their device: nothing is downloaded, drawn on the CPU or written to a file."""

from __future__ import annotations

from pathlib import Path

import torch

from inference_service.engine.loader import ops_for
from inference_service.families.placement import Placement
from inference_service.families.registry import load_spec
from inference_service.models.vision_language import VisionLanguageModel


def random_model(
    model_dir: Path,
    *,
    dtype: torch.dtype,
    device: torch.device,
    placement: Placement | None = None,
    gpu_kernels: str = "auto",
) -> VisionLanguageModel:
    """A model of the shapes in config.json; arguments as `engine.loader.load_model`.

    Matrices are normal with a standard deviation of 0.02, weights of norms are one, biases zero: activations stay
    finite in 16 bit, so that the time of a step is that of a real model.
    """
    if placement is not None:
        raise ValueError("random weights are filled on one device only")
    spec = load_spec(model_dir)
    ops = ops_for(spec, [device], dtype, gpu_kernels)
    with torch.device("meta"):
        model = VisionLanguageModel(spec, ops)
    model = model.to(dtype)
    model.allocate(device, None)
    generator = torch.Generator(device).manual_seed(0)
    with torch.inference_mode():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.02, generator=generator)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return model.requires_grad_(requires_grad=False).eval()
