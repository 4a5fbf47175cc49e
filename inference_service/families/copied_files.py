"""Files that training scripts forget to save beside the weights: what is missing, and where to copy it from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
import re

from inference_service.families.config_file import SpecError, read_config
from inference_service.text.model_files import find_chat_template, has_tokenizer, read_json


IMAGE_FILE = "preprocessor_config.json"
VIDEO_FILE = "video_preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"
ADAPTER_FILE = "adapter_config.json"

PUBLISHED: Mapping[str, str] = {
    "qwen2_vl": "Qwen/Qwen2-VL-7B-Instruct",
    "qwen2_5_vl": "Qwen/Qwen2.5-VL-7B-Instruct",
    "qwen3_vl": "Qwen/Qwen3-VL-8B-Instruct",
    "qwen_vl": "Qwen/Qwen-VL-Chat",
    "glm_4v": "THUDM/glm-4v-9b",
}
"""A published model of each family, for messages."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def missing_files(model_dir: Path, family: str) -> str:
    """The message that says which of the files beside the weights a directory lacks, and where to copy them from.

    Args:
        model_dir: The model's directory; it lacks at least one of them.
        family: The model's family; one of its published models is named unless the directory names another.
    """
    lacking = []
    has_images = (model_dir / IMAGE_FILE).is_file()
    if not has_images and "image_processor" not in read_json(model_dir / PROCESSOR_FILE):
        lacking.append(IMAGE_FILE)
    if not has_tokenizer(model_dir):
        lacking += ["tokenizer.json", "tokenizer_config.json"]
    if find_chat_template(model_dir) is None:
        lacking.append("chat_template.jinja (or chat_template.json)")
    return f"{model_dir} lacks {', '.join(lacking)}: copy from {_origin(model_dir, family)}"


def require_vocabulary(model_dir: Path, name: str, family: str) -> None:
    """Raises unless there is a vocabulary file.

    Raises:
        ValueError: There is no such file; the message says where to copy it from.
    """
    if not (model_dir / name).is_file():
        raise ValueError(f"{model_dir} lacks {name}: copy from {_origin(model_dir, family)}")


def _origin(model_dir: Path, family: str) -> str:
    published = f"the model from which this one was trained, such as {PUBLISHED[family]}"
    return base_model(model_dir) or published


def base_model(model_dir: Path) -> str | None:
    """The hub id of the model that this one was trained from, where a file names it."""
    for name, key in ((ADAPTER_FILE, "base_model_name_or_path"), ("config.json", "_name_or_path")):
        try:
            value = read_config(model_dir / name).values.get(key)
        except SpecError:
            continue
        if isinstance(value, str) and _HUB_ID.fullmatch(value):
            return value
    return None


def _named_base(model_dir: Path) -> str:
    """The directory that an adapter names as its base model; empty = none."""
    try:
        value = read_config(model_dir / ADAPTER_FILE).values.get("base_model_name_or_path")
    except SpecError:
        return ""
    return value if isinstance(value, str) and value.isprintable() else ""


def refuse_adapter(model_dir: Path) -> None:
    """Raises for a LoRA adapter, alone or beside weights to which it may or may not have been added.

    Raises:
        SpecError: There is an adapter; the message says what to do.
    """
    if not (model_dir / ADAPTER_FILE).is_file():
        return
    base = base_model(model_dir) or _named_base(model_dir) or "its base model"
    advice = f"merge it into {base} (PeftModel.merge_and_unload, then save_pretrained) and serve the result"
    if (model_dir / "config.json").is_file():
        advice += f"; if the weights here are merged already, remove {ADAPTER_FILE}"
    raise SpecError(f"{model_dir} has a LoRA adapter ({ADAPTER_FILE}): {advice}")
