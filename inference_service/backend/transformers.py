"""A model that the transformers library computes: what the front knows of it.

Requests go the way of `local`: the same admission, media, sampling and output. Only the prompt is made elsewhere, see
`engine_prompts`: the front renders the conversation with the model's template and hands it over as text, with the
decoded images; the processor and the tokenizer are the model's own, in the engine process. The front imports neither
torch nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import os
from pathlib import Path
import time
from typing import Final, cast

from inference_service.any_model.facts import ModelFacts, given_facts, read_facts
from inference_service.any_model.folder import check_folder
from inference_service.backend.base import ModelDescription
from inference_service.backend.defaults import model_defaults
from inference_service.backend.description import Described, describe
from inference_service.backend.engine_prompts import EnginePrompts
from inference_service.backend.served_model import revision_of
from inference_service.domain import ChatMessage, ImagePart, Media, Role, TextPart
from inference_service.engine_client.interface import Engine, PreparingEngine
from inference_service.engine_protocol.messages import EngineReady
from inference_service.errors import ServiceError, UnsupportedParameterError
from inference_service.families.config_file import SpecError
from inference_service.families.registry import FAMILIES
from inference_service.grammar.checker import Vocabulary
from inference_service.model_spec import (
    DTYPE_BYTES,
    NO_VIDEOS,
    BoxNotation,
    ImagePolicy,
    ToolNotation,
    VideoPolicy,
)
from inference_service.sampling import SamplingOptions
from inference_service.settings import ServiceSettings
from inference_service.text.decisions.prompts import DecisionPromptBuilder
from inference_service.text.jinja_chat import JinjaChat
from inference_service.text.jinja_template import JinjaTemplate
from inference_service.text.model_files import find_chat_template, has_tokenizer
from inference_service.text.prompt import ChatAbilities
from inference_service.text.tokenizer import Tokenizer
from inference_service.text.tokenizer_json import JsonTokenizer


REFERENCE_PATH: Final = "reference_path"
"""The feature that tells callers of `GetModel` that transformers computes the model."""

_BOXES: Final[Mapping[str, BoxNotation]] = {
    **{family.model_type: family.boxes for family in FAMILIES.values()},
    "qwen3_vl_moe": BoxNotation.JSON_PER_MILLE,
    "qwen3_5": BoxNotation.JSON_PER_MILLE,
    "qwen3_5_moe": BoxNotation.JSON_PER_MILLE,
}
_TOOLS: Final[Mapping[str, ToolNotation]] = {
    "qwen2_vl": ToolNotation.HERMES,
    "qwen2_5_vl": ToolNotation.HERMES,
    "qwen3_vl": ToolNotation.HERMES,
    "qwen3_vl_moe": ToolNotation.HERMES,
    "qwen3_5": ToolNotation.XML,
    "qwen3_5_moe": ToolNotation.XML,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AsDecoded:
    """`MediaRules`: images as decoded, which the model's own processor resizes."""

    image_policy: ImagePolicy
    video: VideoPolicy | None
    no_videos: str = NO_VIDEOS

    @classmethod
    def of(cls, facts: ModelFacts, settings: ServiceSettings) -> AsDecoded:
        """The rules for a model, within the operator's limits."""
        policy = ImagePolicy(
            patch_size=1,
            merge_size=1,
            temporal_patch_size=1,
            min_pixels=1,
            max_pixels=settings.max_image_pixels,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
            num_tokens=1,  # not known before the processor has it
            as_decoded=True,
        )
        video = VideoPolicy(
            min_pixels=1,
            max_pixels=settings.max_request_pixels,
            tokens_per_second=1.0,  # a step is the time between two frames
        )
        if facts.video_texts:
            return cls(image_policy=policy, video=video)
        if lacking := facts.lacking_for_videos:
            why = f"Videos need {lacking} with --backend transformers, and it is not installed where the model runs."
            return cls(image_policy=policy, video=None, no_videos=why)
        return cls(image_policy=policy, video=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformersModel:
    """A `Model` that transformers computes.

    Attributes:
        facts: What the library says of it.
        chat: Its chat format; None = it only completes text.
    """

    names: tuple[str, ...]
    directory: Path
    facts: ModelFacts
    tokenizer: Tokenizer
    chat: JinjaChat | None
    media: AsDecoded
    defaults: SamplingOptions
    revision: str
    created: int

    @classmethod
    def load(
        cls, directory: Path, names: tuple[str, ...], settings: ServiceSettings
    ) -> TransformersModel:
        """Reads the text files, and asks the library about the model; no weights are read.

        Raises:
            ValueError: The directory is refused, or a file is invalid; the message is for the operator.
            OSError: A file cannot be read.
        """
        check_folder(directory)
        if settings.history_window is not None:
            raise ValueError(
                "--history-window is not supported with --backend transformers: remove it"
            )
        if not has_tokenizer(directory):
            raise SpecError(
                f"{directory} lacks tokenizer.json: save the model's fast tokenizer there"
            )
        tokenizer = JsonTokenizer.from_dir(directory, any_kind=True)
        facts = given_facts(directory, os.environ) or read_facts(directory)
        return cls(
            names=names,
            directory=directory,
            facts=facts,
            tokenizer=tokenizer,
            chat=_chat_format(directory, tokenizer, facts),
            media=AsDecoded.of(facts, settings),
            defaults=model_defaults(directory),
            revision=revision_of(directory),
            created=int(time.time()),
        )

    @property
    def abilities(self) -> ChatAbilities:
        """See `Model`."""
        return ChatAbilities() if self.chat is None else self.chat.abilities

    @property
    def vocab_size(self) -> int:
        """See `Model`."""
        return self.facts.vocab_size

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """See `Model`."""
        return self.facts.eos_token_ids

    @property
    def box_notation(self) -> BoxNotation:
        """See `Model`."""
        return _BOXES.get(self.facts.model_type, BoxNotation.NONE)

    @property
    def vocabulary(self) -> Vocabulary:
        """See `Model`."""
        return Vocabulary(self.facts.vocab_size, self.facts.eos_token_ids)

    def decision_prompts(self) -> DecisionPromptBuilder:
        """See `Model`."""
        raise UnsupportedParameterError(
            "Decisions are not supported with --backend transformers.", field="spec.model"
        )

    def new_prompts(self, settings: ServiceSettings, engine: Engine) -> EnginePrompts:
        """See `Model`."""
        del settings
        return EnginePrompts(self.tokenizer, self.chat, cast("PreparingEngine", engine))

    def describe(self, settings: ServiceSettings, ready: EngineReady | None) -> ModelDescription:
        """See `Model`."""
        dtype = ready.dtype if ready else self.facts.checkpoint_dtype
        return describe(
            Described(
                names=self.names,
                created=self.created,
                revision=self.revision,
                footprint=self.facts.footprint(dtype, DTYPE_BYTES[dtype]),
                image_policy=self.media.image_policy,
                has_videos=self.media.video is not None,
                is_chat=self.chat is not None,
                abilities=self.abilities,
                boxes=self.box_notation,
                decides=False,
                remarks=(REFERENCE_PATH,),
            ),
            settings,
            ready,
        )


def _chat_format(directory: Path, tokenizer: Tokenizer, facts: ModelFacts) -> JinjaChat | None:
    """The chat format of a directory; None = it has no template."""
    if find_chat_template(directory) is None:
        return None
    template = JinjaTemplate.from_dir(directory)
    image = _placeholder(template, facts.image_texts, ImagePart())
    if image not in tokenizer.special_tokens:
        raise SpecError(
            f"tokenizer.json has no special token {image!r}, which stands for an image: users could write it"
        )
    video = facts.video_texts[0] if facts.video_texts else None
    chat = JinjaChat(
        tokenizer,
        template,
        placeholder=tokenizer.special_tokens[image],
        video_placeholder=tokenizer.special_tokens.get(video) if video else None,
        tools=_TOOLS.get(facts.model_type, ToolNotation.NONE),
    )
    chat.check()
    return chat


def _placeholder(template: JinjaTemplate, texts: Sequence[str], media: Media) -> str:
    """Which of some texts the template writes for an image; the first if it writes none."""
    if not texts:
        raise SpecError("the model's processor names no placeholder of an image")
    message = ChatMessage(role=Role.USER, parts=(media, TextPart(text="x")))
    try:
        rendered = template.render([message])
    except ServiceError:
        return texts[0]
    return next((text for text in texts if text in rendered), texts[0])
