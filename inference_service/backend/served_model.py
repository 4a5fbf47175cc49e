"""The parts of a model that the front loads: names, configuration, tokenizer and template, no weights."""

from __future__ import annotations

from dataclasses import dataclass
import hashlib
from pathlib import Path
import time
from typing import Protocol

from inference_service.backend.base import ModelDescription
from inference_service.backend.defaults import decision_prompt_format, model_defaults
from inference_service.backend.description import Described, describe
from inference_service.backend.prompts import Prompts, PromptWorkers
from inference_service.engine_client.interface import Engine
from inference_service.engine_protocol.messages import EngineReady
from inference_service.errors import ServiceError, UnsupportedParameterError
from inference_service.families.family import TextOptions
from inference_service.families.footprint import footprint
from inference_service.families.registry import family_of, load_spec
from inference_service.grammar.checker import Vocabulary
from inference_service.hub.snapshot import model_files
from inference_service.model_spec import BoxNotation, MediaRules, ModelSpec
from inference_service.sampling import SamplingOptions
from inference_service.settings import ServiceSettings
from inference_service.text.decisions.labels import Labels
from inference_service.text.decisions.prompts import DecisionPromptBuilder
from inference_service.text.prompt import ChatAbilities, PromptBuilder
from inference_service.text.tokenizer import Tokenizer


class Model(Protocol):
    """A model as a backend that uses an engine needs it."""

    @property
    def names(self) -> tuple[str, ...]:
        """Served names, the canonical one first."""

    @property
    def directory(self) -> Path:
        """The directory of its files."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""

    @property
    def abilities(self) -> ChatAbilities:
        """What its chat format has besides text and images."""

    @property
    def defaults(self) -> SamplingOptions:
        """Its default sampling settings."""

    @property
    def media(self) -> MediaRules:
        """How its media are prepared."""

    @property
    def vocab_size(self) -> int:
        """Width of its logits."""

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer."""

    @property
    def box_notation(self) -> BoxNotation:
        """How its answers write bounding boxes."""

    def decision_prompts(self) -> DecisionPromptBuilder:
        """What builds the prompts of decisions; raises UnsupportedParameterError if it cannot decide."""

    @property
    def vocabulary(self) -> Vocabulary:
        """How the process that tries constraints finds its vocabulary."""

    def new_prompts(self, settings: ServiceSettings, engine: Engine) -> Prompts:
        """What makes its prompts for an engine."""

    def describe(self, settings: ServiceSettings, ready: EngineReady | None) -> ModelDescription:
        """Describes it; see `description`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model and its served names.

    Attributes:
        names: Served names, the canonical one first.
        directory: The directory of its files.
        revision: 64 hexadecimal digits that change with the files; part of every image's cache key.
        created: Unix time in seconds at which the front loaded it.
        decisions: Builds the prompts of decisions; None = the model cannot decide, for the reason `no_decisions`.
    """

    names: tuple[str, ...]
    directory: Path
    spec: ModelSpec
    tokenizer: Tokenizer
    prompts: PromptBuilder
    defaults: SamplingOptions
    revision: str
    created: int
    decisions: DecisionPromptBuilder | None = None
    no_decisions: str = ""

    @property
    def name(self) -> str:
        """The canonical name."""
        return self.names[0]

    @property
    def box_notation(self) -> BoxNotation:
        """See `Model`."""
        return family_of(self.spec).boxes

    @property
    def abilities(self) -> ChatAbilities:
        """See `Model`."""
        return self.prompts.abilities

    @property
    def media(self) -> MediaRules:
        """See `Model`."""
        return self.spec

    @property
    def vocab_size(self) -> int:
        """See `Model`."""
        return self.spec.decoder.vocab_size

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """See `Model`."""
        return self.spec.eos_token_ids

    @property
    def vocabulary(self) -> Vocabulary:
        """See `Model`."""
        return Vocabulary()

    def new_prompts(self, settings: ServiceSettings, engine: Engine) -> PromptWorkers:
        """See `Model`."""
        del engine
        # With a window of history, turns beyond it are dropped instead of refused.
        tokenizer = None if settings.history_window else self.tokenizer
        return PromptWorkers(self.prompts, tokenizer)

    def describe(self, settings: ServiceSettings, ready: EngineReady | None) -> ModelDescription:
        """See `Model`."""
        return describe(
            Described(
                names=self.names,
                created=self.created,
                revision=self.revision,
                footprint=footprint(
                    self.spec, ready.dtype if ready else self.spec.checkpoint_dtype
                ),
                image_policy=self.spec.image_policy,
                has_videos=self.spec.video is not None,
                is_chat=self.spec.is_chat,
                abilities=self.abilities,
                boxes=self.box_notation,
                decides=self.decisions is not None,
            ),
            settings,
            ready,
        )

    def decision_prompts(self) -> DecisionPromptBuilder:
        """What builds the prompts of decisions.

        Raises:
            UnsupportedParameterError: The model cannot decide.
        """
        if self.decisions is None:
            raise UnsupportedParameterError(
                f"Decisions are not supported by this model: {self.no_decisions}",
                field="spec.model",
            )
        return self.decisions

    @classmethod
    def load(
        cls, directory: Path, names: tuple[str, ...], *, history_window: int | None = None
    ) -> ServedModel:
        """Reads configuration and text files, no weights.

        Args:
            directory: The model's directory.
            names: Served names, the canonical one first.
            history_window: See `TextOptions`.

        Raises:
            ValueError: A file is missing, invalid or not supported; the message is for the operator.
            OSError: A file cannot be read.
        """
        spec = load_spec(directory)
        revision = revision_of(directory)
        options = TextOptions(history_window=history_window)
        tokenizer, chat = family_of(spec).load_text(directory, spec, options)
        builder = PromptBuilder(
            tokenizer,
            chat,
            placeholder=spec.image_token_id,
            ends=(
                (spec.vision_start_token_id, spec.vision_end_token_id)
                if spec.image_has_ends
                else None
            ),
            video_placeholder=None if spec.video is None else spec.video_token_id,
            revision=bytes.fromhex(revision),
        )
        decisions, no_decisions = _decisions(builder, tokenizer, spec, directory)
        return cls(
            names=names,
            directory=directory,
            spec=spec,
            tokenizer=tokenizer,
            prompts=builder,
            defaults=model_defaults(directory),
            revision=revision,
            created=int(time.time()),
            decisions=decisions,
            no_decisions=no_decisions,
        )


def _decisions(
    builder: PromptBuilder, tokenizer: Tokenizer, spec: ModelSpec, directory: Path
) -> tuple[DecisionPromptBuilder | None, str]:
    """What builds the prompts of decisions, or why the model cannot decide."""
    prompt_format = decision_prompt_format(directory)
    try:
        labels = Labels(builder, tokenizer, spec.eos_token_ids)
    except ServiceError as error:
        return None, error.message
    return DecisionPromptBuilder(builder, tokenizer, labels, prompt_format), ""


def revision_of(directory: Path) -> str:
    """A digest over names, sizes and times of the files; gigabytes of weights are not read."""
    digest = hashlib.sha256()
    for name in model_files(path.name for path in directory.iterdir() if path.is_file()):
        status = (directory / name).stat()
        digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
