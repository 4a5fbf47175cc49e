"""Renders conversations to token ids with the model's Jinja template; user text contains no special tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
from dataclasses import dataclass

from inference_service.domain import ChatMessage, ChatRequest, TextPart, VideoPart
from inference_service.errors import InternalError
from inference_service.model_spec import ModelSpec
from inference_service.text.guard import SpecialTokenGuard
from inference_service.text.jinja_template import JinjaTemplate
from inference_service.text.prompt import WrittenChat, refuse_names
from inference_service.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameTimes:
    """Writes the time before each temporal patch of a video, as Qwen3-VL's processor does.

    Attributes:
        mark: The template's text for a video.
        depth: Frames per temporal patch.
    """

    mark: str
    depth: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, spec: ModelSpec) -> FrameTimes | None:
        """The frame times of a model; None if its prompts have no times.

        Raises:
            ValueError: The placeholder of videos, or a token around it, is not a special token of the tokenizer.
        """
        if spec.video is None or not spec.video.timestamps:
            return None
        texts = {token_id: text for text, token_id in tokenizer.special_tokens.items()}
        ids = (spec.vision_start_token_id, spec.video_token_id, spec.vision_end_token_id)
        if not texts.keys() >= set(ids):
            raise ValueError("tokenizer.json: video_token_id of config.json is not a special token")
        mark = "".join(texts[token_id] for token_id in ids if token_id is not None)
        return cls(mark=mark, depth=spec.image_policy.temporal_patch_size)

    def write(self, rendered: str, videos: Sequence[VideoPart]) -> str:
        """The rendered conversation with times in every video.

        Raises:
            InternalError: A video does not appear in it exactly once.
        """
        first, *following = rendered.split(self.mark)
        if len(following) != len(videos):
            raise InternalError(
                "The model's chat template did not render every video exactly once."
            )
        pieces = [first]
        for video, text in zip(videos, following, strict=True):
            pieces += [f"<{time:.1f} seconds>{self.mark}" for time in self._times(video)]
            pieces.append(text)
        return "".join(pieces)

    def _times(self, video: VideoPart) -> Iterator[float]:
        """The middle of each temporal patch in seconds; the last frame is repeated to fill the last patch."""
        last = len(video.frames) - 1
        for start in range(0, len(video.frames), self.depth):
            end = min(start + self.depth - 1, last)
            yield (start / video.fps + end / video.fps) / 2


class JinjaChat:
    """The chat format of a model with a Jinja template."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: JinjaTemplate,
        *,
        placeholder: int,
        frame_times: FrameTimes | None = None,
    ) -> None:
        """Takes the parts of the model.

        Args:
            tokenizer: The model's tokenizer.
            template: The model's template.
            placeholder: Id of the template's placeholder for an image.
            frame_times: Writes times into videos; None = no times.

        Raises:
            ValueError: The placeholder is not a special token of the tokenizer, so that users could write it.
        """
        if placeholder not in tokenizer.special_ids:
            raise ValueError("tokenizer.json: image_token_id of config.json is not a special token")
        self._tokenizer = tokenizer
        self._template = template
        self._frame_times = frame_times
        self._guard = SpecialTokenGuard(tokenizer.special_tokens)
        self._roles_with_names = template.roles_with_names()

    def write(self, request: ChatRequest) -> WrittenChat:
        """See `ChatFormat.write`."""
        refuse_names(request.messages, rendered=self._roles_with_names)
        rendered = self._template.render(
            [self._protected(message) for message in request.messages],
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            enable_thinking=request.enable_thinking,
        )
        if self._frame_times is not None:
            videos = [part for part in request.media if isinstance(part, VideoPart)]
            rendered = self._frame_times.write(rendered, videos)
        return WrittenChat(token_ids=self._encode(rendered))

    def with_placeholders(self, token_ids: Sequence[int], field: str) -> Sequence[int]:
        """See `ChatFormat.with_placeholders`: such prompts already have placeholders."""
        del field
        return token_ids

    def _protected(self, message: ChatMessage) -> ChatMessage:
        parts = tuple(
            TextPart(text=self._guard.protect(part.text)) if isinstance(part, TextPart) else part
            for part in message.parts
        )
        return dataclasses.replace(message, parts=parts, name=self._guard.protect(message.name))

    def _encode(self, rendered: str) -> list[int]:
        token_ids: list[int] = []
        for text, is_special in self._guard.split(rendered):
            if is_special:
                token_ids.append(self._tokenizer.special_tokens[text])
            else:
                token_ids += self._tokenizer.encode_plain(text)
        return token_ids
