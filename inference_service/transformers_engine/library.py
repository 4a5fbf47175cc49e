"""What is asked of the transformers library: configuration, model and processor of a directory, nothing else.

Everything is read from the directory alone, as data alone (`trust_remote_code=False`, safetensors); programs call
`stay_offline` before they import this.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import logging


logging.disable_progress_bar()
_PROCESSORS: Any = PROCESSOR_MAPPING
_LOCAL: Final[Mapping[str, Any]] = {"local_files_only": True, "trust_remote_code": False}


def load_config(model_dir: Path) -> Any:
    """The configuration of a directory, without its choice of kernels; raises what the library raises."""
    config = AutoConfig.from_pretrained(model_dir, **_LOCAL)
    # The library sets them in the settings of the parts, too, and chooses those that this machine has.
    config._attn_implementation = None  # noqa: SLF001 - the only name that it has
    config._experts_implementation = None  # noqa: SLF001
    return config


def load_generation_config(model_dir: Path, config: Any) -> GenerationConfig:
    """The model's own settings for generation, from its file or its configuration."""
    if (model_dir / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(model_dir, local_files_only=True)
    return GenerationConfig.from_model_config(config)


def new_meta_model(config: Any) -> Any:
    """The model without memory for its parameters."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, trust_remote_code=False)


def load_model(model_dir: Path, config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """The model with its weights, ready to generate.

    Args:
        model_dir: The directory.
        config: Its configuration, which is changed.
        dtype: The dtype of the weights in memory.
        device: Where they go.

    Raises:
        ValueError: The checkpoint lacks tensors of the model, which the library would fill at random.
    """
    auto: Any = AutoModelForImageTextToText
    model, report = auto.from_pretrained(
        model_dir,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
        **_LOCAL,
    )
    lacking = sorted({*report["missing_keys"], *(str(key) for key in report["mismatched_keys"])})
    if lacking:
        raise ValueError(
            f"the checkpoint lacks {len(lacking)} tensors of {type(model).__name__}, such as {lacking[0]}"
        )
    return model.to(device).eval().requires_grad_(False)


def load_processor(model_dir: Path, config: Any) -> Any:
    """The model's processor: image processor and tokenizer, and that of videos where it can be loaded.

    The library's video processors need torchvision; without it, a processor has no videos, and images are prepared with
    Pillow.

    Raises:
        ValueError: The library has no processor for the model, or one that needs torchvision for all it does.
    """
    try:
        processor = AutoProcessor.from_pretrained(model_dir, **_LOCAL)
    except (ImportError, ValueError) as error:
        if "torchvision" not in str(error).lower():
            raise
        return _without_torchvision(model_dir, config)
    if getattr(processor, "image_processor", None) is None:
        raise ValueError(
            f"transformers finds no processor of images and text for {config.model_type} (processor_class), but"
            f" {type(processor).__name__}"
        )
    return processor


def _without_torchvision(model_dir: Path, config: Any) -> Any:
    try:
        return _without_videos(model_dir, config)
    except ImportError as error:
        raise ValueError(
            f"the processor of {config.model_type} needs torchvision, in the version for the installed torch"
        ) from error


def _without_videos(model_dir: Path, config: Any) -> Any:
    """As `ProcessorMixin.from_pretrained`, with nothing in the place of the video processor."""
    cls = _PROCESSORS.get(type(config), None)
    if cls is None:
        raise ValueError(f"transformers has no processor for {config.model_type}")
    loaders: Mapping[str, Any] = {"image_processor": AutoImageProcessor, "tokenizer": AutoTokenizer}
    names = cls.get_attributes()
    if unknown := [name for name in names if name not in {*loaders, "video_processor"}]:
        raise ValueError(f"the processor of {config.model_type} needs {unknown[0]}")
    parts = [
        loaders[n].from_pretrained(model_dir, **_LOCAL) if n in loaders else None for n in names
    ]
    settings, _ = cls.get_processor_dict(model_dir, **_LOCAL)

    def checked(self: Any, name: str, part: Any) -> Any:
        return None if part is None else cls.check_argument_for_proper_class(self, name, part)

    reduced: Any = type(cls.__name__, (cls,), {"check_argument_for_proper_class": checked})
    return reduced.from_args_and_dict(parts, settings)


def lacking_for_videos(processor: Any) -> str | None:
    """The package that a processor of videos would need; empty = it takes videos, None = it never does."""
    if getattr(processor, "video_processor", None) is not None:
        return ""
    return "torchvision" if "video_processor" in type(processor).get_attributes() else None


def texts_of(processor: Any, kind: str) -> tuple[str, ...]:
    """Texts that a template may write for an image or a video, the likeliest first.

    Args:
        processor: The processor.
        kind: `image` or `video`.
    """
    names = {"image": ("boi_token", "image_token"), "video": ("video_token",)}[kind]
    found = (getattr(processor, name, None) for name in names)
    # Gemma's template writes the token that begins an image, for which its processor writes the whole.
    return tuple(dict.fromkeys(str(text) for text in found if isinstance(text, str) and text))


def ids_of(processor: Any, config: Any, kind: str) -> tuple[int, ...]:
    """Ids that stand for the features of images or videos in a prompt."""
    names = (f"{kind}_token_id", f"{kind}_token_index")
    found = [
        *(getattr(processor, f"{kind}_token_ids", None) or ()),
        *(getattr(source, name, None) for source in (processor, config) for name in names),
    ]
    return tuple(dict.fromkeys(i for i in found if isinstance(i, int) and i >= 0))
