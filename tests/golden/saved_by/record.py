"""Records what a version of transformers saves of published configurations, and which limits it reads.

Run in an environment with that version and torchvision: `python record.py ../configs .`; see README.md.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
import sys
import tempfile
from typing import Any

import transformers


MODELS = (
    "Qwen2-VL-2B-Instruct",
    "Qwen2-VL-7B-Instruct",
    "Qwen2.5-VL-3B-Instruct",
    "Qwen2.5-VL-7B-Instruct",
    "Qwen3-VL-2B-Instruct",
    "Qwen3-VL-8B-Instruct",
)
IMAGE, VIDEO, BOTH = (
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
)
SIZE = {"shortest_edge": 5000, "longest_edge": 900000}
OTHER = {"shortest_edge": 7000, "longest_edge": 700000}
ROOT = {"min_pixels": 6000, "max_pixels": 800000}
FOLDERS: dict[str, dict[str, Any]] = {
    "no limits": {IMAGE: {}},
    "size": {IMAGE: {"size": SIZE}},
    "root": {IMAGE: ROOT},
    "root beside size": {IMAGE: {"size": SIZE, **ROOT}},
    "root maximum alone": {IMAGE: {"max_pixels": 800000}},
    "root minimum alone": {IMAGE: {"min_pixels": 2000}},
    "root maximum beside size": {IMAGE: {"size": SIZE, "max_pixels": 800000}},
    "root minimum beside size": {IMAGE: {"size": SIZE, "min_pixels": 6000}},
    "null beside size": {IMAGE: {"size": SIZE, "min_pixels": None, "max_pixels": None}},
    "a video file": {IMAGE: {"size": SIZE}, VIDEO: {"size": OTHER}},
    "a video file with root": {IMAGE: {"size": SIZE}, VIDEO: {"size": OTHER, **ROOT}},
    "a video file without limits": {IMAGE: {"size": SIZE}, VIDEO: {}},
    "a processor file of old": {IMAGE: {"size": SIZE}, BOTH: {"processor_class": "X"}},
    "nested": {BOTH: {"image_processor": {"size": SIZE}, "video_processor": {"size": OTHER}}},
    "nested over files": {
        IMAGE: ROOT,
        VIDEO: ROOT,
        BOTH: {"image_processor": {"size": SIZE}, "video_processor": {"size": OTHER}},
    },
    "nested images, a video file": {
        IMAGE: ROOT,
        VIDEO: {"size": OTHER},
        BOTH: {"image_processor": {"size": SIZE}},
    },
    "nested images, an image file": {IMAGE: ROOT, BOTH: {"image_processor": {"size": SIZE}}},
    "nested videos": {IMAGE: ROOT, BOTH: {"video_processor": {"size": OTHER}}},
}


def saved_config(directory: Path) -> dict[str, Any] | None:
    """config.json as this version saves it; None if it does not know the model."""
    try:
        config = transformers.AutoConfig.from_pretrained(directory)
    except (ValueError, KeyError):
        return None
    with tempfile.TemporaryDirectory() as target:
        config.save_pretrained(target)
        return json.loads((Path(target) / "config.json").read_text())


def limits(processor: Any, folder: dict[str, Any]) -> list[int] | None:
    """Minimum and maximum area that a class reads from a folder; None if it refuses the folder."""
    default = copy.deepcopy(getattr(processor, "size", None))
    with tempfile.TemporaryDirectory() as source:
        for name, content in folder.items():
            (Path(source) / name).write_text(json.dumps(content))
        try:
            read = processor.from_pretrained(source)
        except (OSError, ValueError, TypeError):
            return None
    if default is not None:
        processor.size = (
            default  # 4.57 changes the default of the class, which is the same for all folders
        )
    if hasattr(transformers, "Qwen2VLVideoProcessor"):
        return [read.size["shortest_edge"], read.size["longest_edge"]]
    # Before 4.52 these were used, not `size`; null was an error later.
    return [read.min_pixels, read.max_pixels] if read.min_pixels else None


def processors() -> dict[str, Any]:
    """The classes of this version that prepare images and videos by default; before 4.52 one did both."""
    images = transformers.Qwen2VLImageProcessor
    if not hasattr(transformers, "Qwen2VLVideoProcessor"):
        return {"images": images, "videos of qwen2": images}
    return {
        "images": getattr(transformers, "Qwen2VLImageProcessorFast", images),
        "videos of qwen2": transformers.Qwen2VLVideoProcessor,
        "videos of qwen3": transformers.Qwen3VLVideoProcessor,
    }


def main() -> None:
    """Writes VERSION.json."""
    configs, output = map(Path, sys.argv[1:])
    record = {
        "folders": FOLDERS,
        "config.json": {name: saved_config(configs / name) for name in MODELS},
        "limits": {
            kind: {name: limits(processor, folder) for name, folder in FOLDERS.items()}
            for kind, processor in processors().items()
        },
    }
    text = json.dumps(record, indent=1)
    (output / f"{transformers.__version__}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
