"""What transformers says about a model, asked in a process of its own: sizes, ends, placeholders. Reads no weights.

`qwenvl serve` asks before it starts the service, and hands the answer over: importing the library takes seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import hashlib
import os
from pathlib import Path
import signal
import subprocess
import sys
from typing import Final

import msgspec

from inference_service.any_model.folder import check_configuration
from inference_service.families.config_file import SpecError
from inference_service.families.footprint import Footprint
from qwenvl.safe_path import child_environment


_COMMAND: Final = (sys.executable, "-P", "-m", "inference_service.transformers_engine.describe")
CPU_S: Final = 120
"""CPU time of that process: importing the library takes seconds, a configuration with absurd sizes for ever."""
_HANDED_OVER: Final = "_QWENVL_MODEL_FACTS"
_TIMEOUT_S: Final = 900.0
"""How long it may take on a machine with much else to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """A model as transformers builds it from its configuration.

    Attributes:
        model_type: `model_type` in config.json.
        architecture: The class of the library.
        vocab_size: Width of the logits.
        max_position_embeddings: The context window in tokens.
        eos_token_ids: Tokens that end an answer, at least one.
        checkpoint_dtype: Dtype of the stored weights, a key of `DTYPE_BYTES`.
        parts: (name, parameter count) of its parts, counted on the meta device.
        kv_values_per_token: Maximum values that the cache holds for one token.
        image_texts: Texts that may stand for an image in its chat template, the likeliest first.
        video_texts: The same for a video; empty = the model has no videos, or their processor cannot be loaded.
        lacking_for_videos: The package that the processor of videos would need; empty = none, or it has no videos.
        image_token_ids: Ids that stand for image features in a prompt.
        video_token_ids: Ids that stand for video features.
    """

    model_type: str
    architecture: str
    vocab_size: int
    max_position_embeddings: int
    eos_token_ids: tuple[int, ...]
    checkpoint_dtype: str
    parts: tuple[tuple[str, int], ...]
    kv_values_per_token: int
    image_texts: tuple[str, ...] = ()
    video_texts: tuple[str, ...] = ()
    lacking_for_videos: str = ""
    image_token_ids: tuple[int, ...] = ()
    video_token_ids: tuple[int, ...] = ()

    def footprint(self, dtype: str, value_bytes: int) -> Footprint:
        """What it needs in a dtype of so many bytes."""
        return Footprint(
            family=self.model_type,
            parts=self.parts,
            dtype=dtype,
            kv_bytes_per_token=self.kv_values_per_token * value_bytes,
            window_tokens=self.max_position_embeddings,
        )


def read_facts(model_dir: Path, command: Sequence[str] = _COMMAND) -> ModelFacts:
    """Asks transformers about the model in a directory, once the directory is known to be harmless.

    Args:
        model_dir: The directory; weights need not be there.
        command: The program; `--model-dir DIR` is appended.

    Raises:
        SpecError: The directory is refused, or transformers cannot build the model.
        RegistryError: transformers is not installed.
        OSError: A file cannot be read.
    """
    check_configuration(model_dir)
    try:
        done = subprocess.run(  # noqa: S603 - this package's own module
            [*command, "--model-dir", str(model_dir)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=child_environment(os.environ),
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SpecError(
            f"transformers did not build the model from config.json within {_TIMEOUT_S:.0f} s"
        ) from None
    said = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        raise SpecError(
            f"transformers did not build the model from config.json within {CPU_S} s of CPU time, or not in this memory"
        )
    if done.returncode:
        raise SpecError(f"transformers cannot build the model: {said[-1] if said else 'no reason'}")
    try:
        return msgspec.json.decode(done.stdout, type=ModelFacts)
    except msgspec.MsgspecError as error:
        raise SpecError(f"transformers described the model wrongly: {error}") from error


def handed_over(model_dir: Path, facts: ModelFacts) -> dict[str, str]:
    """The variable that tells a child process the facts of a model."""
    given = _Given(state=_state_of(model_dir), facts=facts)
    return {_HANDED_OVER: msgspec.json.encode(given).decode()}


def given_facts(model_dir: Path, environ: Mapping[str, str]) -> ModelFacts | None:
    """The facts that the parent process has handed over; None = none, or the files have changed since."""
    try:
        given = msgspec.json.decode(environ.get(_HANDED_OVER, ""), type=_Given)
    except msgspec.MsgspecError:
        return None
    return given.facts if given.state == _state_of(model_dir) else None


class _Given(msgspec.Struct, frozen=True):
    state: str
    facts: ModelFacts


def _state_of(model_dir: Path) -> str:
    """A digest over place, names, sizes and times of a model's files."""
    digest = hashlib.sha256(f"{model_dir.resolve()}\n".encode())
    for path in sorted(path for path in model_dir.iterdir() if path.is_file()):
        status = path.stat()
        digest.update(f"{path.name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
