"""The times that Qwen3-VL's prompts contain before the frames of a video."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from inference_service.domain import VideoPart
from inference_service.errors import InternalError
from inference_service.model_spec import ModelSpec
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
