"""The model that a command is about, as the backend that would serve it describes it."""

from __future__ import annotations

from pathlib import Path

from inference_service.any_model.choice import BackendKind, choose_backend
from inference_service.any_model.facts import ModelFacts, read_facts
from inference_service.families.qwen_common.tensors import EMBEDDING, HEAD, stored_tensors
from inference_service.families.registry import load_spec
from inference_service.model_spec import ModelSpec


Subject = ModelSpec | ModelFacts


def read_subject(directory: Path, backend: str) -> Subject:
    """Reads a model's configuration files; weights need not be there.

    Args:
        directory: The model's directory.
        backend: The setting.

    Raises:
        ValueError: No backend can serve it; the message is for the operator.
        OSError: A file cannot be read.
    """
    if choose_backend(backend, directory) is BackendKind.NATIVE:
        return load_spec(directory)
    return read_facts(directory)


def remark_about(directory: Path, spec: Subject) -> str | None:
    """What the configuration cannot tell about the size of a model; None = nothing.

    Args:
        directory: The model's directory.
        spec: What `read_subject` says.

    Raises:
        ValueError: The header of a weight file is damaged.
        OSError: A file cannot be read.
    """
    if not isinstance(spec, ModelSpec) or not spec.decoder.tie_word_embeddings:
        return None
    stored = stored_tensors(directory)
    if stored is None or not stored.keys() >= {EMBEDDING, HEAD}:
        return None
    size = spec.decoder.vocab_size * spec.decoder.hidden_size
    return (
        "The output head is tied to the token embedding, but stored beside it; if the two differ, as after fine-tuning,"
        f" it is kept and the model has {size} parameters more than reported here."
    )
